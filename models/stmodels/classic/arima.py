"""ARIMA(p, d, q): φ(L) (1 − L)^d x_t = c + θ(L) ε_t, for each series by itself.

Legend: B batch, P history, Q horizon, M series, n steps of the train segment.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from stmodels.base import Forecaster
from stmodels.classic.arima_config import ARIMAConfig, Order
from stmodels.errors import ConfigError
from stmodels.types import Batch, Forecast, Readings, SeriesInfo

logger = logging.getLogger(__name__)
_RIDGE = 1e-6


class Coefficients(NamedTuple):
    """Of M series, in float64."""

    constant: Tensor  # (M,)
    ar: Tensor  # (M, p)
    ma: Tensor  # (M, q)


class ARIMA(Forecaster):
    """Fitted on the train segment; a window is forecast by recursion from its own readings, with shocks of 0 before it.

    A series that does not change is forecast as its mean. Where φ has an explosive root, it is shrunk until it has none.

    Raises:
        ConfigError: the history is too short, or statsmodels is not installed.
    """

    def __init__(self, config: ARIMAConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config, self.info = config, info
        p, _, q = config.largest_order(info.family)
        if config.order == "aic" or config.estimator(info.family) == "likelihood":
            _statsmodels()
        self.register_buffer("differences", torch.zeros((), dtype=torch.int64))
        for name, size in (("constant", ()), ("ar", (p,)), ("ma", (q,))):
            self.register_buffer(name, torch.zeros(info.series, *size, dtype=torch.float64))

    def prepare(self, train: Readings) -> dict[str, Tensor]:
        """The coefficients, and d."""
        values = train.values.flatten(1).double().cpu()
        seen = None if train.mask is None else train.mask.flatten(1).cpu()
        order = self._chosen(values, seen) if self.config.order == "aic" else self.config.largest_order(self.info.family)
        found = fit(values, seen, order, self.config.estimator(self.info.family))
        return {
            "differences": torch.tensor(order[1]),
            "constant": found.constant,
            "ar": _widened(found.ar, self.ar.shape[1]),
            "ma": _widened(found.ma, self.ma.shape[1]),
        }

    def forward(self, batch: Batch) -> Forecast:
        history = batch.history.flatten(2).double()  # (B, P, M)
        ahead = forecast(history, Coefficients(self.constant, self.ar, self.ma), int(self.differences), self.info.horizon)
        return Forecast(ahead.to(batch.history.dtype).view(len(history), -1, *self.info.shape))

    def _chosen(self, values: Tensor, seen: Tensor | None) -> Order:
        """The order with the lowest sum of Akaike's criterion over some series, spread evenly.

        With and without a difference the likelihoods are of other data, so that d is chosen by habit more than by right.
        """
        arima = _statsmodels()
        changing = (_filled(values, seen).std(0) > 1e-9).nonzero().flatten()
        sample = changing[torch.linspace(0, len(changing) - 1, min(self.config.sample, len(changing))).long()]

        def criterion(order: Order) -> float:
            return sum(float(_likelihood(arima, values[:, i], None if seen is None else seen[:, i], order).aic) for i in sample)

        orders = [order for order in itertools.product(range(4), range(2), range(2)) if sum(order)]
        best = min(orders, key=criterion)
        logger.info("arima: the order %s has the lowest AIC", list(best))
        return best


def fit(values: Tensor, seen: Tensor | None, order: Order, estimator: str) -> Coefficients:
    """Coefficients of M series (n, M) in float64, with d differences taken.

    The likelihood leaves missing readings out. Least squares takes the mean for them, which draws φ towards 0.
    """
    p, d, q = order
    filled = _filled(values, seen)
    changes = filled.diff(n=d, dim=0) if d else filled
    still = changes.std(0) <= 1e-9
    if estimator == "likelihood":
        arima, rows = _statsmodels(), []
        for i in range(values.shape[1]):
            rows.append(_row(arima, values[:, i], None if seen is None else seen[:, i], order) if not still[i] else torch.zeros(1 + p + q))
        table = torch.stack([row.double() for row in rows])
        found = Coefficients(table[:, 0], table[:, 1 : 1 + p], table[:, 1 + p :])
    else:
        found = _least_squares(changes, p, q)
    if bool(still.any()):
        what = "differences of" if d else "readings of"
        logger.warning("arima: the %s %d of %d series do not change, and are forecast as their mean", what, int(still.sum()), len(still))
        zero = still[:, None]
        found = Coefficients(
            torch.where(still, changes.mean(0), found.constant), found.ar.masked_fill(zero, 0), found.ma.masked_fill(zero, 0)
        )
    return _tamed(found)


def forecast(history: Tensor, fitted: Coefficients, differences: int, horizon: int) -> Tensor:
    """(B, P, M) → (B, Q, M), in float64: the shocks of the history first, then the recursion without shocks, then the sums."""
    levels = [history]
    for _ in range(differences):
        levels.append(levels[-1].diff(dim=1))
    seen, p = levels[-1], fitted.ar.shape[1]
    known = list(seen.unbind(1))
    shocks = [torch.zeros_like(known[0]) for _ in range(min(p, len(known)))]
    for t in range(len(shocks), len(known)):
        shocks.append(known[t] - _next(known[:t], shocks, fitted, known[0]))
    ahead = []
    for _ in range(horizon):
        ahead.append(_next(known, shocks, fitted, known[0]))
        known.append(ahead[-1])
        shocks.append(torch.zeros_like(known[0]))
    found = torch.stack(ahead, dim=1)
    for level in reversed(levels[:-1]):
        found = level[:, -1:] + found.cumsum(1)
    return found


def _next(known: list[Tensor], shocks: list[Tensor], fitted: Coefficients, like: Tensor) -> Tensor:
    """c + Σ φ_i x_(t−i) + Σ θ_j ε_(t−j), with 0 for what lies before the window, as a tensor ``like`` another."""
    total = fitted.constant.expand_as(like)
    for i, weight in enumerate(fitted.ar.unbind(1), start=1):
        total = total + weight * known[-i]
    for j, weight in enumerate(fitted.ma.unbind(1), start=1):
        total = total + weight * shocks[-j] if j <= len(shocks) else total
    return total


def _least_squares(x: Tensor, p: int, q: int) -> Coefficients:
    """x (n, M). With q the shocks are first estimated by a long autoregression (Hannan and Rissanen 1982)."""
    if not q:
        beta = _regressed(x, [x[p - i : len(x) - i] for i in range(1, p + 1)], p)
        return Coefficients(beta[:, 0], beta[:, 1:], beta[:, 1:1])
    long = min(p + q + 10, len(x) // 4)
    beta = _regressed(x, [x[long - i : len(x) - i] for i in range(1, long + 1)], long)
    shocks = torch.zeros_like(x)
    shocks[long:] = x[long:] - beta[:, 0] - sum(beta[:, i] * x[long - i : len(x) - i] for i in range(1, long + 1))
    first = long + q
    lags = [x[first - i : len(x) - i] for i in range(1, p + 1)] + [shocks[first - j : len(x) - j] for j in range(1, q + 1)]
    beta = _regressed(x, lags, first)
    return Coefficients(beta[:, 0], beta[:, 1 : 1 + p], beta[:, 1 + p :])


def _regressed(x: Tensor, columns: list[Tensor], first: int) -> Tensor:
    """Coefficients (M, 1 + columns) of x from step ``first`` on, with an intercept, each series by itself."""
    y = x[first:].T[..., None]
    design = torch.stack([torch.ones_like(x[first:]), *columns], dim=-1).transpose(0, 1)  # (M, n, k)
    ridge = _RIDGE * torch.eye(design.shape[-1], dtype=x.dtype)
    return torch.linalg.solve(design.mT @ design + ridge, design.mT @ y)[..., 0]


def _tamed(found: Coefficients) -> Coefficients:
    """φ without explosive roots and θ that can be inverted: otherwise a forecast, or a shock of the past, grows without bound."""
    ar, is_explosive = _shrunk(found.ar)
    ma, is_not_invertible = _shrunk(-found.ma)
    for count, what in ((is_explosive, "explosive roots"), (is_not_invertible, "a moving average that cannot be inverted")):
        if bool(count.any()):
            logger.warning("arima: %d of %d series have %s, which is shrunk", int(count.sum()), len(count), what)
    mean = found.constant / (1 - found.ar.sum(1))  # of the process, which stays
    return Coefficients(torch.where(is_explosive, mean * (1 - ar.sum(1)), found.constant), ar, -ma)


def _shrunk(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(M, k) weights of a recursion, w_i ← w_i / radius^i where its companion matrix has an eigenvalue beyond 1; and where that was."""
    count = weights.shape[1]
    if not count:
        return weights, torch.zeros(len(weights), dtype=torch.bool)
    companion = torch.zeros(len(weights), count, count, dtype=torch.float64)
    companion[:, 0] = weights
    companion[:, torch.arange(1, count), torch.arange(count - 1)] = 1
    radius = torch.linalg.eigvals(companion).abs().amax(1).clamp_min(1)
    return weights / radius[:, None] ** torch.arange(1, count + 1), radius > 1


