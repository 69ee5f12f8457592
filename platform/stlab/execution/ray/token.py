"""The token of a cluster: the place it is read from, and advice for a user whose token is refused."""

from __future__ import annotations

import os
from pathlib import Path

_GIVE = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE   # FILE holds the token that the head was started with"


def found_in() -> str | None:
    """The place where Ray finds the token on this machine, by its own order; None where there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return f"RAY_AUTH_TOKEN_PATH={path}"
    path = str(Path("~/.ray/auth_token").expanduser())
    return path if Path(path).is_file() else None


def refused(address: str) -> str:
    """A cluster's dashboard refused this machine's token, or the lack of one."""
    found = found_in()
    if found is None:
        return f"the cluster at {address} asks for a token, and there is none here. Give it:\n  {_GIVE}"
    return f"the cluster at {address} refuses the token of {found}. Give the one that its head was started with:\n  {_GIVE}"


def perhaps(address: str) -> str:
    """Ray cannot join what listens at an address, and its error is the same for a token that is missing or wrong."""
    used = f"the token of {found} was used" if (found := found_in()) else "there is no token here"
    return (
        f"Ray cannot join what listens at {address}. Either it wants another token ({used}): give the one that its head was started "
        f"with:\n  {_GIVE}\nor this is not Ray's own address (port 6379; the dashboard's, 8265, is for stlab submit)."
    )
