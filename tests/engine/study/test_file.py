"""Study files: found, read strictly, overridden, explained by line, and written back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from stlab.errors import StudyError
from stlab.study import file as study_file
from stlab.study.errors import explain, problem, study_error
from stlab.study.file import (
    dump_study,
    find_study,
    flatten_overrides,
    load_study,
    load_study_source,
    parse,
    shipped_studies,
)
from stlab.study.source import StudySource
from stlab.study.spec import StudySpec, TrainSpec

STUDY = """\
name: demo
base:
  data:
    path: synthetic:city
  model:
    name: small
    rank: 8
  train:
    lr: 3e-4
variants:
  full: {}
  "no flow #1":
    model.flow: false
  v1.2 λ:
    model:
      rank: 2
axes:
  train.weight_decay: [0, 1e-6]
seeds: [0, 1]
"""


@dataclasses.dataclass(frozen=True)
class Adapter:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    width: int = 64


@dataclasses.dataclass(frozen=True)
class Small:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    name: str
    rank: int | Literal["full"] = 8
    flow: bool = True
    heads: int = 4
    adapter: Adapter = Adapter()

    def __post_init__(self) -> None:
        if isinstance(self.rank, int) and self.rank % self.heads:
            raise ValueError(f"rank {self.rank} is not a multiple of heads {self.heads}")


def _source(text: str = STUDY, *overrides: str) -> StudySource:
    return StudySource.from_text(text, "study.yaml", overrides)


def _load(text: str = STUDY, *overrides: str) -> StudySpec:
    return parse(_source(text, *overrides))


def _error(text: str = STUDY, *overrides: str) -> str:
    with pytest.raises(StudyError) as caught:
        _load(text, *overrides)
    return str(caught.value)


# Reading


def test_reads_what_a_plain_yaml_reader_reads(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(STUDY, encoding="utf-8")
    expected = yaml.safe_load(STUDY)
    expected["base"]["train"]["lr"] = 0.0003  # YAML 1.1 takes 3e-4 for a string
    expected["axes"]["train.weight_decay"] = [0, 0.000001]
    assert load_study(str(path)) == StudySpec.model_validate(expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2018-01-01", "2018-01-01"),
        ("1_000", "1_000"),
        ("none", "none"),
        ("!!float 3", 3.0),
        ("!!str 3", "3"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    read = _source(f"x: {text}\n").data["x"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: a\nname: b\n", ["study.yaml:2:1", "'name' appears twice", "line 1"]),
        ("base:\n  x: {a: 1, a: 2}\n", ["study.yaml:2:13", "'a' appears twice"]),
        ("name: [a\n", ["study.yaml:2:1", "not valid YAML", "starts in line 1"]),
        ("name:\n\tx: 1\n", ["study.yaml:2:1", "spaces, not tabs"]),
        ("a: *b\n", ["study.yaml:1:4", "undefined alias"]),
        ("a: 1\n---\na: 2\n", ["study.yaml:2:1", "document"]),
        ("a: &x [*x]\n", ["alias"]),
        ("a: !!python/object/apply:os.getcwd []\n", ["study.yaml:1:4", "!!python/object/apply:os.getcwd"]),
        ("a: !!int x\n", ["study.yaml:1:4", "'x' is not a valid !!int"]),
        ("variants:\n  1: {}\n", ["study.yaml:2:3", "quotes", "'1'"]),
        ("{[a]: 1}\n", ["study.yaml:1:2", "cannot be a key"]),
        ("name: a\x01\n", ["study.yaml:1:8"]),
        ("name: a\n\x01\n", ["study.yaml:2:1"]),
        ("", ["study.yaml", "empty", "`base`"]),
        ("- a\n", ["list"]),
    ],
)
def test_says_where_the_text_is_wrong(text: str, parts: list[str]) -> None:
    message = _error(text)
    assert all(part in message for part in parts), message


def test_a_file_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_bytes(b"name: a\ndescription: \xe9\n")
    with pytest.raises(StudyError, match=r"demo\.yaml:2: is not UTF-8"):
        load_study(str(path))


def test_anchors_and_merges_work_and_overrides_stay_apart() -> None:
    variants = "  full: &f {model.flow: false}\n  twin: *f\n  more:\n    <<: *f\n    train.lr: 1\n"
    text = STUDY.replace("  full: {}\n", variants)
    spec = _load(text, "variants.twin.model.flow=true")
    assert spec.variants["full"] == {"model.flow": False}
    assert spec.variants["twin"] == {"model.flow": True}
    assert spec.variants["more"] == {"model.flow": False, "train.lr": 1}


# Finding


def test_finds_by_path_with_and_without_suffix(tmp_path: Path) -> None:
    path = tmp_path / "demo.yml"
    path.write_text(STUDY)
    assert find_study(str(path)) == path
    assert find_study(str(tmp_path / "demo")) == path


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_finds_shipped_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    module = tmp_path / ("site-packages/stlab" if installed == "wheel" else "repo/platform/stlab") / "study" / "file.py"
    folder = module.parents[1] / "search_spaces" if installed == "wheel" else tmp_path / "repo/search_spaces"
    folder.mkdir(parents=True)
    for name in ("st_vfm_ablation", "smoke"):
        (folder / f"{name}.yaml").write_text(STUDY)
    work = tmp_path / "work"
    (work / "search_spaces").mkdir(parents=True)
    monkeypatch.setattr(study_file, "__file__", str(module))
    monkeypatch.chdir(work)

    assert [path.stem for path in shipped_studies()] == ["smoke", "st_vfm_ablation"]
    assert find_study("smoke") == find_study("smoke.yaml") == folder / "smoke.yaml"
    with pytest.raises(StudyError, match=r"Did you mean 'st_vfm_ablation'\? Studies by name: smoke, st_vfm_ablation"):
        find_study("st_vfm_ablatoin")
    own = work / "search_spaces/smoke.yaml"
    own.write_text(STUDY)
    assert find_study("smoke") == own


# Overrides


def test_set_reaches_base_study_axes_and_variants() -> None:
    spec = _load(
        STUDY,
        "model.rank=4",
        "train.lr=1e-2",
        "seeds=[5, 6]",
        "name=other",
        "axes.train.lr=[1e-4, 1e-3]",
        "resources.cpus=2",
        "base.data.path=x.npz",
        "variants.full.model.rank=16",
        "variants.no flow #1.train.lr=1",
        "variants.v1.2 λ.model.rank=32",
        "variants.new.train.lr=2",
        "description=a = b",
    )
    assert spec.base.model == {"name": "small", "rank": 4}
    assert (spec.base.train.lr, spec.seeds, spec.name, spec.base.data.path) == (0.01, [5, 6], "other", "x.npz")
    assert spec.base.resources.cpus == 2
    assert spec.axes == {"train.weight_decay": [0, 1e-6], "train.lr": [1e-4, 1e-3]}
    assert {name: flatten_overrides(variant) for name, variant in spec.variants.items()} == {
        "full": {"model.rank": 16},
        "no flow #1": {"model.flow": False, "train.lr": 1},
        "v1.2 λ": {"model.rank": 32},  # in place of the nested 2
        "new": {"train.lr": 2},
    }
    assert spec.description == "a = b"


def test_the_longest_variant_name_wins() -> None:
    text = STUDY.replace("  full: {}\n", "  full: {}\n  full.model: {}\n  a=b: {}\n")
    spec = _load(text, "variants.full.model.train.lr=1", "variants.a=b.train.lr=2", "variants.full={train.lr: 3}")
    assert spec.variants["full.model"] == {"train.lr": 1}
    assert spec.variants["a=b"] == {"train.lr": 2}
    assert spec.variants["full"] == {"train.lr": 3}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.rank", ["the `=` is missing", "--set train.lr=1e-3"]),
        ("=4", ["empty", "--set train.lr=1e-3"]),
        ("model..rank=4", ["empty part"]),
        ("modle.rank=4", ["no `modle`", "Did you mean 'model'?"]),
        ("seeds.0=4", ["as a whole"]),
        ("seeds=[1,", ["not valid YAML"]),
        ("base.data.path.x=1", ["`base.data.path` is 'synthetic:city'"]),
        ("train.lrr=4", ["base.train.lrr", "unknown field", "Did you mean 'lr'?"]),
        ("train.lr=-1", ["base.train.lr", "greater than 0, this is -1"]),
        ("variants.full.train.lrr=1", ["variants.full.train.lrr", "Did you mean 'lr'?"]),
        ("axes.train.lr=3", ["axes.train.lr", "must be a list, this is 3"]),
    ],
)
def test_a_wrong_override_is_named_as_it_was_given(override: str, parts: list[str]) -> None:
    message = _error(STUDY, override)
    assert message.startswith(f"--set {override}: ")
    assert "study.yaml" not in message
    assert all(part in message for part in parts), message


def test_every_wrong_override_is_reported() -> None:
    assert len(_error(STUDY, "x", "model.rank=3", "=y").splitlines()) == 2


# Explaining


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    text = """\
name: demo
base:
  data:
    path: a
    famly: grid
  model: {rank: 8}
  train:
    lr: 3e-4
    precision: bf61
    batch_size: many
    warmup_epochs: 1.5
