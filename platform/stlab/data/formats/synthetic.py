"""A small generated city, to try stlab without data. Results on it say nothing about real cities."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import numpy as np

from stlab.data.formats.content import Series
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CITY = "synthetic:city"
_SEED = 20240101
_SIDE = 8
_WEEKS = 6
_START = np.datetime64("2024-01-01T00:00:00", "s")  # a Monday

_HOURS = np.arange(24)


def synthetic_data(path: str) -> Series:
    """The generated data that a path names: ``synthetic:city``, with other chances ``synthetic:city?seed=1``, longer ``?weeks=12``.

    Raises:
        DataError: there is no such city, or no such parameter of it.
    """
    name, _, query = path.partition("?")
    if name != CITY:
        raise DataError(f"{path}: no such generated data; there is {CITY}.")
    given = dict(parse_qsl(query, keep_blank_values=True))
    allowed = {"seed": (0, 2**32 - 1), "weeks": (1, 520)}
    for key, value in given.items():
        low, high = allowed.get(key, (1, 0))
        if not value.isdecimal() or not low <= int(value) <= high:
            raise DataError(f"{path}: {key}={value} is no parameter of {CITY}; it takes seed=0 to {2**32 - 1} and weeks=1 to 520.")
    return synthetic_city(path, **{key: int(value) for key, value in given.items()})


def synthetic_city(source: str = CITY, seed: int = _SEED, weeks: int = _WEEKS) -> Series:
    """Hourly inflow and outflow on 8×8 cells over six weeks: (1008, 2, 8, 8) trips an hour, the same on every machine.

    Homes, offices and leisure are spread unevenly over the cells, each with one profile for weekdays and one for weekends. Shocks that last
    for hours multiply these rates: the whole city shares one (it acts like weather, and leisure responds most), and local ones move to
    neighbouring cells. Outflow follows inflow hours later. Counts are Poisson. The hour of the week therefore explains much, and the last
    few hours explain more.
    """
    # numpy guarantees the streams of its legacy generator; those of np.random.Generator may change.
    draw = np.random.RandomState(seed)
    steps = weeks * 7 * 24
    profile = _weekly_profile()  # (168, 3 uses, 2, 1, 1)
    density = _densities()  # (3 uses, 1, 8, 8)
    hour_of_week = np.arange(steps) % 168
    weather, local = _weather(draw, steps), _local_shocks(draw, steps)
    feels = np.array([0.6, 0.7, 1.4])[:, None, None, None]  # homes, offices, leisure
    use = profile[hour_of_week] * density * np.exp(feels * weather[:, None, None, None, None])
    # Rates are rounded so that the last bit of an exponential, which differs between machines, changes no count.
    rate = np.round(use.sum(axis=1) * np.exp(local), 6)
    counts = draw.poisson(rate)
    times = _START + np.arange(steps) * np.timedelta64(3600, "s")
    return Series(
        counts.astype(np.float32),
        times,
        source=source,
        name=f"synthetic {source.removeprefix('synthetic:')}",
        synthetic=True,
        channel_names=("inflow", "outflow"),
    )


def _bump(center: float, width: float) -> NDArray[np.float64]:
    """A peak of height 1 over the hours of a day, which wraps around midnight."""
    away = (_HOURS - center + 12) % 24 - 12
    height: NDArray[np.float64] = np.exp(-0.5 * (away / width) ** 2)
    return height


def _weekly_profile() -> NDArray[np.float64]:
    """(168, 3, 2, 1, 1): trips per hour in a cell of density 1, from Monday 00:00, by use (homes, offices, leisure)
    and channel (in, out).

    People leave their homes in the morning and return in the evening; leisure peaks later in the day and at the weekend.
    """
    morning, evening, noon = _bump(8, 1.2), _bump(18, 1.7), _bump(13, 2.5)
    late, afternoon, night = _bump(21, 2.2), _bump(15, 3.0), _bump(0.5, 2.0)
    weekday = np.array(
        [
            [4 + 14 * morning + 70 * evening + 18 * late, 3 + 75 * morning + 18 * evening + 12 * noon],
            [2 + 95 * morning + 24 * noon + 8 * evening, 2 + 8 * morning + 26 * noon + 85 * evening],
            [3 + 15 * noon + 45 * evening + 12 * late, 3 + 12 * noon + 20 * evening + 45 * late],
        ]
    )
    weekend = np.array(
        [
            [5 + 35 * afternoon + 28 * late, 4 + 45 * noon + 22 * evening + 6 * late],
            [2 + 14 * noon, 2 + 13 * afternoon],
            [5 + 60 * afternoon + 45 * late, 5 + 35 * afternoon + 40 * late + 35 * night],
        ]
    )
    days = [weekday] * 5 + [weekend] * 2
    busy = np.array([0.95, 1.0, 1.02, 1.05, 1.1, 1.0, 0.85])  # Monday to Sunday
    week = np.concatenate([day * factor for day, factor in zip(days, busy, strict=True)], axis=-1)
    return np.moveaxis(week, -1, 0)[..., None, None]


def _densities() -> NDArray[np.float64]:
    """(3, 1, 8, 8): density of homes, offices and leisure in each cell."""
    row, column = np.mgrid[:_SIDE, :_SIDE].astype(np.float64)

    def around(r: float, c: float, width: float) -> NDArray[np.float64]:
        height: NDArray[np.float64] = np.exp(-0.5 * ((row - r) ** 2 + (column - c) ** 2) / width**2)
        return height

    homes = 0.25 + 0.9 * around(1.5, 1.5, 1.6) + 0.8 * around(6.0, 5.0, 1.7) + 0.4 * around(1.0, 6.5, 1.2)
    offices = 0.05 + 1.3 * around(3.5, 4.0, 1.2) + 0.4 * around(5.5, 1.0, 0.9)
    leisure = 0.08 + 0.9 * around(4.5, 3.0, 1.0) + 0.5 * around(2.0, 6.0, 0.9)
    return np.stack([homes, offices, leisure])[:, None]


def _weather(draw: np.random.RandomState, steps: int) -> NDArray[np.float64]:
    """(T,) first-order autoregression with standard deviation 0.35. Half of a shock is left after about 27 hours."""
    keep, deviation = 0.975, 0.35
    shock = draw.standard_normal(steps)
    values = np.empty(steps)
    values[0] = deviation * shock[0]
    for t in range(1, steps):
        values[t] = keep * values[t - 1] + deviation * (1 - keep**2) ** 0.5 * shock[t]
    return values


def _local_shocks(draw: np.random.RandomState, steps: int) -> NDArray[np.float64]:
    """(T, 2, 8, 8), added to the log of the rate: shocks that spread to the four neighbours. They reach outflow two hours after inflow."""
    keep, stay, size, lag, spin_up = 0.97, 0.8, 0.14, 2, 96
    shock = draw.standard_normal((steps + spin_up, _SIDE, _SIDE))
    field = np.zeros((steps + spin_up, _SIDE, _SIDE))
    for t in range(1, steps + spin_up):
        around = np.pad(field[t - 1], 1, mode="edge")
        neighbours = (around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]) / 4
        field[t] = keep * (stay * field[t - 1] + (1 - stay) * neighbours) + size * shock[t]
    return np.stack([field[spin_up:], field[spin_up - lag : -lag]], axis=1)
