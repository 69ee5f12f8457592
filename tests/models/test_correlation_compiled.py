"""The recurrence as TorchInductor compiles it."""

from __future__ import annotations

import shutil

import pytest
import torch

from stmodels.correlation._recurrence import _INDUCTOR_OPTIONS, _channels
from stmodels.correlation.volume import _prepare


@pytest.mark.slow
def test_cells_of_the_recurrence_stay_in_registers() -> None:
    """One buffer for the result and at most one more, however many cells there are."""
    from torch._inductor.utils import run_and_get_code

    if shutil.which("g++") is None:
        pytest.skip("TorchInductor needs a C++ compiler on CPUs")
    prepared = _prepare(torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(0)))
    compiled = torch.compile(_channels, dynamic=True, options=_INDUCTOR_OPTIONS)
    volume, sources = run_and_get_code(compiled, *prepared)
    torch.testing.assert_close(volume, _channels(*prepared), atol=1e-6, rtol=1e-6)
    assert len(sources) == 1
    assert sources[0].count(" = empty_strided_cpu((") <= 2
