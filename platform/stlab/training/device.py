"""The device that a worker trains on, and its arithmetic."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable
from typing import Any

import torch

from stmodels.layers.linear import cpu_vendor, linear_kernels

_STATUS, _CLEAR = "/proc/self/status", "/proc/self/clear_refs"


def pick_device(gpus: float | None) -> torch.device:
    """The GPU this process was given, or the CPU. ``None`` means: a GPU if there is one."""
    wanted = torch.cuda.is_available() and (gpus is None or gpus > 0)
    return torch.device("cuda", torch.cuda.current_device()) if wanted else torch.device("cpu")


def pick_precision(wanted: str, device: torch.device) -> str:
    """``auto`` becomes bf16 on a GPU that has it and fp32 elsewhere."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def autocast_for(precision: str, device: torch.device) -> Callable[[], Any]:
    """A context to run the model in: bf16 autocast, or none."""
    if precision == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's and the threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'' if threads == 1 else 's'}"


def arithmetic(device: torch.device) -> str | None:
    """The facts that decide the last digits of a CPU's results: the maker of the processor, the instruction set that PyTorch
    uses, and the library that computes large products. None on a GPU, whose name says it.
    """
    if device.type != "cpu":
        return None
    return f"{cpu_vendor()}, {torch.backends.cpu.get_cpu_capability()}, linear layers by {linear_kernels()}"


class PeakMemory:
    """Peak memory since it was made: allocated on a GPU; resident, of the whole process, on a CPU (Linux; else 0)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif os.path.exists(_CLEAR):
            # Writing 5 resets the peak, so that one trial of a pack does not report another's.
            with contextlib.suppress(OSError), open(_CLEAR, "w", encoding="ascii") as clear:
                clear.write("5")

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        with contextlib.suppress(OSError), open(_STATUS, encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
        return 0
