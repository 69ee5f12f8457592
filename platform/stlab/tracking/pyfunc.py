"""The module by which MLflow loads a model that stlab has logged. It does not import MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stlab.inference import TrainedForecaster, load_saved

if TYPE_CHECKING:
    import numpy as np


class PyfuncForecaster:
    """A forecaster with MLflow's interface.

    The input is an array of histories, or a mapping of ``history``, and ``start`` and ``inputs`` where the model needs them.
    """

    def __init__(self, forecaster: TrainedForecaster) -> None:
        self.forecaster = forecaster

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """(B, P, *S), or ``{"history": (B, P, *S), "start": (B,) seconds since 1970, local time, "inputs": (B, P, N, K)}`` → (B, Q, *S).

        Raises:
            DataError: see :meth:`stlab.inference.TrainedForecaster.predict`.
        """
        import numpy as np

        if not isinstance(model_input, Mapping):
            return self.forecaster.predict(model_input)
        start = model_input.get("start")
        times = None if start is None else np.asarray(start, dtype=np.int64).astype("datetime64[s]")
        return self.forecaster.predict(model_input["history"], times, model_input.get("inputs"))


def _load_pyfunc(path: str) -> PyfuncForecaster:
    return PyfuncForecaster(load_saved(path))
