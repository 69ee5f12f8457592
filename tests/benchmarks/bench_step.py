"""A training step of ST-VFM against the time of its FLOPs, and what its parts cost: `make bench`.

Backbone DINOv2-S with random weights, batches of 16, grids of 2 channels and 16×8 cells, 6 steps to 6 steps, one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stmodels.rng import initialise
from stmodels.st_vfm.config import STVFMConfig
from stmodels.st_vfm.model import STVFM
from stmodels.types import Batch, SeriesInfo

BATCH, STEPS, SHAPE = 16, 6, (2, 16, 8)
INFO = SeriesInfo("grid", SHAPE, STEPS, STEPS, 48, 1.0)
VARIANTS = {"#4, one branch": {"flow": False, "cross_prompt_layers": 0}, "full": {}}
CPU_HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _model(**options: object) -> STVFM:
    model = STVFM(STVFMConfig(weights="random", **options), INFO)  # type: ignore[arg-type]
    initialise(model, 0)
    return model


def _batch() -> Batch:
    torch.manual_seed(0)
    return Batch(torch.randn(BATCH, STEPS, *SHAPE), torch.randn(BATCH, STEPS, *SHAPE), torch.arange(BATCH))


def _step(model: STVFM, precision: str = "fp32") -> Callable[[], None]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    batch = _batch()

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.stack(list(model.loss_terms(model(batch), batch).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return step


def _pass(model: STVFM, tokens: Tensor) -> Callable[[], None]:
    """Forward and backward through the backbone."""
    grad = torch.randn_like(tokens)

    def run() -> None:
        model.backbone(tokens).backward(grad)

    return run


def _tokens(model: STVFM, batch: int) -> Tensor:
    rows, columns = model.geometry.tokens_hw
    return torch.randn(batch, model.geometry.frames, rows * columns, model.backbone.width, requires_grad=True)


def test_step(in_turns, large_products, seconds_of_flops, count_flops, table) -> None:
    """Targets: at most 1.15 times the time of its FLOPs; bf16 at least twice as fast where the CPU has it."""
    rows = []
    for variant, options in VARIANTS.items():
        model = _model(**options)
        steps = {"fp32": _step(model)} | ({"bf16": _step(model, "bf16")} if CPU_HAS_BF16 else {})
        times = in_turns(steps | large_products, 5)
        flops = count_flops(steps["fp32"])
        backbone = count_flops(_pass(model, _tokens(model, BATCH * (2 if model.config.flow else 1))))
        ideal = seconds_of_flops(flops, times)
        gain = times["fp32"] / times["bf16"] if CPU_HAS_BF16 else "no avx512_bf16"
        rows.append([variant, flops / 1e9, backbone / flops, *(times["fp32"] / t for t in ideal.values()), gain])
    at_rates = (f"time / FLOPs at {name}" for name in ideal)
    table("Training step", ["variant", "GFLOP", "backbone's share", *at_rates, "fp32 / bf16"], rows)


def test_gathering(in_turns, table) -> None:
    """Target: gathering a batch takes less than 1 % of a step."""
    from stlab.data import load_dataset
    from stlab.study.spec import DataSpec

    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "nycbike1.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    windows = load_dataset(DataSpec(path=str(path))).windows("train")
    index = torch.randint(len(windows), (BATCH,))
    times = in_turns({"gather": lambda: windows.gather(index), "step": _step(_model(**VARIANTS["#4, one branch"]))}, 5)
    table("Windows", ["gathering / smallest step"], [[times["gather"] / times["step"]]])


def test_stacked_branches(in_turns, table) -> None:
    """Both branches through the backbone in one stacked pass, against a pass each."""
    model = _model()
    stacked, single = _pass(model, _tokens(model, 2 * BATCH)), _pass(model, _tokens(model, BATCH))

    def twice() -> None:
        single()
        single()

    times = in_turns({"stacked": stacked, "twice": twice}, 5)
    table("Backbone, forward and backward", ["stacked pass / two passes"], [[times["stacked"] / times["twice"]]])
