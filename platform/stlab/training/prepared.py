"""What a model computes once from the train segment: it is kept in the storage for all trials that would compute the same."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from stlab.catalog import create_config
from stlab.data import Dataset
from stlab.storage import Store
from stlab.study.identity import document
from stlab.training.workers import agreed, rank_here
from stmodels.base import Forecaster

if TYPE_CHECKING:
    from stlab.study.spec import TrialSpec

logger = logging.getLogger(__name__)


def prepare(model: Forecaster, trial: TrialSpec, dataset: Dataset, store: Store) -> None:
    """Give a model what it prepares from the train segment, computed now or taken from the storage. All workers have to call this.

    Raises:
        DataError: the data are ready-made windows.
        ValueError: what it prepares does not fit its buffers.
    """
    path = prepared_path(trial, dataset)
    if path is not None:
        model.adopt(agreed(_prepared(model, dataset, store, path) if rank_here() == 0 else {}))


def prepared_path(trial: TrialSpec, dataset: Dataset) -> str | None:
    """Where the storage keeps what the model of a trial prepares: ``prepared/<hash>.safetensors``; None if it prepares nothing.

    The hash covers the train segment, the network where the model reads it, the fields that the model names, and its code.
    """
    config = create_config(trial.model)
    fields = config.prepared_from()
    if fields is None:
        return None
    made = document(trial, config, dataset.sha256, dataset.network_sha256)
    data = {name: value for name, value in made["fields"].items() if name.startswith("data.")}
    whole = {"fields": dict(fields), "of data": data, **{name: made.get(name) for name in ("data", "network", "code")}}
    return f"prepared/{hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]}.safetensors"


def _prepared(model: Forecaster, dataset: Dataset, store: Store, path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(store.read(path))
    except FileNotFoundError:
        pass
    except SafetensorError as error:
        logger.warning("%s is damaged (%s): it is computed again", path, error)
    made = {name: tensor.detach().cpu().contiguous() for name, tensor in model.prepare(dataset.windows("train").readings()).items()}
    store.write(path, safetensors.torch.save(made))
    return made
