"""Grids as sensor networks, and the one channel of a network that is forecast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stlab.data.formats.content import Series
from stlab.errors import DataError


def flattened(grid: Series) -> Series:
    """A grid (T, C, H, W) as a network of its H·W cells, row by row: (T, N, C), nodes named "row,column". In a grid
    0 is a reading."""
    steps, channels, height, width = grid.values.shape
    cells = np.moveaxis(grid.values.reshape(steps, channels, height * width), 1, 2)
    names = tuple(f"{row},{column}" for row in range(height) for column in range(width))
    return replace(grid, values=np.ascontiguousarray(cells), node_names=names, null=None)


def one_channel(series: Series, channel: int) -> Series:
    """The series of one channel, (T, N, 1), which keeps its name.

    Raises:
        DataError: there is no such channel.
    """
    names = named_channels(series)
    if channel >= len(names):
        raise DataError(
            f"{series.source}: array `{series.array}` has {len(names)} channels, data.channel={channel} is none of "
            f"them. Set data.channel to {' or '.join(f'{i} ({name})' for i, name in enumerate(names))}."
        )
    return replace(
        series,
        values=np.ascontiguousarray(series.values[:, :, channel : channel + 1]),
        channel_names=(names[channel],),
        first_channel=channel,
    )


def named_channels(series: Series) -> tuple[str, ...]:
    """Names of all channels of a sensor series (T, N, C); numbers where the file has none."""
    return series.channel_names or tuple(f"channel {i + 1}" for i in range(series.values.shape[2]))
