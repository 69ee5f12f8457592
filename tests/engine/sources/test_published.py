"""The list of public data sets: its commands are ones that stlab has, with options and overrides that they take."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest

from stlab.sources.published import SOURCES
from tests.engine.test_readme_commands import command_problems, override_problem


@pytest.mark.parametrize("command", [command for source in SOURCES for command in source.commands])
def test_its_commands_exist(command: str) -> None:
    program, *words = shlex.split(command)
    assert program == "stlab"
    assert command_problems(words) == []
    assert override_problem(words) is None


def test_it_is_printed_with_address_and_terms(say: Callable[..., Any]) -> None:
    said = say("data", "sources").out
    for source in SOURCES:
        assert source.address in said
        assert source.terms in said
        assert all(command in said for command in source.commands)
    assert "stlab fetches none of them." in said
