"""Edges of a network from the places of its nodes, or from a list of routes: the file that ``data.distances`` takes."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stlab.errors import DataError
from stlab.sources.cells import EARTH_METRES
from stlab.sources.write import checked_target, whole_file

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Edges:
    """A network: for each edge the node it leaves, the node it enters, and its length."""

    nodes: tuple[str, ...]
    ends: NDArray[np.int64]
    """(E, 2) indices of nodes."""
    metres: NDArray[np.float64]
    """(E,)."""

    @property
    def sigma(self) -> float:
        """Standard deviation of all lengths, the scale of the Gaussian kernel; NaN without an edge."""
        return float(self.metres.std()) if len(self.metres) else float("nan")

    def weights(self) -> NDArray[np.float64]:
        """exp(−(length / σ)²), DCRNN (Li et al. 2018), section 4.1; 1 where all edges are equally long."""
        return np.exp(-np.square(self.metres / self.sigma)) if self.sigma > 0 else np.ones(len(self.metres))


def haversine(
    lat: NDArray[np.float64], lon: NDArray[np.float64], lats: NDArray[np.float64], lons: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Great-circle metres between each of n places and each of m: (n, m), from degrees."""
    a, b, c, d = (np.radians(angle) for angle in (lat[:, None], lon[:, None], lats[None], lons[None]))
    half = np.sin((c - a) / 2) ** 2 + np.cos(a) * np.cos(c) * np.sin((d - b) / 2) ** 2
    return 2 * EARTH_METRES * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


def from_places(
    nodes: tuple[str, ...],
    lat: NDArray[np.float64],
    lon: NDArray[np.float64],
    neighbours: int | None,
    metres: float | None,
) -> Edges:
    """Each node's nearest neighbours, or all nodes within a radius; with both, the nearest within it. No node is its own neighbour."""
    ends, lengths = [], []
    for node in range(len(nodes)):
        row = haversine(lat[node : node + 1], lon[node : node + 1], lat, lon)[0]
        row[node] = np.inf
        order = np.argsort(row, kind="stable")[: len(nodes) - 1]
        order = order[: neighbours if neighbours is not None else None]
        order = order[row[order] <= (np.inf if metres is None else metres)]
        ends += [(node, int(other)) for other in order]
        lengths += row[order].tolist()
    return Edges(nodes, np.array(ends, np.int64).reshape(-1, 2), np.array(lengths))


def from_routes(table: pd.DataFrame, path: str, neighbours: int | None, metres: float | None) -> Edges:
    """The routes of a list (from, to, cost), as far as they are among each node's shortest, or no longer than a radius.

    Raises:
        DataError: a column is missing, or a cost is no number from 0.
    """
    cost = next((name for name in ("cost", "distance") if name in table.columns), None)
    if cost is None or not {"from", "to"} <= set(table.columns):
        raise DataError(
            f"{path}: columns {', '.join(map(str, table.columns))}; from, to and cost (or distance) are needed."
        )
    lengths = pd.to_numeric(table[cost], errors="coerce")
    sound = np.isfinite(lengths) & (lengths >= 0) & table["from"].notna() & table["to"].notna()
    if bad := int((~sound).sum()):
        row = int(np.argmax((~sound).to_numpy()))
        words = f"{cost} is '{table[cost].iloc[row]}', from {table['from'].iloc[row]} to {table['to'].iloc[row]}"
        raise DataError(f"{path}: line {row + 2}: {words}: no edge; {bad} lines are so.")
    routes = pd.DataFrame({"from": table["from"].astype(str), "to": table["to"].astype(str), "cost": lengths})
    routes = routes[routes["from"] != routes["to"]].sort_values(["from", "cost", "to"], kind="stable")
    if metres is not None:
        routes = routes[routes["cost"] <= metres]
    if neighbours is not None:
        routes = routes.groupby("from", sort=False).head(neighbours)
    nodes = tuple(sorted({*routes["from"], *routes["to"]}))
    index = {name: i for i, name in enumerate(nodes)}
    ends = np.column_stack([routes["from"].map(index), routes["to"].map(index)]).astype(np.int64)
    return Edges(nodes, ends, routes["cost"].to_numpy(np.float64))


def build_network(
    path: str,
    out: str,
    *,
    node: str,
    lat: str,
    lon: str,
    routed: bool,
    neighbours: int | None,
    metres: float | None,
    force: bool,
) -> Edges:
    """Write the edges of a network: ``from,to,cost,weight``, with metres as cost and the Gaussian kernel as weight.

    Args:
        path: a CSV of places, or of routes if ``routed``.
        neighbours, metres: at least one of them.

    Raises:
        DataError: what is wrong with the file or the options.
    """
    target = checked_target(out, (".csv",), force)
    if neighbours is None and metres is None:
        raise DataError("give --neighbours 8, --radius-metres 2000, or both.")
    if (neighbours is not None and neighbours < 1) or (metres is not None and not metres > 0):
        raise DataError("--neighbours and --radius-metres have to be above 0.")
    table = _table(Path(path).expanduser())
    edges = (
        from_routes(table, path, neighbours, metres)
        if routed
        else from_places(*_places(table, path, node, lat, lon), neighbours, metres)
    )
    if not len(edges.ends):
        raise DataError(f"{path}: no two nodes are that near. Give a larger --radius-metres.")
    rows = zip(edges.ends.tolist(), edges.metres, edges.weights(), strict=True)
    with whole_file(target) as beside, beside.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.writer(sink)
        writer.writerow(("from", "to", "cost", "weight"))
        writer.writerows(
            (edges.nodes[a], edges.nodes[b], f"{cost:.3f}", f"{weight:.6g}") for (a, b), cost, weight in rows
        )
    return edges


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Relative paths start where the command runs, {Path.cwd()}.")
    try:
        return pd.read_csv(path, dtype=str, skipinitialspace=True, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no CSV table ({error}).") from error


def _places(
    table: pd.DataFrame, path: str, node: str, lat: str, lon: str
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """The ids of the nodes, and their degrees."""
    for name, option in ((node, "--node"), (lat, "--lat"), (lon, "--lon")):
        if name not in table.columns:
            raise DataError(
                f"{path}: there is no column '{name}' ({option}). Its columns: {', '.join(map(str, table.columns))}."
            )
    degrees = [pd.to_numeric(table[name], errors="coerce") for name in (lat, lon)]
    bad = ~(degrees[0].abs() <= 90) | ~(degrees[1].abs() <= 180) | table[node].isna()
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        raise DataError(
            f"{path}: line {row + 2}: {node} {table[node].iloc[row]} has no place: {table[lat].iloc[row]}, {table[lon].iloc[row]}."
        )
    if table[node].duplicated().any():
        raise DataError(
            f"{path}: {node} {table[node][table[node].duplicated()].iloc[0]} stands there twice. Keep one line a node."
        )
    return tuple(table[node]), degrees[0].to_numpy(np.float64), degrees[1].to_numpy(np.float64)
