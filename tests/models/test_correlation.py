"""The correlation volume against its definitions in plain float64, on random and on degenerate series."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor

from stmodels.correlation import CHANNELS, correlation_image, correlation_volume, correlation_volume_torch, volume

PATHS = {"kernel": correlation_volume, "torch": correlation_volume_torch}
LAGS = ("any", "nonnegative")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest):
    if request.param == "kernel":
        pytest.importorskip("numba")
    return PATHS[request.param]


def _dtw(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 1: the accumulated absolute difference along the best path."""
    total = np.full((len(a) + 1, len(b) + 1), np.inf)
    total[0, 0] = 0.0
    for s in range(len(a)):
        for t in range(len(b)):
            total[s + 1, t + 1] = abs(a[s] - b[t]) + min(total[s, t], total[s, t + 1], total[s + 1, t])
    return total[-1, -1]


def _cross_correlation(a: np.ndarray, b: np.ndarray, lag: str) -> float:
    """Eq. 2 at every lag τ that pairs a[t] with b[t+τ]; the largest."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    sums = []
    for tau in range(0 if lag == "nonnegative" else 1 - len(a), len(a)):
        sums.append(sum(a[t] * b[t + tau] for t in range(len(a)) if 0 <= t + tau < len(b)))
    return max(sums) / np.sqrt((a**2).sum() * (b**2).sum())


def _spectrum(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of the amplitudes of the windows beside that of frequency 0; one amplitude correlates with nothing."""
    if np.ptp(a) == 0 or np.ptp(b) == 0 or len(a) < 4:
        return 0.0
    a, b = (np.abs(np.fft.rfft(c - c.mean()))[1:] for c in (a, b))
    if any(np.ptp(c) <= 7e-6 * c.max() for c in (a, b)):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def _reference(x: Tensor, lag: str) -> np.ndarray:
    windows = x.double().numpy()
    batch, nodes, _ = windows.shape
    expected = np.zeros((batch, 3, nodes, nodes))
    for w, window in enumerate(windows):
        for i, a in enumerate(window):
            for j, b in enumerate(window):
                expected[w, :, i, j] = _dtw(a, b), _cross_correlation(a, b, lag), _spectrum(a, b)
    return expected


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _degenerate() -> dict[str, Tensor]:
    spike = torch.zeros(1, 3, 12)
    spike[0, 0, 4], spike[0, 1, 11], spike[0, 2, 0] = 5.0, -3.0, 1e4
    mixed = _random(1, 6, 12)
    mixed[0, 1], mixed[0, 3], mixed[0, 4] = 53.7, 0.0, mixed[0, 0]
    return {
        "constants": torch.tensor([53.7, 0.0, -1e-3]).view(1, 3, 1).expand(1, 3, 12),
        "spikes": spike,
        "some constant, two equal": mixed,
        "all equal": _random(1, 1, 12).expand(2, 5, 12),
        "large offset": 1e4 + _random(1, 5, 12),
        "large and small scales": _random(1, 5, 12) * torch.tensor([1e-12, 1e-3, 1.0, 1e4, 1e12]).view(5, 1),
        "steps": (torch.arange(12) >= torch.arange(1, 6).view(5, 1)).float()[None],
        "one node": _random(2, 1, 12),
        "one node, constant": torch.full((1, 1, 12), 53.7),
        "two nodes": _random(2, 2, 12),
    }


def _assert_equal(actual: Tensor, expected: np.ndarray, x: Tensor) -> None:
    """To float32's precision: of the largest reading for DTW, of 1 for the correlations; zeros are exact."""
    assert actual.dtype == torch.float32
    assert tuple(actual.shape) == expected.shape
    found = actual.double().numpy()
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5, atol=1e-6 * float(x.abs().max()))
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], atol=5e-6)
    flat = (x == x[..., :1]).all(-1)
    assert (found[:, 1:].transpose(0, 2, 3, 1)[flat.numpy()] == 0).all()


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("shape", [(2, 7, 12), (1, 16, 12), (1, 37, 6), (3, 17, 5), (2, 4, 3), (2, 5, 2), (2, 3, 1), (1, 3, 25)])
def test_equals_the_definition(path, shape: tuple[int, ...], lag: str) -> None:
    x = _random(*shape)
    _assert_equal(path(x, lag=lag), _reference(x, lag), x)


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("name", _degenerate())
def test_equals_the_definition_on_degenerate_series(path, name: str, lag: str) -> None:
    x = _degenerate()[name]
    _assert_equal(path(x, lag=lag), _reference(x, lag), x)


