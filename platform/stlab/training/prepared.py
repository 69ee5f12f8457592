"""What a model computes once from the train segment: it is kept in the storage for all trials that would compute the same."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from stlab.catalog import create_config
from stlab.data import Dataset
from stlab.model_files import short
from stlab.storage import Store
from stlab.training.workers import agreed, rank_here
from stmodels.base import Forecaster

if TYPE_CHECKING:
    from stlab.study.spec import TrialSpec

logger = logging.getLogger(__name__)


def prepare(model: Forecaster, trial: TrialSpec, dataset: Dataset, store: Store, code: Mapping[str, str] | None) -> None:
    """Give a model what it prepares from the train segment, computed now or taken from the storage. All workers have to call this.

    Args:
        code: file → digest of the code that the trial runs.

    Raises:
        DataError: the data are ready-made windows.
        ValueError: what it prepares does not fit its buffers.
    """
    path = prepared_path(trial, dataset, code)
    if path is not None:
        model.adopt(agreed(_prepared(model, dataset, store, path) if rank_here() == 0 else {}))


def prepared_path(trial: TrialSpec, dataset: Dataset, code: Mapping[str, str] | None) -> str | None:
    """Where the storage keeps what the model of a trial prepares: ``prepared/<hash>.safetensors``; None if it prepares nothing.

    The hash covers the train segment, what else the model reads of the data, the fields that the model names, and the code.
    """
    config = create_config(trial.model)
    fields = config.prepared_from()
    if fields is None:
        return None
    parts = {part: dataset.parts.get(part) for part in config.reads()}
    train = {**dataset.protocol, "train_ratio": trial.data.train_ratio}
    whole = {"model": short(config.name), "fields": dict(fields), "train": train, "parts": parts, "code": dict(code or {})}
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
