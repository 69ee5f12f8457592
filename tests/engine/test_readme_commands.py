"""The READMEs against the tree: commands, options, studies, make targets, links and anchors exist, and the first page stays short."""

from __future__ import annotations

import itertools
import re
import shlex
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt  # comes with rich
from markdown_it.token import Token

from stlab.cli import app
from stlab.cli.options import load_study
from stlab.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
PAGES = sorted(
    path
    for pattern in ("README.md", "*/README.md", "cluster/*/README.md", "search_spaces/RESULTS.md")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith(".")  # pytest's cache has a README of its own
)
STUDIES = {path.stem: path for path in sorted((ROOT / "search_spaces").glob("*.yaml"))}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
MOST_WORDS = 1200

CLI: Any = typer.main.get_command(app)  # typer's own click, or click: what both have is used here
OF_EVERY_COMMAND = {"--help", "-h", "--debug"}
NOT_OURS = {"--runtime-env"}  # an option of `ray job submit`
SEPARATORS = set(";&|()")


# --- reading the pages ---


def tokens(path: Path) -> Iterator[Token]:
    """Every token of a page, those inside paragraphs and table cells included."""
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def code(path: Path) -> list[str]:
    """What a page shows as code: the lines of its blocks, continued lines joined, and what stands between backticks."""
    found = []
    for token in tokens(path):
        if token.type in ("code_block", "fence"):
            found += token.content.replace("\\\n", " ").splitlines()
        elif token.type == "code_inline":
            found.append(token.content)
    return found


def inline_code(path: Path) -> list[str]:
    return [token.content for token in tokens(path) if token.type == "code_inline"]


def header(study: Path) -> list[str]:
    """The lines of a study's header from `# Command:` to `# Duration:`."""
    text = study.read_text(encoding="utf-8").split("# Command:")[1].split("# Duration:")[0]
    return [line.lstrip("# ") for line in text.splitlines()]


def words(line: str) -> list[list[str]]:
    """The simple commands of a line of shell, word by word, without comments.

    Raises:
        ValueError: the quotes of a line that calls stlab do not match; a line of another language has no commands.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if set(word) <= SEPARATORS:
                commands.append([])
            else:
                commands[-1].append(word)
    except ValueError:
        if re.search(r"\bstlab [a-z]", line):
            raise
        return []
    return [command for command in commands if command]


def calls(line: str, program: str) -> list[list[str]]:
    """The arguments of each call of ``program`` in a line of shell."""
    found = []
    for command in words(line):
        for index, word in enumerate(command):
            if word == program and (index == 0 or command[index - 1] in ("-m", "do", "then")):
                found.append(command[index + 1 :])
                break
    return [arguments for arguments in found if arguments]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    of_heading = False
    for token in tokens(path):
        if token.type == "inline" and of_heading:
            text = "".join(child.content for child in token.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = sum(anchor == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", anchor) is not None for anchor in found)
            found.add(f"{slug}-{count}" if count else slug)
        of_heading = token.type == "heading_open"
    return found


def links(path: Path) -> list[str]:
    """Where a page points to inside the repository."""
    found = [str(token.attrs.get("href") or token.attrs.get("src")) for token in tokens(path) if token.type in ("link_open", "image")]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


# --- what is wrong with them ---


def is_group(command: Any) -> bool:
    return hasattr(command, "commands")


def command_problems(arguments: list[str]) -> list[str]:
    """What the command line would refuse in the arguments of one call, by click's own list of parameters."""
    command, rest = CLI, list(arguments)
    while is_group(command):
        if not rest or rest[0] not in command.commands:
            return [f"there is no command `{' '.join(arguments)}`"]
        command = command.commands[rest.pop(0)]
    options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts) if name.startswith("-")}
    places = [param for param in command.params if param.param_type_name == "argument"]
    problems, given = [], []
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not name.startswith("-"):
            given.append(word)
        elif name in options:
            if not options[name].is_flag and not equals:
                if not rest or rest[0].startswith("--"):
                    problems.append(f"{name} of `{command.name}` needs a value")
                rest = rest[1:]
        elif name not in OF_EVERY_COMMAND:
            problems.append(f"`{command.name}` has no option {name}")
    if len(given) > len(places) and not any(param.nargs == -1 for param in places):
        problems.append(f"`{command.name}` does not take {given[-1]}")
    if not given and "--" in " ".join(arguments) and any(param.required for param in places):  # else it is just named
        problems.append(f"`{command.name}` needs an argument")
    names_studies = any("STUDY" in str(param.metavar) for param in places)
    problems += [f"there is no study {name}" for name in given if is_lost(name, names_studies)]
    return problems


def is_lost(name: str, names_studies: bool) -> bool:
    """Whether a word names a shipped study that is not there. STUDY stands for any, and a file is the reader's own."""
    is_placeholder = set(name) <= set(string.ascii_uppercase + "_.")
    is_study = names_studies or re.fullmatch(r"st_v[fl]m_\w+", name) is not None
    return is_study and not is_placeholder and not name.endswith(".yaml") and name not in STUDIES


def override_problem(arguments: list[str]) -> str | None:
    """What a shipped study says against the overrides of a call."""
    overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]
    study = next((word for word in arguments[1:] if word in STUDIES), None)
    if study is None or not overrides:
        return None
    try:
        load_study(str(STUDIES[study]), overrides)
    except UserError as error:
        return f"{study}: {error}"
    return None


