"""A trained trial as a stand-alone forecaster, which maps readings to forecasts, both in the unit of the data.

It is loaded from a trial's directory, which needs the data, or from a folder that :meth:`TrainedForecaster.save` wrote. Such a folder holds
everything: configuration, scaler, season, and all weights, including frozen ones, as safetensors. Nothing is pickled.

Legend: B windows, P history, Q horizon, S the shape of a step: (C, H, W) for a grid, (N, C) for sensors.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from stlab.catalog import create_config, create_model
from stlab.data import Dataset
from stlab.data.formats.content import DAY_SECONDS
from stlab.data.inputs import InputScalers
from stlab.data.protocol.scaler import Scaler
from stlab.data.protocol.season import slot_of_week
from stlab.errors import DataError, ModelError, UserError
from stlab.model_files import keep, relocated, short
from stlab.storage import Store, TrialDirectory
from stlab.study.identity import recorded_parts, source_digests
from stlab.study.spec import DataSpec
from stlab.training.checkpoint import Checkpoints
from stlab.training.device import autocast_for
from stlab.training.metrics import to_unit
from stlab.training.trial import dataset_for
from stmodels.errors import ConfigError
from stmodels.types import Batch, SeriesInfo

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from stmodels.base import Forecaster

logger = logging.getLogger(__name__)

_FORMAT = 2  # what is computed from saved weights changed last with it
_FACTS, _WEIGHTS, _SEASON = "forecaster.json", "weights.safetensors", "season.safetensors"
_NETWORK = "network.safetensors"
_WINDOWS_AT_ONCE = 32

# Fields of the models that make a forecast depend on the calendar, and on the mean by slot of the week.
_NEED_CALENDAR = ("calendar", "seasonal_residual", "time_of_day")
_NEED_SEASON = ("seasonal_residual",)
_COPY_THE_PAST = ("same_slot_last_week", "same_slot_yesterday")


@dataclass(frozen=True)
class Facts:
    """Everything beside the weights that a forecast needs: ``forecaster.json`` in a saved folder."""

    trial: dict[str, Any]
    """``trial_id``, ``study``, ``variant``, ``seed``, ``dataset``, ``code_version``."""
    model: dict[str, Any]
    """The configuration. It names no weights to download, since they are saved with it."""
    info: SeriesInfo
    scaler: Scaler
    nonnegative: bool
    clamp: tuple[float, float] | None
    missing: str
    """Treatment of non-finite readings: ``zero`` replaces them, and any other value refuses them."""
    precision: str
    channel_names: tuple[str, ...]
    node_names: tuple[str, ...] | None
    needs: tuple[str, ...] = ()
    """What the model declares to need beside its history (``NEEDS`` of its configuration)."""
    inputs: InputScalers | None = None
    """Names and scalers of the further channels; None if the model reads none."""

    @property
    def step_seconds(self) -> int | None:
        """Length of a step in seconds. None if the data has no timestamps."""
        return DAY_SECONDS // self.info.slots_per_day if self.info.slots_per_day else None

    @property
    def needs_season(self) -> bool:
        """Whether the model uses the mean of the train segment by slot of the week."""
        seasonal_ridge = self.model["name"] == "ridge" and self.info.season_count >= 2
        switched = any(self.model.get(name) for name in _NEED_SEASON)
        return switched or seasonal_ridge or self.model["name"] == "slot_of_week_mean" or self._has_season

    @property
    def _has_season(self) -> bool:
        return "season" in self.needs and self.info.season_count > 0

    @property
    def needs_start(self) -> bool:
        """Whether a forecast depends on when it is made."""
        return self.needs_season or any(self.model.get(name) for name in _NEED_CALENDAR) or "calendar" in self.needs


class TrainedForecaster:
    """A trained model with its scaler, ready to forecast.

    Args:
        facts: everything beside the weights.
        model: the model with its trained weights.
        season: (2, slots of the week, *S) scaled means by slot of the week, as ``Dataset.season``; None if the model does not need them.
        device: the device that computes.
    """

    def __init__(self, facts: Facts, model: Forecaster, season: Tensor | None = None, device: str = "cpu") -> None:
        self.facts = facts
        self._device = torch.device(device)
        self._model = model.to(self._device).eval()
        self._season = None if season is None else season.to(self._device)
        self._autocast = autocast_for(facts.precision, self._device)

    def __repr__(self) -> str:
        trial = self.facts.trial
        return (
            f"<{self.facts.model['name']} {trial['trial_id']}: {trial['variant']}, seed {trial['seed']}, {trial['dataset']}; "
            f"history (B, {', '.join(map(str, self.history_shape))}) → (B, {', '.join(map(str, self.forecast_shape))})>"
        )

    @property
    def history_shape(self) -> tuple[int, ...]:
        """(P, *S)."""
        return (self.facts.info.history, *self.facts.info.shape)

    @property
    def forecast_shape(self) -> tuple[int, ...]:
        """(Q, *S)."""
        return (self.facts.info.horizon, *self.facts.info.shape)

    @property
    def needs_start(self) -> bool:
        """Whether ``predict`` needs the start times of the histories."""
        return self.facts.needs_start

    @property
    def inputs_shape(self) -> tuple[int, ...] | None:
        """(P, N, K) of the further channels that ``predict`` needs; None if it needs none."""
        scaling = self.facts.inputs
        return None if scaling is None else (self.facts.info.history, self.facts.info.shape[0], len(scaling.names))

    def predict(
        self, history: ArrayLike, start: ArrayLike | None = None, inputs: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Forecast windows.

        Args:
            history: (B, P, *S) readings in the unit of the data.
            start: (B,) datetime64, local time of each window's first step, or one time for all windows. It is required if the model
                uses the calendar or the season (``needs_start``), and ignored otherwise.
            inputs: (B, P, N, K) readings of the further channels (``facts.inputs.names``), each in its own unit. They are required if the
                model reads them (``inputs_shape``), and ignored otherwise.

        Returns:
            (B, Q, *S) float32 in the unit of the data.

        Raises:
            DataError: a shape is wrong, values are not finite, or required times or channels are missing.
        """
        values = self._checked(history, "history", self.history_shape)
        slots = self._slots(start, len(values))
        further = self._further(inputs, len(values))
        parts = []
        with torch.inference_mode():
            for first in range(0, len(values), _WINDOWS_AT_ONCE):
                chosen = slice(first, first + _WINDOWS_AT_ONCE)
                batch = self._batch(
                    values[chosen], None if slots is None else slots[chosen], None if further is None else further[chosen]
                )
                with self._autocast():
                    scaled = self._model(batch).value
                # The facts have the fields of a data set that the unit depends on: scaler, clamp and nonnegative.
                parts.append(to_unit(cast(Dataset, self.facts), scaled).cpu().numpy())
        return np.concatenate(parts) if parts else np.empty((0, *self.forecast_shape), np.float32)

    def _checked(self, given: ArrayLike, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        try:
            values = np.asarray(given, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: no array of numbers ({error}).") from error
        if values.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise DataError(f"{name}: its shape is {values.shape}, needed is (windows, {expected}) in the data's unit.")
        finite = np.isfinite(values)
        if finite.all():
            return values
        if self.facts.missing != "zero":
            place = [int(i) for i in np.argwhere(~finite)[0]]
            raise DataError(f"{name}: {int((~finite).sum())} values are not finite, the first at {place}. Fill them first.")
        return np.where(finite, values, np.float32(0))

    def _further(self, inputs: ArrayLike | None, windows: int) -> NDArray[np.float32] | None:
        """(B, P, N, K) scaled further channels. None if the model does not read them."""
        shape, scaling = self.inputs_shape, self.facts.inputs
        if shape is None or scaling is None:
            return None
        names = ", ".join(scaling.names)
        if inputs is None:
            raise DataError(f"inputs: this model reads further channels ({names}): predict(history, inputs=…), (windows, {shape}).")
        values = self._checked(inputs, "inputs", shape)
        if len(values) != windows:
            raise DataError(f"inputs: they have {len(values)} windows, and the history has {windows}.")
        return scaling.transform(values)

    def _slots(self, start: ArrayLike | None, windows: int) -> NDArray[np.int64] | None:
        """(B, P + Q) slots of the week. None if the model does not use them."""
        step = self.facts.step_seconds
        if not self.needs_start or step is None:
            return None
        if start is None:
            raise DataError(
                "start: this model uses the calendar or the season, so it needs the time at which each history begins: "
                "predict(history, start=…), one datetime64 per window."
            )
        try:
            times = np.broadcast_to(np.asarray(start, dtype="datetime64[s]"), (windows,))
        except ValueError as error:
            raise DataError(f"start: {error}. One datetime64 per window is needed, {windows} in all.") from error
        if np.isnat(times).any():
            raise DataError("start: a time is missing (NaT).")
        steps = np.arange(self.facts.info.history + self.facts.info.horizon) * np.timedelta64(step, "s")
        return slot_of_week((times[:, None] + steps).astype("datetime64[s]"), step)

    def _batch(self, values: NDArray[np.float32], slots: NDArray[np.int64] | None, further: NDArray[np.float32] | None) -> Batch:
        scaled = self.facts.scaler.transform(values.astype(np.float64)).astype(np.float32)
        history = torch.from_numpy(scaled).to(self._device)
        nothing_ahead = history.new_full((len(history), *self.forecast_shape), torch.nan)
        batch = Batch(history, nothing_ahead, torch.zeros(len(history), dtype=torch.int64, device=self._device))
        if further is not None:
            batch = batch._replace(history_inputs=torch.from_numpy(further).to(self._device))
        if slots is None:
            return batch
        week, cut = torch.from_numpy(slots).to(self._device), self.facts.info.history
        batch = batch._replace(history_slot=week[:, :cut], target_slot=week[:, cut:])
        if self._season is None:
            return batch
        season, profile = self._season[0][week], self._season[1][week]
        before, ahead = season[:, :cut].contiguous(), season[:, cut:].contiguous()
        return batch._replace(history_season=before, target_season=ahead, target_profile=profile[:, cut:].contiguous())

    def save(self, folder: str | Path) -> None:
        """Write everything into a folder: ``forecaster.json``, ``weights.safetensors`` and, if needed, ``season.safetensors`` and
        ``network.safetensors``.

        The file of a model from outside goes with it.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        model = {**self.facts.model, "name": keep(self.facts.model["name"], Store(place))}
        facts = asdict(self.facts) | {"format": _FORMAT, "info": self.facts.info._replace(adjacency=None)._asdict(), "model": model}
        (place / _FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _tensors(self._model).items()}
        safetensors.torch.save_file(tensors, place / _WEIGHTS)
        if (network := self.facts.info.adjacency) is not None and "network" in create_config(self.facts.model).reads():
            safetensors.torch.save_file({"adjacency": network.contiguous()}, place / _NETWORK)
        if self._season is not None:
            safetensors.torch.save_file({"season": self._season.cpu().contiguous()}, place / _SEASON)


def load_trial(store: Store, trial_id: str, device: str = "cpu") -> TrainedForecaster:
    """The selected checkpoint of a finished trial as a forecaster.

    Raises:
        UserError: there is no such trial, it is not finished, or it reads further back than its history.
        DataError: the data is missing or has changed.
        ModelError: the frozen weights are not available, or the trained weights do not fit this version of the code.
    """
    directory = TrialDirectory(store, trial_id)
    trial, result = directory.read("trial.json"), directory.read("result.json")
    if trial is None or result is None:
        state = "there is no such trial" if trial is None else f"it is {directory.status().value}, not finished"
        raise UserError(f"trial {trial_id} in {store.location}: {state}. The column trial_id of a study's trials lists the ids.")
    if trial["model"]["name"] in _COPY_THE_PAST:
        name = trial["model"]["name"]
        raise UserError(f"trial {trial_id}: {name} copies readings from before the history, which a stand-alone forecaster does not have.")
    trial = {**trial, "model": {**trial["model"], "name": relocated(trial["model"]["name"], store)}}
    if not _is_code_of_now(trial):
        logger.warning("trial %s was trained by another version of the code (%s)", trial_id, trial.get("code_version"))
    spec = DataSpec(**trial["data"]).without_pretraining()
    dataset = dataset_for(spec)
    if dataset.sha256 != trial.get("data_sha256", dataset.sha256):
        raise DataError(f"{spec.path}: its content is not what trial {trial_id} was trained on, so its scaler is not known.")
    read_now = {part: sha256 for part, sha256 in recorded_parts(trial).items() if part != "pretrain"}
    if changed := dataset.changed_parts(read_now):
        raise DataError(f"{spec.path}: its {changed[0]} are not what trial {trial_id} was trained on.")
    config = create_config(trial["model"])
    if past := config.past(dataset.info):
        raise UserError(
            f"trial {trial_id}: {short(config.name)} reads {past} steps before the history, which a stand-alone forecaster does not have."
        )
    model = create_model(trial["model"], dataset.info)
    try:
        Checkpoints(directory).load_best(model)
    except (FileNotFoundError, RuntimeError) as error:
        raise ModelError(f"trial {trial_id}: its checkpoint cannot be used: {error}") from error
    keys = ("study", "variant", "seed", "dataset", "code_version")
    facts = Facts(
        trial={"trial_id": trial_id} | {key: trial.get(key) for key in keys},
        model=_portable(trial["model"]),
        info=dataset.info,
        scaler=dataset.scaler,
        nonnegative=dataset.nonnegative,
        clamp=dataset.clamp,
        missing=spec.missing,
        precision=str(result.get("precision", "fp32")),
        channel_names=tuple(dataset.channel_names),
        node_names=dataset.node_names,
        needs=config.needs(),
        inputs=dataset.inputs.scaling if dataset.inputs is not None and "inputs" in config.reads() else None,
    )
    return TrainedForecaster(facts, model, _season_tables(dataset) if facts.needs_season else None, device)


def _is_code_of_now(trial: Mapping[str, Any]) -> bool:
    """Whether the files that a trial was trained with are as they were; of a record that cannot be read, they are not."""
    try:
        return bool(trial.get("code") == source_digests(create_config(trial["model"])))
    except (TypeError, ConfigError, ModelError):
        return False


def load_saved(folder: str | Path, device: str = "cpu") -> TrainedForecaster:
    """A forecaster from a folder that :meth:`TrainedForecaster.save` wrote. It needs neither data nor network.

    Raises:
        ModelError: the folder holds no saved forecaster, or one of another version of the code.
    """
    place = Path(folder)
    try:
        values = json.loads((place / _FACTS).read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(place / _WEIGHTS)
    except FileNotFoundError as error:
        raise ModelError(f"{place}: no saved forecaster ({error.filename} is missing).") from error
    if values.pop("format", None) != _FORMAT:
        raise ModelError(f"{place / _FACTS}: written in another format than {_FORMAT}; use the version of stlab that wrote it.")
    facts = Facts(**values | {
        "info": SeriesInfo(**values["info"] | {"shape": tuple(values["info"]["shape"])}),
        "scaler": Scaler(**values["scaler"]),
        "clamp": values["clamp"] and tuple(values["clamp"]),
        "channel_names": tuple(values["channel_names"]),
        "node_names": values["node_names"] and tuple(values["node_names"]),
        "needs": tuple(values.get("needs", ())),
        "inputs": _input_scalers(values.get("inputs")),
    })  # fmt: skip
    facts.model["name"] = relocated(facts.model["name"], Store(place))
    network = safetensors.torch.load_file(place / _NETWORK)["adjacency"] if (place / _NETWORK).exists() else None
    facts = replace(facts, info=facts.info._replace(adjacency=network))
    model = create_model(facts.model, facts.info)
    _restore(model, weights, str(place))
    season = safetensors.torch.load_file(place / _SEASON)["season"] if facts.needs_season else None
    return TrainedForecaster(facts, model, season, device)


def _input_scalers(saved: Mapping[str, Any] | None) -> InputScalers | None:
    return None if saved is None else InputScalers(tuple(saved["names"]), tuple(Scaler(**scaler) for scaler in saved["scalers"]))


def _portable(model: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with random weights, which the saved ones then replace, and without a tokenizer to download."""
    replaced = {"weights": "random", "tokenizer": "hash"}
    return {**model, **{name: value for name, value in replaced.items() if name in model}}


def _tensors(model: Forecaster) -> dict[str, Tensor]:
    """Parameters and buffers by name, including those that a checkpoint leaves out."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _restore(model: Forecaster, weights: Mapping[str, Tensor], source: str) -> None:
    own = _tensors(model)
    parameters = {name for name, _ in model.named_parameters()}
    odd = sorted(own.keys() ^ weights.keys()) or sorted(n for n in parameters if own[n].shape != weights[n].shape)
    if odd:
        raise ModelError(f"{source}: its weights are not this version's of {type(model).__name__}: {', '.join(odd[:3])}.")
    with torch.no_grad():
        for name, tensor in weights.items():
            if name in parameters:
                own[name].copy_(tensor)
            else:  # a buffer that derives from weights or text may have another length
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, tensor)


def _season_tables(dataset: Dataset) -> Tensor:
    if dataset.season is None:
        raise ModelError("the model needs the mean by slot of the week, and its data has none")
    return dataset.season
