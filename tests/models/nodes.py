"""Models of sensor networks for tests: built from a name and a few fields, with drawn weights, on random windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stlab.catalog import config_values, create_config, create_model
from stlab.inspection.contract import random_batch
from stmodels.base import Forecaster
from stmodels.rng import initialise
from stmodels.types import Batch, SeriesInfo, ring


def nodes_info(nodes: int = 5, history: int = 12, horizon: int = 12, slots: int | None = 24, network: Tensor | None = None) -> SeriesInfo:
    adjacency = network if network is not None else ring(nodes)
    return SeriesInfo("sensors", (nodes, 1), history, horizon, slots, 0.1, 5, 0.1, -1.0, 900, adjacency)


def built(name: str, info: SeriesInfo, seed: int = 0, **fields: Any) -> Forecaster:
    """The model in eval mode."""
    model = create_model(config_values(create_config({"name": name, **fields})), info)
    initialise(model, seed)
    return model.eval()


def small(name: str, info: SeriesInfo, seed: int = 0, **fields: Any) -> Forecaster:
    """As :func:`built`, with the fields that make it small."""
    return built(name, info, seed, **{**type(create_config({"name": name})).SMALL, **fields})


def windows(info: SeriesInfo, count: int = 3, seed: int = 0) -> Batch:
    return random_batch(info, count, seed)


@torch.no_grad()
def value(model: Forecaster, batch: Batch) -> Tensor:
    return model(batch).value


def at_nodes(batch: Batch, order: Tensor) -> Batch:
    """The nodes of a batch in another order."""
    return batch._replace(**{
        name: field[:, :, order] for name, field in batch._asdict().items() if field is not None and field.dim() == 4
    })  # fmt: skip


def moved_at(batch: Batch, node: int) -> Batch:
    """The batch with another history of one node."""
    history = batch.history.clone()
    history[:, :, node] += torch.randn_like(history[:, :, node])
    return batch._replace(history=history)


def nodes_that_change(model: Forecaster, batch: Batch, node: int) -> set[int]:
    """The nodes whose forecast changes with the history of one."""
    apart = (value(model, batch) - value(model, moved_at(batch, node))).abs().amax((0, 1, 3))
    return {i for i, gap in enumerate(apart.tolist()) if gap > 1e-6}
