"""A search as Parquet for the report: every point with its outcome, and the importance of each field."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stlab.search.history import Entry, EntryOutcome, History, State
from stlab.search.space import as_params
from stlab.storage import Store
from stlab.study.spec import StudySpec

if TYPE_CHECKING:
    import optuna

_FEWEST_FOR_IMPORTANCE = 50
"""Finished trials from which importances are shown. PED-ANOVA compares the best tenth of them with the rest, and that should be several."""
_RESAMPLES = 100


@dataclass(frozen=True)
class Tried:
    """A branch's entries with their outcomes, by number."""

    history: History
    entries: Sequence[tuple[Entry, EntryOutcome | None]]
    selected: int | None


def write_search(store: Store, study: StudySpec, branches: Sequence[Tried]) -> None:
    """Write ``results/search.parquet``, with a row for each point, and ``results/importance.parquet``, by field and objective."""
    folder = f"studies/{study.name}/results"
    store.write_table(f"{folder}/search.parquet", search_table(study, branches))
    store.write_table(f"{folder}/importance.parquet", importance_table(branches))


def search_table(study: StudySpec, branches: Sequence[Tried]) -> pa.Table:
    """Every point: arm (its branch), number, trial_id, state, selected, on_front, tested, epochs, reason, ``value.*`` and ``param.*``.

    The columns ``value.*`` hold objectives and ``param.*`` fields. The metadata hold the objectives and the space, as JSON.
    """
    assert study.search is not None
    objectives, fields = study.search.objectives, list(study.search.space)
    rows = [row for branch in branches for row in _rows(branch, objectives)]
    kinds = {path: _kind(study, path) for path in fields}
    columns: dict[str, pa.Array] = {
        "arm": pa.array([row["arm"] for row in rows], pa.string()),
        "number": pa.array([row["number"] for row in rows], pa.int64()),
        "trial_id": pa.array([row["trial_id"] for row in rows], pa.string()),
        "state": pa.array([row["state"] for row in rows], pa.string()),
        "selected": pa.array([row["selected"] for row in rows], pa.bool_()),
        "on_front": pa.array([row["on_front"] for row in rows], pa.bool_()),
        "tested": pa.array([row["tested"] for row in rows], pa.bool_()),
        "epochs": pa.array([row["epochs"] for row in rows], pa.int64()),
        "reason": pa.array([row["reason"] for row in rows], pa.string()),
    }
    columns |= {f"value.{name}": pa.array([row["values"].get(name) for row in rows], pa.float64()) for name in objectives}
    for path, kind in kinds.items():
        values = [row["params"].get(path) for row in rows]
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        columns[f"param.{path}"] = pa.array(texts if kind == pa.string() else values, kind)
    space = {path: found.model_dump(mode="json") for path, found in study.search.space.items()}
    search = study.search
    metadata = {"objectives": objectives, "space": space, "sampler": search.sampler, "pruner": search.pruner, "over": search.over}
    return pa.table(columns).replace_schema_metadata({name: json.dumps(value) for name, value in metadata.items()})


def _kind(study: StudySpec, path: str) -> pa.DataType:
    assert study.search is not None
    found = study.search.space[path]
    return pa.string() if found.categorical is not None else pa.int64() if found.int is not None else pa.float64()


def _rows(branch: Tried, objectives: Sequence[str]) -> list[dict[str, Any]]:
    values = {entry.number: outcome.values for entry, outcome in branch.entries if outcome is not None and outcome.values}
    front = pareto(values)
    rows = []
    for entry, outcome in branch.entries:
        directories = branch.history.directories(entry)
        epochs = directories[0].read_epochs() if directories else []
        found = dict(zip(objectives, values[entry.number], strict=True)) if entry.number in values else {}
        if outcome is not None and outcome.state is State.PRUNED and epochs:
            found = {objectives[0]: float(epochs[-1][objectives[0]])}
        reasons = ((directory.read("failed.json") or {}).get("reason") for directory in directories)
        rows.append(
            {
                "arm": branch.history.branch.label,
                "number": entry.number,
                "trial_id": entry.trial_id,
                "state": outcome.state.value if outcome else "running",
                "selected": entry.number == branch.selected,
                "on_front": entry.number in front,
                "tested": bool(directories) and all(directory.is_tested() for directory in directories),
                "epochs": len(epochs),
                "reason": entry.reason or next((reason for reason in reasons if reason), None),
                "values": found,
                "params": entry.params,
            }
        )
    return rows


def pareto(values: dict[int, tuple[float, ...]]) -> set[int]:
    """The numbers on the Pareto front; with one objective, the best number."""
    return {
        number
        for number, mine in values.items()
        if not any(
            all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine for n, other in values.items() if n != number
        )
    }


def importance_table(branches: Sequence[Tried]) -> pa.Table:
    """Importance by arm (the branch), field and objective, with the number of trials.

    Importances sum to 1 for each branch and objective. ``low`` and ``high`` are the 5th and the 95th percentile over resampled trials
    (bootstrap). A branch with fewer than 50 finished trials has none.
    """
    rows = [row for branch in branches for row in _importances(branch)]
    schema = pa.schema(
        [
            ("arm", pa.string()), ("field", pa.string()), ("objective", pa.string()), ("importance", pa.float64()),
            ("low", pa.float64()), ("high", pa.float64()), ("trials", pa.int64()),
        ],
        metadata={"fewest": str(_FEWEST_FOR_IMPORTANCE)},
    )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)


def _importances(branch: Tried) -> list[dict[str, Any]]:
    """Importances by PED-ANOVA (Watanabe et al. 2023), which supports conditional fields."""
    import optuna

    # A point that was chosen repeatedly is one trial, so it counts once.
    done = {e.key: (e, o.values) for e, o in branch.entries if o is not None and o.values is not None}
    if len(done) < _FEWEST_FOR_IMPORTANCE:
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search, space = branch.history.search, branch.history.space
    trials = [
        optuna.trial.create_trial(values=list(values), params=as_params(entry.params), distributions=space.distributions(entry.params))
        for entry, values in done.values()
    ]
    draws = np.random.default_rng(0).integers(len(trials), size=(_RESAMPLES, len(trials)))
    rows = []
    for index, objective in enumerate(search.objectives):
        found = _ped_anova(trials, index)
        again = [_ped_anova([trials[number] for number in draw], index) for draw in draws]
        for path, value in found.items():
            low, high = np.percentile([other.get(path, 0.0) for other in again], [5, 95])
            about = {"arm": branch.history.branch.label, "field": path, "objective": objective, "trials": len(done)}
            rows.append({**about, "importance": value, "low": float(low), "high": float(high)})
    return rows


def _ped_anova(trials: Sequence[optuna.trial.FrozenTrial], index: int) -> dict[str, float]:
    """Field → importance for the objective of this number; fields of which nothing can be said are left out."""
    import optuna

    study = optuna.create_study(directions=["minimize"] * len(trials[0].values))
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), target=lambda trial: float(trial.values[index])
        )
    return {path: value for path, value in found.items() if math.isfinite(value)}
