"""The correlation volume against libraries, one CPU thread, T = 12: `make bench`.

dtaidistance, aeon and tslearn are no dependencies: what is not installed is left out. Their DTW is in float64, and each in its
own unit (dtaidistance's is ours with `inner_dist="euclidean"`, which takes it no longer).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from stmodels.correlation import correlation_image, correlation_volume, correlation_volume_torch

pytest.importorskip("numba")

STEPS = 12
WINDOWS = 8  # computed by ours in a call; the libraries have no batches, and are given one window
Calls = dict[str, Callable[[], object]]


def _series(windows: int, nodes: int) -> torch.Tensor:
    return torch.randn(windows, nodes, STEPS, generator=torch.Generator().manual_seed(0))


def _library_dtw(x: np.ndarray) -> Calls:
    """All pairs of x (N, T) by each library that is installed, in float64 and one thread."""
    calls: Calls = {}
    series = x.astype(np.float64)
    for name, module, call in (
        ("dtaidistance", "dtaidistance.dtw", lambda m: m.distance_matrix_fast(series, parallel=False)),
        ("aeon", "aeon.distances", lambda m: m.dtw_pairwise_distance(series[:, None])),
        ("tslearn", "tslearn.metrics", lambda m: m.cdist_dtw(series)),
    ):
        try:
            library = import_module(module)
        except ImportError:
            continue
        calls[name] = lambda call=call, library=library: call(library)
    if not calls:
        pytest.skip("none of dtaidistance, aeon and tslearn is installed")
    return calls


def _lagged_products(x: torch.Tensor) -> torch.Tensor:
    """The largest lagged cross-correlation of (N, T) by a matrix product for each lag."""
    unit = x - x.mean(-1, keepdim=True)
    unit = unit / unit.norm(dim=-1, keepdim=True)
    largest = unit @ unit.t()
    for lag in range(1, STEPS):
        torch.maximum(largest, unit[:, : STEPS - lag] @ unit[:, lag:].t(), out=largest)
    return torch.maximum(largest, largest.t())


def _spectra(x: np.ndarray) -> np.ndarray:
    return np.corrcoef(np.abs(np.fft.rfft(x - x.mean(-1, keepdims=True)))[:, 1:])


def _ms(seconds: float, windows: int = 1) -> str:
    return f"{1e3 * seconds / windows:.2f}"


def test_dtw_of_all_pairs(in_turns, table) -> None:
    """DTW alone, which ours computes together with the rest: the whole volume is what is timed."""
    nodes = 307
    x = _series(WINDOWS, nodes)
    ours = {"ours, whole volume": lambda: correlation_volume(x), "ours, DTW": _dtw_alone(x)}
    times = in_turns(_library_dtw(x[0].numpy()) | ours, 5)
    per_window = {name: seconds / (WINDOWS if name in ours else 1) for name, seconds in times.items()}
    rows = [[name, _ms(t), *(t / per_window[mine] for mine in ours)] for name, t in per_window.items()]
    table(f"DTW of all pairs, N = {nodes}", ["by", "ms a window", *(f"time / {mine}" for mine in ours)], rows)


def test_whole_volume(in_turns, table) -> None:
    """Against the fastest DTW of a library, a matrix product for each lag in float32 and NumPy's correlation."""
    rows = []
    for nodes in (207, 307, 883):
        x = _series(WINDOWS, nodes)
        volume = correlation_volume(x)
        dtw = _library_dtw(x[0].numpy())
        if len(dtw) > 1:
            dtw.pop("tslearn", None)  # never the fastest
        rest: Calls = {"products": lambda x=x: _lagged_products(x[0]), "spectra": lambda x=x: _spectra(x[0].numpy())}
        ours: Calls = {
            "volume": lambda x=x: correlation_volume(x),
            "torch": lambda x=x: correlation_volume_torch(x),
            "image": lambda volume=volume: correlation_image(volume),
        }
        times = in_turns(dtw | rest | ours, 5)
        best = min(dtw, key=lambda name, times=times: times[name])
        libraries = times[best] + times["products"] + times["spectra"]
        rows.append([nodes, best, _ms(libraries), *(_ms(times[name], WINDOWS) for name in ours)])
        rows[-1].append(libraries * WINDOWS / times["volume"])
    head = ["N", "DTW by", "libraries, ms", "ours, ms", "ours in torch, ms", "image, ms", "libraries / ours"]
    table("The whole volume, a window", head, rows)


def test_memory(table) -> None:
    """A batch of 32: the volume is B·3·N²·4 bytes, the image as much, the kernel's input B·(2T + T//2)·N·4 bytes.

    A canvas of S × S, S = N rounded up to 32 and at least 384, takes another B·3·S²·4 bytes in the model.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")
    batch, rows = 32, []
    for nodes in (307, 883):
        command = [sys.executable, "-c", _PEAKS, str(batch), str(nodes), str(STEPS)]
        grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        side = max(384, -(-nodes // 32) * 32)
        rows.append([nodes, *(f"{batch * 3 * edge**2 * 4 / 2**20:.1f}" for edge in (nodes, side)), *grown])
    head = ["N", "B·3·N²·4", "canvas B·3·S²·4", "peak grew by, volume", "then by, image"]
    table("Memory of a batch of 32, MiB", head, rows)


# In a process of its own, since a peak does not come down again; a first, small volume loads the kernel.
_PEAKS = """
import re, sys, torch
from stmodels.correlation import correlation_image, correlation_volume
batch, nodes, steps = map(int, sys.argv[1:])
torch.set_num_threads(1)
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
correlation_image(correlation_volume(torch.randn(1, 20, steps)))
x = torch.randn(batch, nodes, steps)
before = peak()
volume = correlation_volume(x)
after = peak()
image = correlation_image(volume)
print(round(after - before, 1), round(peak() - after, 1))
"""


def _dtw_alone(x: torch.Tensor) -> Callable[[], object]:
    """The kernel with nothing but DTW in it."""
    from numba import njit

    from stmodels.correlation import _tiles

    lanes, block, write = _tiles._LANES, _tiles._dtw, _tiles._write

    @njit(nogil=True)
    def fill(steps, planes, volume):
        nodes = volume.shape[1]
        cost = np.empty((lanes, lanes), np.float32)
        for b in range(volume.shape[0]):
            for i in range(0, nodes, lanes):
                for j in range(i, nodes, lanes):
                    for k in range(min(lanes, nodes - i)):
                        block(steps, planes[b], i + k, j, cost, k)
                    write(cost, cost, volume[b], i, j)

    def run() -> None:
        planes = _tiles._planes(x)
        fill(tuple(range(STEPS)), planes, np.empty((x.shape[0], x.shape[1], x.shape[1]), np.float32))

    return run
