"""Models from outside, as a user writes them: the example of models/README.md, a file that is broken, a package."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import stlab.api
from stlab import catalog, model_files
from stlab.cli.options import extended
from stlab.errors import ModelError, UserError
from stlab.execution.run_study import plan_study, write_study
from stlab.inference import load_saved
from stlab.storage import Store, TrialDirectory
from stlab.study.file import load_study, load_study_source, parse
from stlab.study.plan import Plan
from stlab.submission.models import model_names, model_sources
from stlab.submission.order import _refuse_model_files_elsewhere
from stlab.training import run_trial

README = Path(__file__).parents[3] / "models" / "README.md"
NAME = "./mine.py:MyConfig"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, in a folder that is not the working directory."""
    place = tmp_path / "studies"
    place.mkdir()
    (place / "mine.py").write_text(blocks("python")[0])
    (place / "own.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return place


def planned(folder: Path, *overrides: str) -> Plan:
    source = load_study_source(str(folder / "own.yaml"), overrides)
    return plan_study(parse(source), source)


def ids(plan: Plan) -> list[str]:
    return [trial.trial_id for trial in plan.trials if not trial.spec.baseline]


def test_the_example_keeps_the_contract(folder: Path, say: Callable[..., Any]) -> None:
    answer = say("models", "check", "studies/mine.py:MyConfig", "--set", "data.path=synthetic:city")
    assert answer.code == 0, answer
    assert "It keeps the contract." in answer.out
    assert "model.smooth_weight" in say("models", "studies/mine.py:MyConfig").out


def test_the_example_is_planned_from_the_studys_folder_and_errors_name_its_line(folder: Path, say: Callable[..., Any]) -> None:
    plan = planned(folder)
    assert len(ids(plan)) == 4
    assert {trial.spec.model["steps"] for trial in plan.trials if not trial.spec.baseline} == {2, 6}
    (folder / "wrong.yaml").write_text(blocks("yaml")[0].replace("MyConfig}", "MyConfig, setps: 3}"))
    wrong = say("plan", str(folder / "wrong.yaml"))
    assert (wrong.code, "studies/wrong.yaml:4: base.model.setps: unknown field. Did you mean 'steps'?" in wrong.err) == (2, True), wrong
    large = say("plan", str(folder / "own.yaml"), "--set", "axes={model.steps: [9]}")
    assert (large.code, "model.steps must lie between 1 and data.history=6, it is 9" in large.err) == (2, True), large
    ablated = say("plan", str(folder / "own.yaml"), "--set", "ablate.components=[smooth]", "--set", "axes={}")
    assert "w/o smooth" in ablated.out


def test_an_id_depends_on_the_code_and_not_on_its_place(folder: Path, tmp_path: Path) -> None:
    before = ids(planned(folder))
    moved = folder.rename(tmp_path / "elsewhere")
    assert ids(planned(moved)) == before
    file = moved / "mine.py"
    text = file.read_text()
    file.write_text(text.replace('"""The number of last steps that are read."""', '"""Steps."""') + "\n# a remark\n")
    assert ids(planned(moved)) == before
    file.write_text(text.replace(".square().mean()", ".abs().mean()"))
    assert not set(ids(planned(moved))) & set(before)
    other = [trial.trial_id for trial in planned(moved).trials if trial.spec.baseline]
    file.write_text(text)
    assert [trial.trial_id for trial in planned(moved).trials if trial.spec.baseline] == other


def test_what_a_file_imports_from_beside_it_counts(folder: Path) -> None:
    text = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(text.replace("import torch\n", "import torch\nfrom sums_beside import RATE\n", 1))
    (folder / "sums_beside.py").write_text("RATE = 1\n")
    (folder / "unused_beside.py").write_text("RATE = 1\n")
    before = ids(planned(folder))
    (folder / "unused_beside.py").write_text("RATE = 2\n")
    assert ids(planned(folder)) == before
    (folder / "sums_beside.py").write_text("RATE = 2\n")
    assert not set(ids(planned(folder))) & set(before)
    assert model_files.files_of(f"{folder}/mine.py:MyConfig")[1] == ["mine.py", "sums_beside.py"]


def test_a_storage_keeps_the_file_and_loads_the_trial_from_it(folder: Path, tmp_path: Path) -> None:
    """Trained as a worker does it, from the storage's copy; loaded after file and storage have moved."""
    store = Store(tmp_path / "runs")
    kept = model_files.keep(f"{folder}/mine.py:MyConfig", store)
    assert kept.startswith(f"{tmp_path}/runs/code/")
    assert model_files.keep(f"{folder}/mine.py:MyConfig", store) == kept
    plan = planned(folder, f"model.name={kept}", "train.max_epochs=1", "seeds=[0]")
    assert ids(plan) == ids(planned(folder, "train.max_epochs=1", "seeds=[0]")), "the copy is the same model"
    trial = next(trial for trial in plan.trials if not trial.spec.baseline)
    directory = TrialDirectory(store, trial.trial_id)
    assert run_trial(trial.spec, trial.identity, directory, test=True).value == "finished"
    assert directory.row()["param.model.name"] == "mine.py:MyConfig"
    folder.rename(tmp_path / "gone")
    (tmp_path / "runs").rename(tmp_path / "moved")
    model = stlab.load_model(tmp_path / "moved", trial.trial_id)
    assert model.forecast_shape == (6, 2, 8, 8)
    assert f"{tmp_path}/moved/code/" in repr(model)
    model.save(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "sent")
    (tmp_path / "moved").rename(tmp_path / "lost")
    alone = load_saved(tmp_path / "sent")
    history = np.random.default_rng(0).uniform(0, 100, (2, 6, 2, 8, 8))
    assert np.array_equal(alone.predict(history), model.predict(history))
    assert model_files.relocated(kept, Store(tmp_path / "moved")) == kept.replace("/runs/", "/moved/")


def test_a_moved_storage_goes_on_with_further_seeds(folder: Path, tmp_path: Path) -> None:
    """The study that it keeps names the model's file at its former place."""
    store = Store(tmp_path / "runs")
    kept = model_files.keep(f"{folder}/mine.py:MyConfig", store)
    text = yaml.safe_load(blocks("yaml")[0])
    text["base"]["model"]["name"] = kept
    (tmp_path / "runs/studies/own").mkdir(parents=True)
    (tmp_path / "runs/studies/own/study.yaml").write_text(yaml.safe_dump({**text, "baselines": [], "axes": {}, "seeds": [3]}))
    (trial,) = planned(folder, "baselines=[]", "axes={}", "seeds=[3]", "train.max_epochs=1").trials
    assert run_trial(trial.spec, trial.identity, TrialDirectory(store, trial.trial_id), test=True).value == "finished"
    folder.rename(tmp_path / "gone")
    (tmp_path / "runs").rename(tmp_path / "moved")
    study, source = extended("own", ["train.max_epochs=1"], Store(tmp_path / "moved"), 2)
    assert study.seeds == [3, 4, 5]
    assert source.data["base"]["model"]["name"] == kept.replace("/runs/", "/moved/")
    made = plan_study(study, source)
    assert made.trials[0].trial_id == trial.trial_id
    text = yaml.safe_load((tmp_path / "moved/studies/own/study.yaml").read_text())
    text["base"]["train"]["max_epochs"] = 1
    (tmp_path / "moved/studies/own/study.yaml").write_text(yaml.safe_dump(text))
    assert write_study(made, Store(tmp_path / "moved")) is None, "it is the same study with more seeds"


def test_python_takes_the_class_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    import mine  # type: ignore[import-not-found]

    study = {"name": "own", "base": {"data": {"path": "synthetic:city"}, "model": {"name": mine.MyConfig}}, "baselines": []}
    source = stlab.api._source(study, {"model.steps": 2})
    assert source.data["base"]["model"] == {"name": f"{folder}/mine.py:MyConfig", "steps": 2}
    assert plan_study(parse(source), source).trials[0].trial_id in ids(planned(folder, "axes={model.steps: [2]}", "train={}"))
    local = type("Local", (mine.MyConfig,), {"__module__": "__main__"})
    with pytest.raises(ModelError, match="write it into a file"):
        model_files.place_of(local)
    sys.modules.pop("mine")


def test_a_package_beside_the_file_counts_and_is_kept(folder: Path, tmp_path: Path) -> None:
    """With an ``__init__.py`` or without one, and with the network in a file of its own."""
    text = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(text.replace("import torch\n", "import torch\nfrom parts_beside.rates import RATE\n", 1))
    (folder / "parts_beside").mkdir()
    (folder / "parts_beside" / "rates.py").write_text("RATE = 1\n")
    plain = ids(planned(folder))
    (folder / "parts_beside" / "__init__.py").write_text("RATES = 2\n")
    packaged = ids(planned(folder))
    (folder / "parts_beside" / "rates.py").write_text("RATE = 2\n")
    assert len({*plain, *packaged, *ids(planned(folder))}) == 12
    store = Store(tmp_path / "runs")
    kept = model_files.keep(f"{folder}/mine.py:MyConfig", store)
    assert model_files.files_of(kept)[1] == ["mine.py", "parts_beside/__init__.py", "parts_beside/rates.py"]
    assert ids(planned(folder, f"model.name={kept}")) == ids(planned(folder))


def test_a_network_in_a_file_of_its_own_counts_and_is_kept(folder: Path, tmp_path: Path) -> None:
    text = (folder / "mine.py").read_text()
    config, network = text.split("class MyModel")
    (folder / "mine.py").write_text(config.replace('MODEL = "MyModel"', 'MODEL = "net_beside:MyModel"'))
    (folder / "net_beside.py").write_text(config.split("@dataclass")[0] + "MyConfig = object\n\n\nclass MyModel" + network)
    before = ids(planned(folder))
    kept = model_files.keep(f"{folder}/mine.py:MyConfig", Store(tmp_path / "runs"))
    assert model_files.files_of(kept)[1] == ["mine.py", "net_beside.py"]
    network = (folder / "net_beside.py").read_text()
    (folder / "net_beside.py").write_text(network.replace("nn.Linear(config.steps", "nn.Linear(0 + config.steps"))
    assert not set(ids(planned(folder))) & set(before)
    assert type(catalog.create_model({"name": kept, "steps": 2}, stlab_info())).__module__ == "net_beside"


def test_neighbours_of_one_name_are_each_models_own(folder: Path, tmp_path: Path) -> None:
    """In one process: another folder's, and the same one after it was edited."""
    text = (folder / "mine.py").read_text().replace("import torch\n", "import torch\nfrom rate_beside import RATE\n", 1)
    other = tmp_path / "other"
    other.mkdir()
    for place, rate in ((folder, 1), (other, 2)):
        (place / "mine.py").write_text(text.replace("return Forecast(", "return Forecast(RATE * "))
        (place / "rate_beside.py").write_text(f"RATE = {rate}\n")

    def rate(place: Path) -> float:
        return float(sys.modules[catalog.config_class(f"{place}/mine.py:MyConfig").__module__].RATE)

    assert [rate(folder), rate(other), rate(folder)] == [1, 2, 1]
    (folder / "rate_beside.py").write_text("RATE = 30\n")
    assert [rate(folder), rate(other)] == [30, 2]
    with pytest.raises(UserError, match=r"have one name in tables, mine\.py:MyConfig\. Rename one of the files"):
        planned(folder, "axes={}", f"variants={{a: {{}}, b: {{model.name: '{other}/mine.py:MyConfig'}}}}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./none.py:MyConfig", "model.name=none.py:MyConfig: there is no file"),
        ("./mine.py:Mine", "has no Mine. It has: MyConfig, MyModel"),
        ("./mine.py:MyModel", "is no configuration of a model. It must be a frozen dataclass"),
        ("./broken.py:MyConfig", "broken.py:2: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("./unfinished.py:MyConfig", "unfinished.py:1: SyntaxError"),
        ("./data.py:MyConfig", "data.py:1: FileNotFoundError"),
        ("./profile.py:MyConfig", "profile.py has the name of a module of Python's own, which others import. Rename the file."),
        ("no_such_package.mine:MyConfig", "there is no module no_such_package.mine in this environment"),
        ("st_vfn", "Did you mean 'st_vfm'?"),
    ],
)
def test_a_model_that_is_not_there_is_told(folder: Path, say: Callable[..., Any], name: str, said: str) -> None:
    (folder / "broken.py").write_text("import torch\nimport nothing_of_this_name\n")
    (folder / "unfinished.py").write_text("def f(:\n")
    (folder / "profile.py").write_text(blocks("python")[0])
    (folder / "data.py").write_text("open('no_such_file')\n")
    (folder / "own.yaml").write_text(blocks("yaml")[0].replace(NAME, name))
    answer = say("plan", str(folder / "own.yaml"))
    assert answer.code == 2, answer
    assert said in answer.err
    assert "own.yaml:4: base.model.name" in answer.err