def link_problem(page: Path, link: str) -> str | None:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return f"{link}: there is no such file"
    if anchor and anchor not in anchors(target):
        return f"{link}: no heading has this anchor; there are {', '.join(sorted(anchors(target)))}"
    return None


# --- the pages ---


def name_of(path: object) -> str:
    return path.relative_to(ROOT).as_posix() if isinstance(path, Path) else str(path)


def test_pages_and_their_commands_are_found() -> None:
    names = {name_of(path) for path in PAGES}
    assert {"README.md", "models/README.md", "search_spaces/README.md", "search_spaces/RESULTS.md"} <= names
    assert {"platform/README.md", "tests/README.md", "cluster/README.md", "cluster/slurm/README.md"} <= names
    found = [arguments for path in PAGES for line in code(path) for arguments in calls(line, "stlab")]
    assert len(found) >= 50
    assert ["run", "st_vfm_lambda", "--storage", "s3://bucket/runs"] in found, "the one behind `python -m`, on a continued line"
    assert any(arguments[:2] == ["run", "st_vlm_ablation"] and "data.path=$data.npz" in arguments for arguments in found)
    assert all(len(header(study)) >= 1 for study in STUDIES.values())
    assert {"demo", "test", "test-slow", "bench"} <= TARGETS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_exists(page: Path) -> None:
    problems = []
    for line in code(page):
        for arguments in calls(line, "stlab"):
            problems += command_problems(arguments) + [found for found in [override_problem(arguments)] if found]
        problems += [f"there is no target `make {arguments[0]}`" for arguments in calls(line, "make") if arguments[0] not in TARGETS]
    assert problems == []


@pytest.mark.parametrize("page", [page for page in PAGES if not page.is_relative_to(CLUSTER)], ids=name_of)
def test_options_and_studies_that_a_page_mentions_exist(page: Path) -> None:
    """Between backticks an option or a study may stand by itself. (In `cluster/` options of other programs do, too.)"""
    ours = {name for command in leaf_commands(CLI) for param in command.params for name in (*param.opts, *param.secondary_opts)}
    mentioned = [text.split()[0].partition("=")[0] for text in inline_code(page) if text.startswith("--")]
    assert [option for option in mentioned if option not in ours | OF_EVERY_COMMAND | NOT_OURS] == []
    assert [text for text in inline_code(page) if is_lost(text, names_studies=False)] == []


def leaf_commands(command: Any) -> Iterator[Any]:
    if is_group(command):
        for inner in command.commands.values():
            yield from leaf_commands(inner)
    else:
        yield command


@pytest.mark.parametrize("study", STUDIES.values(), ids=name_of)
def test_the_command_of_a_study_is_its_own_and_exists(study: Path) -> None:
    lines = header(study)
    call = re.search(r"\bstlab ([^()]*)", lines[0])
    assert call is not None, lines[0]
    arguments = shlex.split(call[1])
    assert arguments[:2] == ["run", study.stem]
    assert command_problems(arguments) == []
    assert [target for target in re.findall(r"\bmake ([a-z-]+)", " ".join(lines)) if target not in TARGETS] == []
    for line in lines:
        given = re.findall(r"--set ([^\s,;()]+)", line)
        assert override_problem(["run", study.stem, *(word for one in given for word in ("--set", one))]) is None


def test_the_page_of_the_platform_names_every_command() -> None:
    named = {arguments[0] for line in code(ROOT / "platform" / "README.md") for arguments in calls(line, "stlab")}
    assert set(CLI.commands) - named == set()


def test_the_page_of_the_studies_lists_all_that_are_shipped() -> None:
    assert set(STUDIES) - set(inline_code(ROOT / "search_spaces" / "README.md")) == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert [problem for link in links(page) if (problem := link_problem(page, link))] == []


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


# --- the checks themselves ---


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("stlab trian demo", "there is no command `trian demo`"),
        ("stlab data inpsect grid.npz", "there is no command `data inpsect grid.npz`"),
        ("python -m stlab run demo --storge runs", "`run` has no option --storge"),
        ("stlab run demo --storage", "--storage of `run` needs a value"),
        ("for a in b; do stlab plan demos; done", "there is no study demos"),
        ("stlab logs st_vfm_lamda --address http://head:8265", "there is no study st_vfm_lamda"),
        ("stlab run demo twice  # a comment", "`run` does not take twice"),
        ("stlab replay --storage runs", "`replay` needs an argument"),
    ],
)
def test_a_wrong_command_is_noticed(line: str, says: str) -> None:
    (arguments,) = calls(line, "stlab")
    assert says in command_problems(arguments)


def test_a_wrong_override_is_noticed() -> None:
    assert "epochs" in str(override_problem(["run", "demo", "--set", "train.epochs=3"]))


def test_wrong_links_and_anchors_are_noticed(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    assert "no such file" in str(link_problem(page, "nowhere/README.md"))
    assert "no heading" in str(link_problem(page, "models/README.md#nowhere"))
    headings = tmp_path / "page.md"
    headings.write_text("# A `b` – c, d\n\n## Twice\n\n## Twice\n\n    # no heading\n")
    assert anchors(headings) == {"a-b--c-d", "twice", "twice-1"}
