"""What no source may do, read from the sources' own syntax trees: run data as code, or build a shell from a user's strings."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlab.data.formats.npz import read_npz
from stlab.errors import UserError
from stlab.storage import Store, TrialDirectory
from stlab.study.file import StudySource, parse
from stlab.training.checkpoint import Checkpoints, Progress, _seal, trainable_state

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "platform").rglob("*.py"), *(ROOT / "models").rglob("*.py"), *(ROOT / "cluster").rglob("*.py")])

# Each of them runs, or may run, what a file or a string says. `yaml.CSafeLoader` and `SafeLoader` build plain values only.
FORBIDDEN = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput", "pty.spawn",
    "eval", "exec", "builtins.eval", "builtins.exec",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads",
    "joblib.load", "shelve.open", "marshal.load", "marshal.loads", "pandas.read_pickle", "pd.read_pickle", "jsonpickle.decode",
    "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
    "tarfile.TarFile.extractall", "tempfile.mktemp", "torch.hub.load", "torch.jit.load",
    "asyncio.create_subprocess_shell", "asyncio.subprocess.create_subprocess_shell",
}  # fmt: skip
SAFE_LOADERS = {"SafeLoader", "CSafeLoader"}
UNSAFE_LOADERS = {f"yaml.{name}" for name in ("Loader", "CLoader", "FullLoader", "CFullLoader", "UnsafeLoader", "CUnsafeLoader")}


INTERPRETERS = re.compile(r"(.*/)?((ba|da|z|k|c|tc|fi)?sh|busybox|python[\d.]*|perl|ruby|node)")
TEXT_FOLLOWS = re.compile(r"-[a-zA-Z]*[ce]")  # -c of shells and Python, -lc, -e of others


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression, or what of it is a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(tree: ast.Module) -> dict[str, str]:
    """What a name in a module stands for: ``import numpy as np`` → ``np: numpy``, ``from yaml import load`` → ``load: yaml.load``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, _, rest = dotted(node.func).partition(".")
            yield node, names.get(head, head) + (f".{rest}" if rest else "")


def argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def loader(call: ast.Call) -> str:
    """The name of the class that a ``yaml.load`` reads with."""
    second = call.args[1] if len(call.args) > 1 else None
    return dotted(argument(call, "Loader") or second or ast.Constant(None)).rpartition(".")[2]


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def safe_loaders(tree: ast.Module) -> set[str]:
    """The safe loaders, and the classes of this module that are one."""
    known = set(SAFE_LOADERS)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for _ in classes:
        known |= {one.name for one in classes if any(dotted(base).rpartition(".")[2] in known for base in one.bases)}
    return known