def test_an_error_in_somebodys_network_is_told_with_its_line(folder: Path, say: Callable[..., Any]) -> None:
    file = folder / "mine.py"
    file.write_text(file.read_text().replace("super().__init__()", "super().__init__(); 1 / 0"))
    answer = say("models", "check", f"{folder}/mine.py:MyConfig", "--set", "data.path=synthetic:city")
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if "1 / 0" in text)
    assert (answer.code, f"mine.py:{line}: ZeroDivisionError" in answer.err) == (2, True), answer
    number = say("plan", str(folder / "own.yaml"), "--set", "axes={model.name: [lstm, 3]}")
    assert (number.code, "model.name=3: a name is text" in number.err) == (2, True), number


def test_a_package_registers_its_models(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "their_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "linear.py").write_text(blocks("python")[0])
    info = tmp_path / "site" / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("their_package\n")
    (info / "entry_points.txt").write_text("[stlab.models]\ntheirs = their_package.linear:MyConfig\nlstm = their_package.linear:MyConfig\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    catalog.registered.cache_clear()
    try:
        assert catalog.registered() == {"theirs": "their_package.linear:MyConfig"}, "a name of our own stays ours"
        by_name, by_place = planned(folder, "model.name=theirs"), planned(folder, "model.name=their_package.linear:MyConfig")
        assert len(ids(by_name)) == len(ids(by_place)) == 4
        config = catalog.create_config(by_name.trials[-1].spec.model)
        assert "their_package/linear.py" in by_name.trials[-1].identity["code"], config
        sent = model_sources(["theirs"], folder)
        assert sent.packages == [package, info]
    finally:
        catalog.registered.cache_clear()


def test_a_job_gets_the_file_and_what_it_imports(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "helper_beside.py").write_text("RATE = 1\n")
    text = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(text.replace("import torch\n", "import torch\nimport helper_beside\n", 1))
    names = model_names(load_study(str(folder / "own.yaml"), ["variants={a: {}, b: {model.name: lstm}}"]))
    assert names == [f"{folder}/mine.py:MyConfig"]
    assert model_sources(names, folder).files == {name: folder / name for name in ("helper_beside.py", "mine.py")}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"Put the file there, and name it as \./mine\.py:MyConfig"):
        model_sources(names, tmp_path / "elsewhere")


@pytest.mark.parametrize("place", ["/models/mine.py:MyConfig", "../mine.py:MyConfig", "~/mine.py:MyConfig"])
def test_a_job_is_refused_a_file_that_it_would_not_find(place: str) -> None:
    with pytest.raises(UserError, match=r"a job gets what lies beside the study\. Put the file there, and name it as \./mine\.py"):
        _refuse_model_files_elsewhere([f"base:\n  model: {{name: {place}, steps: 2}}\n"])
    _refuse_model_files_elsewhere(["base:\n  model: {name: ./mine.py:MyConfig}\n", "model.name=s3://bucket/mine.py:MyConfig"])


def test_the_wrapper_of_the_page_wraps(folder: Path) -> None:
    """Around a network that knows nothing of stlab."""
    network = (
        "class TheirNet(nn.Module):\n    def __init__(self, nodes, p, q):\n        super().__init__()\n        self.map = nn.Linear(p, q)\n"
        "    def forward(self, x):\n        return self.map(x.transpose(1, -1)).transpose(1, -1)\n\n"
    )
    config = (
        "@dataclass(frozen=True, kw_only=True)\nclass WrappedConfig(ModelConfig):\n    MODEL = 'Wrapped'\n    FAMILIES = ('sensors',)\n\n"
    )
    first, wrapper = blocks("python")
    head = first.split("@dataclass")[0]
    (folder / "wrapped.py").write_text(head + network + config + wrapper)
    model = catalog.create_model({"name": f"{folder}/wrapped.py:WrappedConfig"}, stlab_info())
    from stlab.inspection.contract import random_batch

    batch = random_batch(stlab_info(), 3)
    assert model(batch).value.shape == batch.target.shape
    assert set(model.loss_terms(model(batch), batch)) == {"forecast"}
    assert torch.isfinite(model(batch).value).all()
    assert len(wrapper.strip().splitlines()) <= 11


def stlab_info() -> Any:
    from stmodels.types import REFERENCE

    return REFERENCE["sensors"]


def test_the_examples_study_is_yaml() -> None:
    assert yaml.safe_load(blocks("yaml")[0])["base"]["model"] == {"name": NAME}
    assert len(blocks("python")[0].splitlines()) <= 65