@pytest.mark.parametrize("lag", LAGS)
def test_paths_agree_where_loops_would_take_too_long(lag: str) -> None:
    pytest.importorskip("numba")
    for nodes in (46, 128, 207, 307):
        x = _random(2, nodes, 12)
        torch.testing.assert_close(correlation_volume(x, lag=lag), correlation_volume_torch(x, lag=lag), atol=2e-6, rtol=1e-6)


def test_cross_correlation_is_scipys(path) -> None:
    x = _random(1, 9, 12)
    centred = (x[0] - x[0].mean(-1, keepdim=True)).double().numpy()
    unit = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    leads = path(x, lag="nonnegative")[0, 1]
    largest = path(x)[0, 1]
    for i, a in enumerate(unit):
        for j, b in enumerate(unit):
            by_lag = signal.correlate(b, a)  # entry T-1+τ pairs a[t] with b[t+τ]
            assert leads[i, j] == pytest.approx(by_lag[11:].max(), abs=1e-6)
            assert largest[i, j] == pytest.approx(by_lag.max(), abs=1e-6)


def test_spectrum_is_numpys_corrcoef(path) -> None:
    x = _random(1, 9, 12) + 3.0
    amplitudes = np.abs(np.fft.rfft((x - x.mean(-1, keepdim=True))[0].double().numpy()))[:, 1:]
    np.testing.assert_allclose(path(x)[0, 2], np.corrcoef(amplitudes), atol=1e-6)


def test_the_spectra_of_independent_noise_do_not_correlate(path) -> None:
    """The amplitude of frequency 0 is always 0, and counted it correlates any two: by 0.39 for 12 steps."""
    image = path(_random(1, 120, 12, seed=5))[0, 2].double()
    pairs = image[tuple(torch.triu_indices(120, 120, 1))]
    assert abs(float(pairs.mean())) < 0.05


def test_dtw_is_dtaidistances(path) -> None:
    """With differences for its inner distance it takes no roots of squares."""
    dtw = pytest.importorskip("dtaidistance.dtw")
    x = _random(1, 12, 12)
    theirs = dtw.distance_matrix(x[0].double().numpy(), inner_dist="euclidean")
    np.testing.assert_allclose(path(x)[0, 0], theirs, rtol=1e-6)


def test_who_leads_whom(path) -> None:
    x = torch.zeros(1, 2, 12)
    x[0, 0, 3] = x[0, 1, 5] = 1.0  # node 0's spike comes two steps before node 1's
    leads = path(x, lag="nonnegative")[0, 1]
    assert leads[0, 1] > 0.9 > 0.5 > leads[1, 0]
    assert path(x)[0, 1, 1, 0] == leads[0, 1]


def test_symmetric_to_the_last_bit_with_ones_on_the_diagonal(path) -> None:
    volume = path(_random(2, 37, 12))
    assert torch.equal(volume, volume.mT)
    diagonal = volume.diagonal(dim1=2, dim2=3)
    assert (diagonal[:, 0] == 0).all()
    torch.testing.assert_close(diagonal[:, 1:], torch.ones(2, 2, 37), atol=1e-6, rtol=0)
    leads = path(_random(2, 37, 12), lag="nonnegative")[:, 1]
    assert torch.equal(torch.maximum(leads, leads.mT), volume[:, 1])


def test_correlations_stay_within_one(path) -> None:
    same = _random(40, 1, 12).expand(40, 6, 12) * torch.tensor([1.0, -1.0, 3.0, 1e-3, 7e5, 1.1]).view(6, 1)
    assert path(same)[:, 1:].abs().max() <= 1.0


def test_rounding_is_no_movement(path) -> None:
    """A constant that went through float32 arithmetic differs by a unit in the last place here and there."""
    x = torch.full((1, 2, 12), 53.7)
    x[0, 0, ::3] = torch.nextafter(x[0, 0, 0], torch.tensor(torch.inf))
    assert (path(x)[:, 1:] == 0).all()


