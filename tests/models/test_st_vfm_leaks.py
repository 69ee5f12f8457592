"""Nothing later than the moment of the forecast is seen: neither by the models nor by what they are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stlab.data import Dataset, load_dataset
from stlab.study.spec import DataSpec
from stmodels.st_vfm.model import STVFM
from stmodels.types import Batch, SeriesInfo

Info = Callable[..., SeriesInfo]
Batches = Callable[..., Batch]
Models = Callable[..., STVFM]

SWITCHES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "calendar": {"calendar": True},
    "seasonal residual": {"seasonal_residual": True},
    "both": {"calendar": True, "seasonal_residual": True},
    "class token": {"use_cls": True},
    "lora": {"peft": "lora"},
    "all prompts": {"prompts": "all"},
    "every step a token": {"temporal_patch": 1},
    "video": {"backbone": "videomae_s"},  # on small random weights
}


@pytest.fixture(params=SWITCHES)
def switches(request: pytest.FixtureRequest, variant: dict[str, Any], small_video: str) -> dict[str, Any]:
    """Every variant with every switch it can have."""
    chosen = {**variant, **SWITCHES[request.param]}
    if chosen.get("backbone") == "videomae_s":
        chosen["weights"] = small_video
    if chosen.get("calendar") and chosen.get("decoder") == "mlp":
        chosen["calendar"] = False  # #1 has no temporal tokens
    return chosen


def _seen(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Everything that any module of the model is given or gives, and the forecast."""
    record: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            # Slots are handed down whether or not a switch asks for them; embedded, they are floats.
            tensors = [x for x in (*args, out) if isinstance(x, Tensor) and x.is_floating_point()]
            record.update({f"{name}/{len(record)}/{i}": x.detach() for i, x in enumerate(tensors)})

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if name]
    with torch.no_grad():
        forecast = model.eval()(batch)
    for handle in handles:
        handle.remove()
    return {**record, "value": forecast.value, **(forecast.aux or {})}


