"""H3's hexagons as places: each is a node of a network, named by its index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stlab.errors import DataError
from stlab.sources.cells import Box
from stlab.sources.sql import quoted

if TYPE_CHECKING:
    import duckdb

    from stlab.sources.trips import End

_DECIMALS = 5  # of a degree: a metre
_BATCH = 100_000


def mark_hexagons(
    connection: duckdb.DuckDBPyConnection, ends: Sequence[End], box: Box | None, resolution: int
) -> dict[str, str]:
    """Give every end of a trip its hexagon, in a column of the records.

    Returns:
        Channel → SQL of the hexagon; NULL outside the box.

    Raises:
        DataError: there is no such resolution.
    """
    import h3
    import pyarrow as pa

    if not 0 <= resolution <= 15:
        raise DataError(f"--h3 {resolution}: H3's resolutions are 0 to 15, for example 8 (cells of 0.7 km²).")
    places = {}
    for end in ends:
        lat, lon = (f"round(records.{quoted(role)}, {_DECIMALS})" for role in end.place)
        column = quoted(f"hexagon {end.channel}")
        inside = "TRUE" if box is None else box.holds("h.lat", "h.lon")
        reader = connection.cursor()
        reader.execute(
            f"SELECT DISTINCT {lat} AS lat, {lon} AS lon FROM records WHERE abs({lat}) <= 90 AND abs({lon}) <= 180"
        )
        connection.execute("CREATE OR REPLACE TEMP TABLE hexagons (lat DOUBLE, lon DOUBLE, cell VARCHAR)")
        while rows := reader.fetchmany(_BATCH):
            cells = [h3.latlng_to_cell(one, other, resolution) for one, other in rows]
            batch = pa.table({"lat": [row[0] for row in rows], "lon": [row[1] for row in rows], "cell": cells})
            connection.register("batch", batch)
            connection.execute("INSERT INTO hexagons SELECT * FROM batch")
            connection.unregister("batch")
        connection.execute(f"ALTER TABLE records ADD COLUMN {column} VARCHAR")
        connection.execute(
            f"UPDATE records SET {column} = h.cell FROM hexagons h WHERE h.lat = {lat} AND h.lon = {lon} AND {inside}"
        )
        places[end.channel] = column
    return places