def test_scale_and_offset_do_not_change_the_correlations(path) -> None:
    x = torch.round(_random(1, 9, 12) * 64) / 64  # exact under what follows
    torch.testing.assert_close(path(x * 2.0**40)[:, 1:], path(x)[:, 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(path(x + 1024.0)[:, 1:], path(x)[:, 1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_reading_that_is_not_finite_shows(path, value: float) -> None:
    x = _random(1, 5, 12)
    x[0, 2, 7] = value
    for lag in LAGS:
        broken = path(x, lag=lag).isnan()
        assert broken[:, :, 2].all()
        assert broken[:, :, :, 2].all()
        assert broken.sum() == 3 * 9


def test_dtypes_strides_autocast_and_gradients(path) -> None:
    x = _random(2, 11, 12)
    expected = path(x)
    assert torch.equal(path(x.mT.contiguous().mT), expected)
    assert torch.equal(path(torch.stack([x, -x], -1)[..., 0]), expected)
    assert torch.equal(path(x.double()), expected)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(path(x.to(dtype)), path(x.to(dtype).float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(path(x), expected)
    watched = x.clone().requires_grad_()
    assert not path(watched).requires_grad
    assert torch.equal(watched.detach(), x)


def test_no_windows(path) -> None:
    assert path(torch.zeros(0, 4, 12)).shape == (0, 3, 4, 4)


def test_threads_share_the_work() -> None:
    pytest.importorskip("numba")
    x = _random(3, 50, 12)
    expected = {lag: correlation_volume(x, lag=lag) for lag in LAGS}
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert all(torch.equal(correlation_volume(x, lag=lag), expected[lag]) for lag in LAGS)
    finally:
        torch.set_num_threads(before)


def test_without_numba_torch_takes_over_and_says_so_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr(volume, "find_spec", lambda name: None)
    volume._has_numba.cache_clear()
    try:
        x = _random(2, 5, 12)
        with caplog.at_level(logging.WARNING):
            assert torch.equal(correlation_volume(x), correlation_volume_torch(x))
            correlation_volume(x)
        assert sum("numba" in record.message for record in caplog.records) == 1
    finally:
        volume._has_numba.cache_clear()


@pytest.mark.parametrize("x", [torch.zeros(3, 12), torch.zeros(1, 3, 0), torch.zeros(1, 3, 12, dtype=torch.int64)])
def test_what_is_no_window_is_refused(path, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"needs \(B, N, T\) floats"):
        path(x)


def test_an_unknown_lag_is_refused(path) -> None:
    with pytest.raises(ValueError, match=r"'positive'.*'any' or 'nonnegative'"):
        path(_random(1, 2, 12), lag="positive")


def test_image() -> None:
    volume = correlation_volume(_random(3, 20, 12))
    kept = volume.clone()
    image = correlation_image(volume)
    assert torch.equal(volume, kept)
    assert image.shape == (3, len(CHANNELS), 20, 20)
    for window, scaled in zip(volume.double(), image.double(), strict=True):
        cost = window[0]
        torch.testing.assert_close(scaled[0], (cost - cost.min()) / (cost.max() - cost.min()), atol=1e-6, rtol=0)
        torch.testing.assert_close(scaled[1:], (window[1:] + 1) / 2, atol=1e-6, rtol=0)
    assert image.min() == 0
    assert image.max() == 1


@pytest.mark.parametrize("x", [torch.full((2, 1, 12), 53.7), _random(2, 1, 12), _random(1, 1, 12).expand(2, 4, 12)])
def test_image_of_equal_costs_has_no_dtw(x: Tensor) -> None:
    image = correlation_image(correlation_volume(x))
    assert (image[:, 0] == 0).all()
    assert image.isfinite().all()


@pytest.mark.parametrize("lag", LAGS)
def test_a_compiled_model_sees_the_same(path, lag: str) -> None:
    def see(x: Tensor) -> Tensor:
        return correlation_image(path(2 * x, lag=lag)) + x.mean()

    x = _random(3, 9, 12).requires_grad_()
    compiled = torch.compile(see, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), see(x))
    compiled(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 3.0 * 9 * 9 * 3 / x.numel()))


def test_operators_are_well_formed() -> None:
    from stmodels.correlation import image

    x = _random(2, 5, 12)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(volume._volume, (x, True, False), test_utils=checks)
    torch.library.opcheck(image._image, (correlation_volume(x),), test_utils=checks)


def test_one_graph_serves_every_batch_and_number_of_nodes() -> None:
    from torch._dynamo.testing import CompileCounter

    from stmodels.correlation._recurrence import _channels

    counter = CompileCounter()
    compiled = torch.compile(_channels, backend=counter, dynamic=True, fullgraph=True)
    for batch, nodes in ((2, 5), (3, 8), (4, 4), (2, 21)):
        prepared = volume._prepare(_random(batch, nodes, 6))
        assert torch.equal(compiled(*prepared), _channels(*prepared))
    assert counter.frame_count == 1
