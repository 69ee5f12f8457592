"""stlab: reliable ablation studies of spatio-temporal forecasting models.

The interface for Python is :func:`stlab.run`, :func:`stlab.results`, :func:`stlab.load_model`; see ``stlab.api``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stlab.version import __version__

if TYPE_CHECKING:
    from stlab.api import Results, load_model, results, run


__all__ = ["Results", "__version__", "load_model", "results", "run"]


def __getattr__(name: str) -> Any:
    """Import ``stlab.api`` only when one of its names is used, so that importing the package is fast."""
    import importlib

    if name in ("run", "load_model", "results", "Results"):
        return getattr(importlib.import_module("stlab.api"), name)
    raise AttributeError(f"module 'stlab' has no attribute '{name}'")
