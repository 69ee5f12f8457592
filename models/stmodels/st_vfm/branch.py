"""The parts of a branch of ST-VFM: its embedding before the backbone and its decoder after it.

Legend: as in :mod:`stmodels.st_vfm.model`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.backbones import Backbone
from stmodels.layers.calendar import Calendar
from stmodels.layers.linear import Linear
from stmodels.layers.patches import unpatchify
from stmodels.layers.temporal import TemporalEncoder
from stmodels.st_vfm.config import STVFMConfig
from stmodels.types import SeriesInfo


class Geometry(NamedTuple):
    """Sizes that follow from configuration and data."""

    frames: int  # T'
    frames_ahead: int  # Q'
    tokens_hw: tuple[int, int]  # (H/s, W/s), padding included
    values: int  # V
    padding: tuple[int, int]  # rows and columns added
    padded: tuple[int, int, int]  # (C, H, W), padding included

    @classmethod
    def of(cls, config: STVFMConfig, info: SeriesInfo) -> Geometry:
        channels, height, width = info.shape
        s, p = config.patch, config.temporal_patch
        rows, columns = -height % s, -width % s
        return cls(
            frames=info.history // p,
            frames_ahead=info.horizon // p,
            tokens_hw=((height + rows) // s, (width + columns) // s),
            values=p * channels * s * s,
            padding=(rows, columns),
            padded=(channels, height + rows, width + columns),
        )


def _first_slots(slots: Tensor, p: int) -> Tensor:
    """(B, T) → (B, T/p): a temporal token carries the calendar of its first step."""
    return slots[:, ::p]


class Embedding(nn.Module):
    """Temporal-aware token adapter: patches to backbone tokens (Eq. 5-8), (B, T', N, V) → (B, T', N, D)."""

    def __init__(
        self, config: STVFMConfig, info: SeriesInfo, geometry: Geometry, backbone: Backbone, told: int
    ) -> None:
        super().__init__()
        self.temporal_patch = config.temporal_patch
        values = told * geometry.values
        width_in = values
        self.project = self.context = self.calendar = self.position = self.time = None
        if config.temporal_context:
            width_in = config.temporal_width
            self.project = Linear(values, width_in)  # Eq. 5
            self.context = TemporalEncoder(
                geometry.frames, width_in, config.temporal_heads, config.temporal_layers, config.dropout
            )
            if config.calendar and info.slots_per_day:
                self.calendar = Calendar(info.slots_per_day, width_in)
        self.adapt = Linear(width_in, backbone.width)  # Eq. 7
        if config.adaptation == "token":
            spatial_tokens = geometry.tokens_hw[0] * geometry.tokens_hw[1]
            self.position = nn.Parameter(torch.empty(spatial_tokens, backbone.width))  # Eq. 8
            if backbone.video:
                self.time = nn.Parameter(torch.empty(geometry.frames, 1, backbone.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in (self.position, self.time):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, patches: Tensor, slots: Tensor | None) -> Tensor:
        x = patches
        if self.context is not None:
            x = self._in_context(x, slots)
        x = self.adapt(x)
        if self.position is not None:
            x = x + self.position
        if self.time is not None:
            x = x + self.time
        return x

    def _in_context(self, patches: Tensor, slots: Tensor | None) -> Tensor:
        """Eq. 5-6: every spatial location is a short sequence over time. (B, T', N, V) → (B, T', N, D_T)."""
        b, t, n, _ = patches.shape
        x = self.project(patches)
        if self.calendar is not None:
            x = x + self.calendar(_first_slots(slots, self.temporal_patch))[:, :, None]
        x = self.context(x.transpose(1, 2).reshape(b * n, t, -1))
        return x.view(b, n, t, -1).transpose(1, 2)


class TransformerDecoder(nn.Module):
    """Temporal transformer decoder: attention over the history tokens and Q' learnable queries, which are then mapped to patches.

    (B, T', N, D) → (B, Q, C, H, W). The queries are the last Q' rows of the learnable temporal position.
    """

    def __init__(self, config: STVFMConfig, info: SeriesInfo, geometry: Geometry, width: int, told_ahead: int) -> None:
        super().__init__()
        d = config.temporal_width
        self.config, self.geometry = config, geometry
        self.reduce = Linear(width, d)
        length = geometry.frames + geometry.frames_ahead
        self.time = TemporalEncoder(length, d, config.temporal_heads, config.temporal_layers, config.dropout)
        self.calendar = Calendar(info.slots_per_day, d) if config.calendar and info.slots_per_day else None
        self.season = Linear(told_ahead * geometry.values, d) if told_ahead else None
        self.readout = Linear(d, geometry.values)

    def forward(
        self, states: Tensor, history_slot: Tensor | None, target_slot: Tensor | None, ahead: Tensor | None = None
    ) -> Tensor:
        b, _, n, _ = states.shape
        ahead_frames, p = self.geometry.frames_ahead, self.config.temporal_patch
        known = self.reduce(states)
        queries = known.new_zeros(b, ahead_frames, n, known.shape[-1]) if self.season is None else self.season(ahead)
        x = torch.cat([known, queries.to(known.dtype)], dim=1)
        if self.calendar is not None:
            slots = torch.cat([_first_slots(history_slot, p), _first_slots(target_slot, p)], dim=1)
            x = x + self.calendar(slots)[:, :, None]
        x = self.time(x.transpose(1, 2).reshape(b * n, x.shape[1], -1))[:, -ahead_frames:]
        patches = self.readout(x).view(b, n, ahead_frames, -1).transpose(1, 2)
        return unpatchify(patches, self.config.patch, p, self.geometry.padded)


class MLPDecoder(nn.Module):
    """The decoder of #1, an MLP over the frames of a location, which are joined: every frame ahead is read from all of the history.

    With ``mlp_reads: same`` it maps each token separately, and frame q' of the forecast is read from frame q' mod T' of the history: the
    next step is read from the oldest frame.
    """

    def __init__(self, config: STVFMConfig, info: SeriesInfo, geometry: Geometry, width: int, told_ahead: int) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.joins = config.mlp_reads == "all"
        inputs, outputs = (geometry.frames, geometry.frames_ahead) if self.joins else (1, 1)
        self.fc1 = Linear(inputs * width, config.temporal_width)
        self.readout = Linear(config.temporal_width, outputs * geometry.values)

    def forward(
        self, states: Tensor, history_slot: Tensor | None, target_slot: Tensor | None, ahead: Tensor | None = None
    ) -> Tensor:
        if self.joins:
            joined = self.readout(F.gelu(self.fc1(states.transpose(1, 2).flatten(2))))  # (B, N, Q'·V)
            patches = joined.unflatten(2, (self.geometry.frames_ahead, -1)).transpose(1, 2)
        else:
            source = torch.arange(self.geometry.frames_ahead, device=states.device) % self.geometry.frames
            patches = self.readout(F.gelu(self.fc1(states)))[:, source]
        return unpatchify(patches, self.config.patch, self.config.temporal_patch, self.geometry.padded)
