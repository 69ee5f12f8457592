"""What the correlation volume costs beside the rest of an ST-VLM step, and what a network of N nodes needs in memory: `make bench`.

Random weights, 12 steps to 12 steps, fp32, one thread.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from stmodels.correlation import correlation_volume
from stmodels.rng import initialise
from stmodels.st_vlm.config import STVLMConfig
from stmodels.st_vlm.model import STVLM
from stmodels.types import Batch, SeriesInfo

STEPS = 12
BATCHES = {"vilt_test": 32, "vilt_b32": 4}  # the share does not depend on the batch; ViLT-B takes a second a window


def _model(backbone: str, nodes: int) -> STVLM:
    info = SeriesInfo("sensors", (nodes, 1), STEPS, STEPS, 288, 1.0)
    model = STVLM(STVLMConfig(backbone=backbone, weights="random"), info)  # type: ignore[arg-type]
    initialise(model, 0)
    return model


def _batch(nodes: int, size: int) -> Batch:
    torch.manual_seed(0)
    walk = 0.3 * torch.randn(size, 2 * STEPS, nodes, 1).cumsum(1)
    return Batch(walk[:, :STEPS], walk[:, STEPS:], torch.arange(size))


def _step(model: STVLM, batch: Batch) -> Callable[[], None]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        torch.stack(list(model.loss_terms(model(batch), batch).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return step


@pytest.mark.parametrize(("backbone", "nodes"), [("vilt_test", 207), ("vilt_b32", 207), ("vilt_b32", 307)])
def test_volume_in_a_step(backbone: str, nodes: int, in_turns, table) -> None:
    """Targets at N = 207: at most 20 % of a step with the tiny ViLT, 2 % with ViLT-B/32."""
    size = BATCHES[backbone]
    model, batch = _model(backbone, nodes), _batch(nodes, size)
    series = batch.history.squeeze(-1).transpose(1, 2)
    times = in_turns({"volume": lambda: correlation_volume(series), "step": _step(model, batch)}, 3)
    share = f"{100 * times['volume'] / times['step']:.2f} %"
    head = ["backbone", "N", "volume / step", "s a window"]
    table("Correlation volume", head, [[backbone, nodes, share, times["step"] / size]])


_MEASURE = """
import sys, torch
sys.path.insert(0, {folder!r})
from bench_st_vlm import _batch, _model, _step
from stlab.training.device import PeakMemory
torch.set_num_threads(1)
model, batch = _model("vilt_test", {nodes}), _batch({nodes}, {size})
_step(model, _batch({nodes}, 1))()
before = PeakMemory(torch.device("cpu")).bytes()
memory = PeakMemory(torch.device("cpu"))
_step(model, batch)()
print(memory.bytes() - before)
"""


@pytest.mark.parametrize(("nodes", "size"), [(207, 32), (307, 32), (883, 32)])
def test_memory(nodes: int, size: int, table) -> None:
    """What a step adds to the process, beside the formula for what the image alone takes.

    Image: volume B·3·N² floats, and the canvas of S = 32·ceil(N/32) a side before and after W_af, with the gradient of the latter:
    3·B·3·S² floats.
    """
    script = _MEASURE.format(folder=str(__file__.rpartition("/")[0]), nodes=nodes, size=size)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    side = -(-nodes // 32) * 32
    formula = 4 * size * (3 * nodes**2 + 3 * 3 * side**2)
    used = int(done.stdout)
    head = ["N", "B", "GB a step", "of it the image, by formula"]
    table("Memory, tiny ViLT", head, [[nodes, size, used / 1e9, formula / 1e9]])
