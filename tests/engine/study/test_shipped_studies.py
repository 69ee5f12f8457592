"""The studies in search_spaces/ and their schema: every one validates and plans, and editors find a schema that is current."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from stlab.cli.options import load_study
from stlab.execution.noop_variants import refuse_noop_variants
from stlab.execution.run_study import plan_study
from tests.support.unist_file import unist_file

FOLDER = Path(__file__).parents[3] / "search_spaces"
STUDIES = sorted(FOLDER.glob("*.yaml"))
SCHEMA = FOLDER / "study.schema.json"


def test_the_schema_is_current(say: Callable[..., Any]) -> None:
    answer = say("schema")
    assert answer.code == 0
    schema = json.loads(answer.out)
    jsonschema.validators.validator_for(schema).check_schema(schema)
    assert SCHEMA.read_text() == answer.out, "stlab schema > search_spaces/study.schema.json"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_is_valid_and_plans(path: Path, grid: dict[str, np.ndarray], say: Callable[..., Any]) -> None:
    assert path.read_text().splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA.name}"
    study = yaml.safe_load(path.read_text())
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(study)
    assert study["name"] == path.stem
    steps = 35 * 24  # the train segment has every slot of the week twice, and 5 % of it a window
    times = grid["timestamps"][0] + np.arange(steps) * np.timedelta64(3600, "s")
    np.savez("grid.npz", data=np.resize(grid["data"], (steps, *grid["data"].shape[1:])), timestamps=times)
    own = study["base"]["data"]["path"].startswith("synthetic:")  # a grid is a network of sensors too
    answer = say("plan", path.stem, *([] if own else ["--set", "data.path=grid.npz"]))
    assert answer.code == 0, answer.err
    runs = len(study.get("variants", [0])) * (1 if "search" in study else len(study.get("seeds", [0])))
    assert answer.out.count("to do") >= runs


@pytest.mark.parametrize(
    ("table", "alone", "count"), [("st_vlm_table1", "node_baselines", 14), ("st_vfm_table2", "grid_baselines", 25)]
)
def test_both_studies_train_the_comparison_models_alike(table: str, alone: str, count: int) -> None:
    in_table, by_themselves = (yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["variants"] for name in (table, alone))
    shared = in_table.keys() & by_themselves.keys() - {"LSTM"}  # in its table it is trained as ST-VLM is
    assert len(shared) == count
    assert {name: in_table[name] for name in shared} == {name: by_themselves[name] for name in shared}


@pytest.mark.parametrize("name", ["st_vfm_ablation", "st_vfm_extended", "st_vlm_ablation", "demo", "grid_baselines", "node_baselines"])
def test_no_row_of_a_shipped_study_is_without_effect(name: str, grid: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Every variant, unmodified, is let train, beside the tiny backbones. Four weeks of hours are the data."""
    steps = 28 * 24
    times = grid["timestamps"][0] + np.arange(steps) * np.timedelta64(3600, "s")
    np.savez(tmp_path / "grid.npz", data=np.random.default_rng(0).poisson(9, (steps, 2, 4, 4)).astype(np.float32), timestamps=times)
    backbones = {"model.backbone": "vilt_test" if name.startswith("st_vlm") else "vit_test", "model.weights": "random"}
    if name.endswith("_baselines"):
        readers = ["ST-LLM"] if name.startswith("grid") else ["OFA", "STGLLM", "STLLM", "STD-PLM"]
        gpt2 = {"model.backbone": "gpt2_test", "model.weights": "random"}
        backbones = {f"variants.{reader}.{field}": value for reader in readers for field, value in gpt2.items()}
    sets = [f"{field}={value}" for field, value in {**backbones, "data.path": tmp_path / "grid.npz"}.items()]
    refuse_noop_variants(plan_study(*load_study(name, sets)))


def test_a_wrong_study_does_not_pass_the_schema() -> None:
    study = yaml.safe_load(STUDIES[0].read_text())
    study["base"]["train"]["lrr"] = 1
    schema = json.loads(SCHEMA.read_text())
    errors = list(jsonschema.validators.validator_for(schema)(schema).iter_errors(study))
    assert errors


def test_rows_that_need_a_series_can_be_left_out_for_ready_made_windows(say: Callable[..., Any], tmp_path: Path) -> None:
    """As the header of st_vfm_table2 says: its other rows are planned on a file of UniST."""
    path, _ = unist_file(tmp_path)
    sets = (f"data.path={path}", "data.protocol=unist", "model.backbone=vit_test", "model.weights=random", "model.pad=true")
    data = [part for value in sets for part in ("--set", value)]
    refused = say("plan", "st_vfm_table2", *data)
    assert refused.code == 2
    assert "period" in refused.err
    named = yaml.safe_load((FOLDER / "st_vfm_table2.yaml").read_text())["variants"]
    left_out = [name for name in named if name in ("HA", "HA of the week", "ARIMA") or "period" in name or "UniST" in name]
    assert len(left_out) == 9
    answer = say("plan", "st_vfm_table2", *data, *(part for name in left_out for part in ("--set", f"variants.{name}=null")))
    assert answer.code == 0, answer.err
    assert answer.out.count("to do") >= 3 * (len(named) - len(left_out))
    assert "ARIMA" not in answer.out.split("ST-VFM, Table 2")[0]
