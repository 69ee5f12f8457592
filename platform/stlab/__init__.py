"""stlab: studies of spatio-temporal forecasting models that give an answer that holds.

From Python: :func:`stlab.run`, :func:`stlab.results`, :func:`stlab.load_model`; see ``stlab.api``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stlab.api import Results, load_model, run

__version__ = "0.1.0"

__all__ = ["Results", "__version__", "load_model", "run"]


def __getattr__(name: str) -> Any:
    """Python's way in, imported when it is used: the package itself stays light."""
    import importlib

    if name in ("run", "load_model", "Results"):
        return getattr(importlib.import_module("stlab.api"), name)
    if name == "results":  # a package of this name, which is callable too
        return importlib.import_module("stlab.results")
    raise AttributeError(f"module 'stlab' has no attribute '{name}'")