def test_nothing_after_the_history_is_seen(
    switches: dict[str, Any], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    """Of what lies ahead only the calendar and the season may matter, and these only where a switch asks for them."""
    model, batch = small_model(**switches), batch_of(series_info())
    before = _seen(model, batch)
    later: dict[str, Any] = {
        "target": torch.full_like(batch.target, torch.nan),
        "target_mask": torch.zeros_like(batch.target, dtype=torch.bool),
        "start": batch.start + 1000,
    }
    if not switches.get("calendar"):
        later |= {"target_slot": (batch.target_slot + 5) % 168, "history_slot": (batch.history_slot + 5) % 168}
    if not switches.get("seasonal_residual"):
        later |= {name: getattr(batch, name) * torch.nan for name in ("target_season", "target_profile", "history_season")}
    after = _seen(model, batch._replace(**later))
    assert before.keys() == after.keys()
    assert len(before) > 10
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_a_batch_without_a_future_can_be_forecast(
    switches: dict[str, Any], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    model, batch = small_model(**switches), batch_of(series_info())
    known = batch._replace(target=None, target_mask=None)  # type: ignore[arg-type]
    assert torch.equal(model(known).value, model(batch).value)


def test_the_history_and_what_is_known_ahead_are_seen(
    switches: dict[str, Any], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    """The counterpart: a test that nothing changes is worth little if nothing ever does."""
    model, batch = small_model(**switches), batch_of(series_info())

    def changed(**fields: Tensor) -> bool:
        return not torch.equal(model(batch._replace(**fields)).value, model(batch).value)

    for step in range(6):
        history = batch.history.clone()
        history[:, step] += 1
        assert changed(history=history), step
    calendar, seasonal = (bool(switches.get(name)) for name in ("calendar", "seasonal_residual"))
    assert changed(target_slot=(batch.target_slot + 5) % 168) == calendar
    assert changed(history_slot=(batch.history_slot + 5) % 168) == calendar
    assert changed(target_season=batch.target_season + 1) == seasonal
    reads_profile = seasonal and switches.get("decoder", "transformer") == "transformer"
    assert changed(target_profile=batch.target_profile + 1) == reads_profile
    assert changed(history_season=batch.history_season + 1) == seasonal


def test_the_flow_branch_alone_sees_the_first_step_as_no_change(
    small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    """F_1 = 0: a shift of all readings leaves the flow forecast alone unless the branches exchange prompts."""
    model, batch = small_model(cross_prompt_layers=0), batch_of(series_info())
    shifted = batch._replace(history=batch.history + 2)
    torch.testing.assert_close(model(shifted).aux["flow"], model(batch).aux["flow"], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(shifted).value, model(batch).value, atol=1e-3)


# --- data sets ----------------------------------------------------------------------------------------------------------

_STEPS, _P, _Q = 24 * 7 * 6, 6, 6


def _values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 50, (_STEPS, 1, 4, 4)).astype(np.float32)


def _dataset(values: np.ndarray, folder: Path) -> Dataset:
    times = np.datetime64("2024-01-03T00:00:00", "s") + np.arange(_STEPS) * np.timedelta64(3600, "s")
    folder.mkdir(exist_ok=True)
    np.savez(folder / "city.npz", data=values, timestamps=times)
    return load_dataset(DataSpec(path=str(folder / "city.npz")))


@pytest.mark.parametrize("segment", ["validation", "test"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_values_after_a_window_change_none_of_its_inputs(segment: str, place: str, tmp_path: Path) -> None:
    """Scaler, season and calendar included: the whole rest of the series is replaced by other, larger values."""
    values = _values()
    before = _dataset(values, tmp_path / "before")
    windows = before.windows(segment)
    number = torch.tensor([{"first": 0, "middle": len(windows) // 2, "last": len(windows) - 1}[place]])
    now = int(windows.starts[number]) + _P  # the first step that has not happened yet
    other = values.copy()
    other[now:] = 1000 + _values(seed=1)[now:]
    after = _dataset(other, tmp_path / "after")
    old, new = windows.gather(number), after.windows(segment).gather(number)
    assert before.info == after.info
    assert before.scaler == after.scaler
    assert not torch.equal(old.target, new.target)
    for field in set(Batch._fields) - {"target"}:
        one, two = getattr(old, field), getattr(new, field)
        assert (one is None and two is None) or torch.equal(one, two), field
    assert old.target_season is not None


def test_nothing_fitted_sees_validation_or_test(tmp_path: Path) -> None:
    values = _values()
    before = _dataset(values, tmp_path / "before")
    other = values.copy()
    other[int(0.7 * _STEPS) :] = 1e4
    after = _dataset(other, tmp_path / "after")
    assert before.info == after.info
    assert before.scaler == after.scaler
    everything = torch.arange(len(before.windows("train")))
    for one, two in zip(before.windows("train").gather(everything), after.windows("train").gather(everything), strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


def test_a_train_windows_season_does_not_hold_its_own_future(tmp_path: Path) -> None:
    """Leave-one-out: the season ahead is the mean of *other* weeks, so that its own target does not shine through."""
    values = _values()
    before = _dataset(values, tmp_path / "before")
    number = torch.tensor([150])
    now = int(before.windows("train").starts[number]) + _P
    other = values.copy()
    other[now : now + _Q] = 50 - other[now : now + _Q]  # within the range, so that the scaler stays
    after = _dataset(other, tmp_path / "after")
    assert before.scaler == after.scaler
    old, new = before.windows("train").gather(number), after.windows("train").gather(number)
    assert not torch.equal(old.target, new.target)
    torch.testing.assert_close(old.target_season, new.target_season, atol=1e-6, rtol=0)
    torch.testing.assert_close(old.history_season, new.history_season, atol=1e-6, rtol=0)


def test_windows_of_segments_share_no_target(tmp_path: Path) -> None:
    dataset = _dataset(_values(), tmp_path / "city")
    targets = []
    for segment in ("train", "validation", "test"):
        starts = dataset.windows(segment).starts.numpy()
        targets.append({int(s) + _P + q for s in starts for q in range(_Q)})
    assert not targets[0] & targets[1]
    assert not targets[1] & targets[2]
    assert max(targets[0]) < min(targets[1]) - _P < min(targets[2])


def test_the_input_ahead_tells_nothing_of_the_target(bikes: Dataset) -> None:
    """A network that knows the profile could subtract from it a mean that leaves the reading out, and so read a train window's target."""
    windows = bikes.windows("train")
    batch = windows.gather(torch.arange(0, len(windows), 6))
    assert batch.target_season is not None
    assert batch.target_profile is not None
    assert bikes.season is not None
    table = bikes.season[1].double().flatten(1)
    left, values, right = torch.linalg.svd(table, full_matrices=False)
    known = (left[:, :8] * values[:8]) @ right[:8]
    residual = (batch.target - batch.target_season).double().flatten()

    def explained(seen: Tensor) -> float:
        x = known[batch.target_slot].flatten() - seen.double().flatten()
        return float(torch.corrcoef(torch.stack([x, residual]))[0, 1] ** 2)

    assert explained(batch.target_season) > 0.2
    assert explained(batch.target_profile) < 0.01