variants:
  full:
  a: {lr: 3}
  b:
    train.lrr: 3
    base.model.rank: 3
  c:
    model.rank: 4
    model:
      rank: 8
axes:
  data.pth: [x]
  train.lr: []
  train: {min_lr: [1]}
seeds: [1, 1]
sedes: [1]
train: {}
"""
    expected = [
        (5, "base.data.famly", "unknown field. Did you mean 'family'? Allowed: path, family, history, "),
        (6, "base.model", "`name` is missing"),
        (9, "base.train.precision", "must be 'auto', 'fp32' or 'bf16', this is \"bf61\". Did you mean 'bf16'?"),
        (10, "base.train.batch_size", 'must be a whole number, this is "many".'),
        (11, "base.train.warmup_epochs", "must be a whole number, this is 1.5."),
        (13, "variants.full", "must be a mapping, this is null."),
        (14, "variants.a.lr", "a path starts with one of data., model., train., resources. Did you mean 'train.lr'?"),
        (16, "variants.b.train.lrr", "unknown field. Did you mean 'lr'?"),
        (17, "variants.b.base.model.rank", "a path starts with one of"),
        (18, "variants.c", "`model.rank` is written twice"),
        (23, "axes.data.pth", "unknown field. Did you mean 'path'?"),
        (24, "axes.train.lr", "an axis without values"),
        (25, "axes.train", "write the path of an axis with dots: train.min_lr."),
        (26, "seeds", "a seed appears twice in [1, 1]"),
        (27, "sedes", "unknown field. Did you mean 'seeds'?"),
        (28, "train", "unknown field. It belongs under `base`: base.train."),
    ]
    lines = _error(text).splitlines()
    assert len(lines) == len(expected)
    for line, (number, field, message) in zip(lines, expected, strict=True):
        assert line.startswith(f"study.yaml:{number}: {field}: {message}"), line


def test_a_missing_field_points_to_what_lacks_it() -> None:
    message = _error("name: demo\nbase:\n  data:\n    family: grid\n  model: {name: m}\n")
    assert message.startswith("study.yaml:3: base.data.path: this field is required. Path or URI of the data.")


def test_an_item_of_a_list_has_its_own_line() -> None:
    assert _error(STUDY.replace("seeds: [0, 1]", "seeds:\n  - 0\n  - x")).startswith("study.yaml:21: seeds.1: must be")


def _trial_error(section: str, owner: type, values: dict[str, Any], source: StudySource, variant: str) -> str:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(owner).validate_python(values)
    return str(study_error(explain(caught.value, owner, source, section=section, variant=variant)))


@pytest.mark.parametrize(
    ("override", "values", "variant", "expected"),
    [
        ((), {"rnak": 4}, "full", "study.yaml:5: base.model.rnak: unknown field. Did you mean 'rank'? Allowed: name, "),
        ((), {"rank": "ful"}, "full", "study.yaml:7: base.model.rank: must be a whole number or 'full', this is"),
        ((), {"rank": "x"}, "v1.2 λ", "study.yaml:16: variants.v1.2 λ.model.rank: must be"),
        ((), {"flow": 3}, "no flow #1", "study.yaml:13: variants.no flow #1.model.flow: "),
        ((), {"rank": 2}, "v1.2 λ", "study.yaml:14: variants.v1.2 λ: rank 2 is not a multiple of heads 4"),
        ((), {"rank": 2}, "full", "study.yaml:5: base.model: rank 2 is not"),
        (("model.rnak=4",), {"rnak": 4}, "full", "--set model.rnak=4: base.model.rnak: unknown field. Did you mean"),
        (("axes.model.rank=[x]",), {"rank": "x"}, "full", "--set axes.model.rank=[x]: axes.model.rank: must be"),
        (("axes.model.rank=[x]",), {"rank": "x"}, "v1.2 λ", "study.yaml:16: variants.v1.2 λ.model.rank: must be"),
        (
            ("variants.full={model.adapter: {x: 3}}",),
            {"adapter": {"x": 3}},
            "full",
            "--set variants.full={model.adapter: {x: 3}}: variants.full.model.adapter.x: unknown field. Allowed: wi",
        ),
    ],
)
def test_a_trials_error_points_to_what_wrote_the_value(
    override: tuple[str, ...], values: dict[str, Any], variant: str, expected: str
) -> None:
    source = _source(STUDY, *override)
    assert _trial_error("model", Small, {"name": "small", **values}, source, variant).startswith(expected)


def test_a_trials_error_points_to_its_axis() -> None:
    message = _trial_error("train", TrainSpec, {"weight_decay": -1}, _source(), "full")
    assert message == "study.yaml:18: axes.train.weight_decay: must be at least 0, this is -1."


def test_what_trials_share_is_said_once_and_a_source_is_no_must() -> None:
    twice = [problem("unknown model", ("name",), _source(), section="model", variant="full") for _ in range(2)]
    assert str(study_error(twice)) == "study.yaml:6: base.model.name: unknown model"
    assert str(problem("unknown model", ("name",), section="model")) == "model.name: unknown model"


# Flattening and writing


def test_flatten_overrides_takes_dotted_nested_and_mixed() -> None:
    mixed = {"train.lr": 1, "model": {"adapter": {"width": 3}, "adapter.layers": [1, {"a": 2}]}, "data": {}}
    assert flatten_overrides(mixed) == {"train.lr": 1, "model.adapter.width": 3, "model.adapter.layers": [1, {"a": 2}]}


@pytest.mark.parametrize("clash", [{"a.b": 1, "a": {"b": 2}}, {"a.b": 1, "a": 3}, {"a": 3, "a.b": 1}])
def test_flatten_overrides_refuses_two_values_of_one_field(clash: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="Keep one of them"):
        flatten_overrides(clash)


def test_a_dumped_study_loads_to_an_equal_one() -> None:
    texts = ["yes", "3e-4", "010", "2018-01-01", "12:30", "null", "", "λ: #", "a\nb", "1_000", "<<"]
    odd = [*texts, 1e-6, 1e20, float("inf"), None, True, [1, [2]]]
    spec = StudySpec.model_validate(
        {
            "name": "demo",
            "description": "Lernrate λ — µ",
            "base": {"data": {"path": "x", "family": "sensors", "null": "none"}, "model": {"name": "m", "odd": odd}},
            "variants": {"no": {}, "3e-4": {"model": {"z": {"b": 1, "a": 2}}}},
            "axes": {"train.lr": [1e-5, 3e-4]},
        }
    )
    text = dump_study(spec)
    again = _load(text)
    assert again == spec
    assert dump_study(again) == text
    assert list(again.variants["3e-4"]["model"]["z"]) == ["b", "a"]
    assert "Lernrate λ — µ" in text
    assert "split: [0.6, 0.2, 0.2]" in text
    # A reader of YAML 1.1 gets the same strings.
    assert yaml.safe_load(text)["base"]["model"]["odd"][: len(texts)] == texts


def test_load_study_is_source_and_parse(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(STUDY, encoding="utf-8")
    source = load_study_source(str(path), ["model.rank=2"])
    assert parse(source) == load_study(str(path), ["model.rank=2"])
    assert source.place(("base", "model", "rank"))[1] == "--set model.rank=2"
    assert source.place(("base", "model", "name"))[1] == f"{path}:6"
