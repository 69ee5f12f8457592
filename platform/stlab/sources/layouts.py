"""The layouts in which cities publish records: by their columns a file is recognised, and what each column means is known.

The columns are those of the publishers' own documents: Citi Bike's system data, the TLC's data dictionaries, and the field
specification of the Caltrans PeMS clearinghouse.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PEMS_COLUMNS = (
    "Timestamp", "Station", "District", "Freeway #", "Direction of Travel", "Lane Type", "Station Length", "Samples", "% Observed",
    "Total Flow", "Avg Occupancy", "Avg Speed",
)  # fmt: skip
_PEMS_LANE = ("Lane {} Samples", "Lane {} Flow", "Lane {} Avg Occ", "Lane {} Avg Speed", "Lane {} Observed")


@dataclass(frozen=True)
class Layout:
    """A published layout: the part that each column plays for a command."""

    key: str
    title: str
    command: str
    """``grid``, ``zones`` or ``sensors``."""
    roles: Mapping[str, tuple[str, ...]]
    """Role (``time``, ``lat``, …) → the names that its column has had over the years, any of them."""
    time_format: str | None = None
    """As strptime has it; None for ISO times and what a sample shows."""
    headless: str = ""
    """A pattern of the names of files without a header; empty if there is one."""
    also: Sequence[str] = field(default=())
    """Further columns that set the layout apart."""


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "citibike", "Citi Bike trips since 2021 (and other Lyft systems)", "grid",
        {
            "time": ("started_at",), "lat": ("start_lat",), "lon": ("start_lng",),
            "end_time": ("ended_at",), "end_lat": ("end_lat",), "end_lon": ("end_lng",),
        },
    ),
    Layout(
        "citibike-old", "Citi Bike trips until January 2021", "grid",
        {
            "time": ("starttime",), "lat": ("start station latitude",), "lon": ("start station longitude",),
            "end_time": ("stoptime",), "end_lat": ("end station latitude",), "end_lon": ("end station longitude",),
        },
        also=("tripduration",),
    ),
    Layout(
        "tlc-coordinates", "NYC TLC trips with coordinates, until June 2016", "grid",
        {
            "time": ("tpep_pickup_datetime", "lpep_pickup_datetime", "pickup_datetime", "Trip_Pickup_DateTime"),
            "lat": ("pickup_latitude", "Start_Lat"), "lon": ("pickup_longitude", "Start_Lon"),
            "end_time": ("tpep_dropoff_datetime", "Lpep_dropoff_datetime", "dropoff_datetime", "Trip_Dropoff_DateTime"),
            "end_lat": ("dropoff_latitude", "End_Lat"), "end_lon": ("dropoff_longitude", "End_Lon"),
        },
    ),
    Layout(
        "tlc-zones", "NYC TLC trips with taxi zones, since July 2016", "zones",
        {
            "time": ("tpep_pickup_datetime", "lpep_pickup_datetime", "pickup_datetime"), "zone": ("PULocationID",),
            "end_time": ("tpep_dropoff_datetime", "lpep_dropoff_datetime", "dropoff_datetime"), "end_zone": ("DOLocationID",),
        },
    ),
    Layout(
        "pems-station", "Caltrans PeMS, Station 5-Minute (dNN_text_station_5min_….txt.gz, no header)", "sensors",
        {"time": ("Timestamp",), "node": ("Station",), "values": ("Total Flow", "Avg Occupancy", "Avg Speed")},
        time_format="%m/%d/%Y %H:%M:%S",
        headless=r"d\d\d_text_station_(5min|hour)_.*\.txt(\.gz)?$",
    ),
)  # fmt: skip


def folded(name: str) -> str:
    """A column's name as it is compared: what differs between years (case, blanks, underscores) is gone."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name).casefold())


def pems_columns(count: int) -> tuple[str, ...]:
    """The names of a PeMS station file's columns: twelve of the station, then five a lane."""
    lanes = range(1, (count - len(PEMS_COLUMNS)) // len(_PEMS_LANE) + 1)
    names = (*PEMS_COLUMNS, *(name.format(lane) for lane in lanes for name in _PEMS_LANE))
    return (*names, *(f"column {i + 1}" for i in range(len(names), count)))


def headless_layout(file_name: str) -> Layout | None:
    """The layout of a file that has no header, by its name."""
    return next(
        (layout for layout in LAYOUTS if layout.headless and re.search(layout.headless, file_name, re.IGNORECASE)), None
    )


def recognised(header: Sequence[str], command: str) -> Layout | None:
    """The published layout for a command whose columns are all there."""
    there = {folded(name) for name in header}
    for layout in LAYOUTS:
        if layout.command == command and not layout.headless:
            needed = [*layout.roles.values(), *((name,) for name in layout.also)]
            if all(there & {folded(name) for name in names} for names in needed):
                return layout
    return None
