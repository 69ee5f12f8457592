"""What holds for every test: nothing is fetched from a model hub, and one thread does the arithmetic."""

from __future__ import annotations

import os

# Set before any import of the libraries, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Fixtures that several rooms share.
pytest_plugins = [
    "tests.support.servers", "tests.support.ray_nodes", "tests.support.command_line", "tests.support.studies", "tests.support.watched_runs",
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in the same order on every machine, and no contention between tests that run side by side."""
    import torch

    torch.set_num_threads(1)
