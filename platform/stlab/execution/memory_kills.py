"""Processes that the kernel killed for want of memory: nothing else tells such a death from any other kill -9."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_COUNTS = Path("/proc/vmstat")


@dataclass(frozen=True)
class MemoryKills:
    """How many there were on a machine since it started, whoever they were: its containers share the count."""

    machine: str
    count: int

    @classmethod
    def here(cls) -> MemoryKills | None:
        """As this machine's kernel says; None where it does not."""
        try:
            counts = dict(line.split() for line in _COUNTS.read_text().splitlines())
            return cls(_BOOT.read_text().strip(), int(counts["oom_kill"]))
        except (OSError, KeyError, ValueError):
            return None
