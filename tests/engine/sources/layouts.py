"""Small files in the real layouts of their publishers, with what a pandas count makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

BOX = (40.70, -74.02, 40.80, -73.93)
"""South, west, north, east."""


def trips(count: int = 3000, first: str = "2024-03-01", days: int = 20, seed: int = 0) -> pd.DataFrame:
    """Trips anywhere in and around the box, with whole seconds: begin, end, lat, lon, end_lat, end_lon."""
    draw = np.random.default_rng(seed)
    begin = pd.Timestamp(first) + pd.to_timedelta(draw.integers(0, days * 86_400, count), unit="s")
    south, west, north, east = BOX
    places = {
        name: np.round(draw.uniform(low - 0.01, high + 0.01, count), 6)
        for name, (low, high) in {"lat": (south, north), "lon": (west, east), "end_lat": (south, north), "end_lon": (west, east)}.items()
    }
    return pd.DataFrame({"begin": begin, "end": begin + pd.to_timedelta(draw.integers(60, 3600, count), unit="s"), **places})


def citibike(rows: pd.DataFrame) -> pd.DataFrame:
    """Since 2021."""
    return pd.DataFrame({
        "ride_id": [f"{i:016X}" for i in rows.index], "rideable_type": "electric_bike", "started_at": rows.begin.astype(str),
        "ended_at": rows.end.astype(str), "start_station_name": "W 21 St, 6 Ave", "start_station_id": "6140.05", "end_station_name": "",
        "end_station_id": "", "start_lat": rows.lat, "start_lng": rows.lon, "end_lat": rows.end_lat, "end_lng": rows.end_lon,
        "member_casual": "member",
    })  # fmt: skip


def citibike_old(rows: pd.DataFrame, slashes: bool = False) -> pd.DataFrame:
    """Until January 2021; some months of 2014 and 2015 have slashes and no leading zeros."""
    form = "%-m/%-d/%Y %H:%M:%S" if slashes else "%Y-%m-%d %H:%M:%S.0000"
    return pd.DataFrame({
        "tripduration": (rows.end - rows.begin).dt.total_seconds().astype(int), "starttime": rows.begin.dt.strftime(form),
        "stoptime": rows.end.dt.strftime(form), "start station id": rows.index, "start station name": "Franklin St & W Broadway",
        "start station latitude": rows.lat, "start station longitude": rows.lon, "end station id": rows.index,
        "end station name": "Lafayette St", "end station latitude": rows.end_lat, "end station longitude": rows.end_lon, "bikeid": 15454,
        "usertype": "Subscriber", "birth year": "\\N", "gender": 1,
    })  # fmt: skip


def tlc_coordinates(rows: pd.DataFrame) -> pd.DataFrame:
    """Yellow taxis of 2015 and 2016; 2010 to 2014 have blanks before the names."""
    return pd.DataFrame({
        "VendorID": 2, "tpep_pickup_datetime": rows.begin.astype(str), "tpep_dropoff_datetime": rows.end.astype(str),
        "passenger_count": 1, "trip_distance": 1.5, "pickup_longitude": rows.lon, "pickup_latitude": rows.lat, "RateCodeID": 1,
        "store_and_fwd_flag": "N", "dropoff_longitude": rows.end_lon, "dropoff_latitude": rows.end_lat, "payment_type": 1,
        "fare_amount": 9.5 + rows.index * 0.01,
    })  # fmt: skip


def tlc_zones(rows: pd.DataFrame, seed: int = 1) -> pd.DataFrame:
    """Yellow taxis since July 2016, as the TLC's Parquet has them."""
    draw = np.random.default_rng(seed)
    return pd.DataFrame({
        "VendorID": 2, "tpep_pickup_datetime": rows.begin.astype("datetime64[us]"),
        "tpep_dropoff_datetime": rows.end.astype("datetime64[us]"), "passenger_count": 1.0, "trip_distance": 1.5, "RatecodeID": 1.0,
        "PULocationID": draw.integers(1, 12, len(rows)).astype("int32"), "DOLocationID": draw.integers(1, 12, len(rows)).astype("int32"),
        "total_amount": np.arange(len(rows)) * 0.01,
    })  # fmt: skip


def pems_station(path: Path, stations: tuple[int, ...] = (715898, 715915), steps: int = 288, day: str = "2024-01-03") -> pd.DataFrame:
    """A day of Caltrans' 5-minute station file, which has no header: two lanes, and a gap where nothing was observed."""
    draw = np.random.default_rng(2)
    times = pd.date_range(day, periods=steps, freq="5min")
    rows = pd.DataFrame([(time, station) for time in times for station in stations], columns=["time", "station"])
    rows["flow"] = draw.integers(0, 500, len(rows)).astype(float)
    rows.loc[5, "flow"] = np.nan
    lanes = "10,50,.05,66,1,10,60,.06,67,1"
    lines = [
        f"{time:%m/%d/%Y %H:%M:%S},{station},7,5,S,ML,.33,20,100,{'' if np.isnan(flow) else int(flow)},.0541,66.8,{lanes}"
        for time, station, flow in rows.itertuples(index=False)
    ]
    path.write_text("\n".join(lines) + "\n")
    return rows


def counted(rows: pd.DataFrame, cells: tuple[int, int], step: str, box: tuple[float, float, float, float] = BOX) -> dict[str, np.ndarray]:
    """Channel → (T, H, W) trips by pandas and numpy, over whole days of the trips' beginnings."""
    south, west, north, east = box
    days = rows.begin.dt.floor("D")
    first, last = days.min(), days.max() + pd.Timedelta("1D")
    result = {}
    for channel, time, lat, lon in (("outflow", "begin", "lat", "lon"), ("inflow", "end", "end_lat", "end_lon")):
        inside = rows[rows[lat].between(south, north) & rows[lon].between(west, east) & (rows[time] >= first) & (rows[time] < last)]
        # Edges count down from the north, as the rows do.
        row = np.clip(np.digitize(-inside[lat], -np.linspace(north, south, cells[0] + 1)) - 1, 0, cells[0] - 1)
        column = np.clip(np.digitize(inside[lon], np.linspace(west, east, cells[1] + 1)) - 1, 0, cells[1] - 1)
        at = ((inside[time] - first) // pd.Timedelta(step)).to_numpy()
        result[channel] = np.zeros(((last - first) // pd.Timedelta(step), *cells))
        np.add.at(result[channel], (at, row, column), 1)
    return result