def text(node: ast.expr) -> str:
    """A constant's text, the name of what is none."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else dotted(node)


def is_program_made_here(words: list[ast.expr]) -> bool:
    """Whether these are a command line that hands an interpreter a program which is not written out: ``["bash", "-c", f"ls {path}"]``."""
    starts = [at for at, word in enumerate(words) if INTERPRETERS.fullmatch(text(word)) or text(word) == "sys.executable"]
    for at, word in enumerate(words):
        if starts and at > starts[0] and TEXT_FOLLOWS.fullmatch(text(word)):
            return at + 1 == len(words) or not isinstance(words[at + 1], ast.Constant)
    return False


def faults(tree: ast.Module) -> list[str]:
    """What in a module is against the rules: the line, and why."""
    found, loaders = [], safe_loaders(tree)
    for call, name in calls(tree):
        why = ""
        if name in FORBIDDEN:
            why = f"{name} is not allowed"
        elif name == "yaml.load" and loader(call) not in loaders:
            why = "yaml.load without a safe loader: yaml.safe_load"
        elif name.endswith(".subprocess_shell"):
            why = "subprocess_shell: give the command as a list"
        elif is_program_made_here(call.args):
            why = "an interpreter is handed a program that is made here: give the command as a list"
        elif name in ("torch.load", "torch.serialization.load") and not is_constant(argument(call, "weights_only"), True):
            why = "torch.load without weights_only=True runs what the file says"
        elif name in ("numpy.load", "numpy.lib.npyio.NpzFile") and not is_constant(argument(call, "allow_pickle"), False):
            why = "numpy.load without allow_pickle=False said"
        elif argument(call, "allow_pickle") is not None and not is_constant(argument(call, "allow_pickle"), False):
            why = "allow_pickle runs what the file says"
        elif argument(call, "shell") is not None and not is_constant(argument(call, "shell"), False):
            why = "shell=True: give the command as a list"
        elif argument(call, "trust_remote_code") is not None and not is_constant(argument(call, "trust_remote_code"), False):
            why = "trust_remote_code runs what a model hub says"
        elif name.endswith(".add_serialized") or name == "torch.serialization.add_safe_globals":
            why = f"{name} widens what a checkpoint may run"
        if why:
            found.append(f"{call.lineno}: {why}")
    for node in ast.walk(tree):
        bases = node.bases if isinstance(node, ast.ClassDef) else ()
        found += [f"{node.lineno}: {dotted(base)} builds any object" for base in bases if dotted(base) in UNSAFE_LOADERS]
        if isinstance(node, ast.List | ast.Tuple) and is_program_made_here(node.elts):
            found.append(f"{node.lineno}: an interpreter is handed a program that is made here: give the command as a list")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_runs_data_as_code(path: Path) -> None:
    assert faults(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import load as read, FullLoader\nread(text, FullLoader)",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import subprocess\nsubprocess.run(f'ls {path}', shell=True)",
        "from subprocess import Popen\nPopen(line, shell=flag)",
        "import subprocess\nsubprocess.run(['bash', '-c', f'ls {path}'])",
        "import subprocess\nsubprocess.run(['/usr/bin/env', 'sh', '-ec', 'ls ' + path])",
        "command = ('sh', '-c') + (line,)",
        "import sys\ncommand = [sys.executable, '-c', line]",
        "import os\nos.execlp('bash', 'bash', '-c', line)",
        "import asyncio\nasyncio.create_subprocess_exec('sh', '-c', line)",
        "import asyncio\nasyncio.create_subprocess_shell(line)",
        "from asyncio import create_subprocess_shell as run\nrun(line)",
        "from asyncio.subprocess import create_subprocess_shell\ncreate_subprocess_shell(line)",
        "loop.subprocess_shell(protocol, line)",
        "import torch\ntorch.serialization.load(path)",
        "from torch.serialization import load\nload(path, weights_only=False)",
        "import os\nos.system(line)",
        "from os import system\nsystem(line)",
        "import pickle\npickle.loads(data)",
        "import yaml\nclass Mine(yaml.Loader): ...",
        "eval(text)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_check_sees_it(text: str) -> None:
    assert len(faults(ast.parse(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nclass Strict(yaml.CSafeLoader): ...\nclass Ours(Strict): ...\nyaml.load(text, Loader=Ours)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import torch\ntorch.serialization.load(path, weights_only=True)",
        "import subprocess\nsubprocess.run(['ls', path])",
        "import subprocess\nsubprocess.run(['bash', '-c', 'ulimit -n'])",
        "import sys\ncommand = [sys.executable, '-m', name]",
        "model.eval()",
        "import re\nre.compile(text)",
    ],
)
def test_the_check_lets_pass_what_is_safe(text: str) -> None:
    assert faults(ast.parse(text)) == []


class Bomb:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_in_an_npz_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, folder = tmp_path / "grid.npz", tmp_path / "it_ran"
    np.savez(path, data=np.array([Bomb(folder)], dtype=object))
    with pytest.raises(UserError, match="pickle"):
        read_npz(path, "grid")
    assert not folder.exists()
    np.load(path, allow_pickle=True)["data"]  # it would have
    assert folder.exists()


def _as_torch_saves(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


@pytest.mark.parametrize("write", [_as_torch_saves, functools.partial(pickle.dumps, protocol=2)], ids=["torch.save", "pickle"])
def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, write: Any) -> None:
    """Sealed as it should be: whoever may write into a storage can do that too."""
    folder, model = tmp_path / "it_ran", torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    directory = TrialDirectory(Store(tmp_path / "runs"), "aa")
    Checkpoints(directory).save(model, optimiser, trainable_state(model), Progress(epoch=1))
    assert Checkpoints(directory).restore(model, optimiser) is not None
    content = write(optimiser.state_dict() | {"more": Bomb(folder)})
    (place,) = (tmp_path / "runs").rglob("optimiser.pt")
    place.write_bytes(content)
    document = json.loads(place.with_name("state.json").read_text())
    document.pop("seal")
    document["sha256"]["optimiser.pt"] = hashlib.sha256(content).hexdigest()
    place.with_name("state.json").write_text(json.dumps({**document, "seal": _seal(document)}))
    checkpoint = Checkpoints(directory)
    assert checkpoint.restore(model, optimiser) is None
    assert "Weights only load failed" in str(checkpoint.note)  # not for its seal
    assert not folder.exists()
    with contextlib.suppress(RuntimeError):  # it is no file of torch's, which is seen too late
        torch.load(io.BytesIO(content), weights_only=False)  # it would have
    assert folder.exists()


@pytest.mark.parametrize("where", ["study file", "--set"])
def test_a_python_tag_in_a_study_is_refused_and_not_run(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "it_ran"
    tag = f"!!python/object/apply:os.mkdir ['{folder}']"
    path = tag if where == "study file" else "grid.npz"
    text = f"name: mine\nbase:\n  data: {{path: {path}}}\n  model: {{name: last_value}}\n"
    with pytest.raises(UserError):
        parse(StudySource.from_text(text, "mine.yaml", [f"data.path={tag}"] if where == "--set" else []))
    assert not folder.exists()