def _filled(values: Tensor, seen: Tensor | None) -> Tensor:
    """The readings (n, M), with the mean of a series where one is missing."""
    if seen is None:
        return values
    return torch.where(seen, values, (values * seen).sum(0) / seen.sum(0).clamp_min(1))


def _widened(x: Tensor, width: int) -> Tensor:
    return torch.cat([x, x.new_zeros(len(x), width - x.shape[1])], dim=1)


def _row(arima: type, series: Tensor, seen: Tensor | None, order: Order) -> Tensor:
    """[c, φ_1 …, θ_1 …] of one series."""
    p, _, q = order
    found = _likelihood(arima, series, seen, order)
    named = dict(zip(found.param_names, found.params, strict=True))
    ar = torch.tensor([named[f"ar.L{i}"] for i in range(1, p + 1)], dtype=torch.float64)
    ma = torch.tensor([named[f"ma.L{j}"] for j in range(1, q + 1)], dtype=torch.float64)
    # statsmodels' constant is the mean of the process; with differences it has none.
    return torch.cat([torch.tensor([named.get("const", 0.0)], dtype=torch.float64) * (1 - ar.sum()), ar, ma])


def _likelihood(arima: type, series: Tensor, seen: Tensor | None, order: Order):  # type: ignore[no-untyped-def]
    """The results of statsmodels, with missing readings left out."""
    values = series.numpy().copy()
    if seen is not None:
        values[~seen.numpy()] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a start that is not stationary, or no convergence within its iterations
        return arima(values, order=order).fit()


def _statsmodels() -> type:
    try:
        from statsmodels.tsa.arima.model import ARIMA as StatsmodelsARIMA
    except ImportError as error:
        raise ConfigError(
            "arima needs statsmodels for model.estimate=likelihood and for model.order=aic: pip install 'stlab[arima]', or set "
            "model.estimate to least_squares and model.order to [p, d, q]"
        ) from error
    return StatsmodelsARIMA
