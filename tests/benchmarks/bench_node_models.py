"""The recurrent and graph models of sensor networks: the time of a training step beside the same arithmetic in plain torch, and memory.

The reference is written as a straightforward implementation would be: ``nn.Conv2d`` over (B, c, N, T), one einsum a support, nodes' weights
made in every step of the recurrence. The budget is 1.3 times its time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.types import REFERENCE, SeriesInfo, ring
from tests.models.nodes import built, windows

_NODES, _BATCH = 207, 16


def _info(nodes: int = _NODES) -> SeriesInfo:
    return REFERENCE["sensors"]._replace(shape=(nodes, 1), adjacency=ring(nodes))


def _seconds(step: Callable[[], None], times: int = 3) -> float:
    step()
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - started)
    return best


class PlainWaveNet(nn.Module):
    """Graph WaveNet as its equations, in (B, c, N, T)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.supports = model.given
        self.e1, self.e2 = (nn.Parameter(p.detach().clone()) for p in (model.learnt.sources, model.learnt.targets))
        self.start = nn.Conv2d(2, 32, 1)
        self.dilations = [1, 2] * 4
        self.filters, self.gates = (nn.ModuleList(nn.Conv2d(32, 32, (1, 2), dilation=(1, d)) for d in self.dilations) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv2d(32, 256, 1) for _ in self.dilations)
        self.mixes = nn.ModuleList(nn.Conv2d(7 * 32, 32, 1) for _ in self.dilations[1:])
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in self.dilations[1:])
        self.end1, self.end2 = nn.Conv2d(256, 512, 1), nn.Conv2d(512, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(F.pad(x, (1, 0)))
        learnt = F.softmax(F.relu(self.e1 @ self.e2), dim=1)
        skip: Tensor | None = None
        for i, (f, g, s) in enumerate(zip(self.filters, self.gates, self.skips, strict=True)):
            h = torch.tanh(f(x)) * torch.sigmoid(g(x))
            s_now = s(h)
            skip = s_now if skip is None else s_now + skip[..., -s_now.shape[-1] :]
            if i == len(self.dilations) - 1:
                break
            terms = [h]
            for a in (*self.supports, learnt):
                one = torch.einsum("ncvl,vw->ncwl", h, a)
                terms += [one, torch.einsum("ncvl,vw->ncwl", one, a)]
            y = F.dropout(self.mixes[i](torch.cat(terms, 1)), 0.3, self.training)
            x = self.norms[i](y + x[..., -y.shape[-1] :])
        assert skip is not None
        return self.end2(F.relu(self.end1(F.relu(skip))))


class PlainRecurrence(nn.Module):
    """AGCRN as its equations: weights and supports made in each step, everything in (B, N, c)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.e = nn.Parameter(model.nodes.detach().clone())
        self.pools = nn.ParameterList(nn.Parameter(p.detach().clone()) for cell in model.cells for p in cell.parameters())
        self.head = nn.Linear(64, 12)

    def _convolve(self, x: Tensor, pool: Tensor, bias: Tensor) -> Tensor:
        network = F.softmax(F.relu(self.e @ self.e.T), dim=1)
        supports = torch.stack([torch.eye(len(network)), network])
        both = torch.einsum("knm,bmc->bknc", supports, x).permute(0, 2, 1, 3)
        return torch.einsum("bnki,nkio->bno", both, torch.einsum("nd,dkio->nkio", self.e, pool)) + self.e @ bias

    def forward(self, x: Tensor) -> Tensor:
        states = [x[:, t] for t in range(x.shape[1])]
        for layer in range(2):
            gate, gate_bias, candidate, candidate_bias = self.pools[4 * layer : 4 * layer + 4]
            h, out = x.new_zeros(len(x), x.shape[2], 64), []
            for step in states:
                z, r = torch.sigmoid(self._convolve(torch.cat([step, h], -1), gate, gate_bias)).chunk(2, -1)
                proposed = torch.tanh(self._convolve(torch.cat([step, z * h], -1), candidate, candidate_bias))
                h = r * h + (1 - r) * proposed
                out.append(h)
            states = out
        return self.head(states[-1])


class PlainSandwich(nn.Module):
    """STGCN as its equations, in (B, c, T, N)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.polynomials = model.blocks[0].graph.polynomials
        widths = [(1, 64), (16, 64), (64, 64), (16, 64), (64, 128)]
        kernels = [3, 3, 3, 3, 4]
        self.convs = nn.ModuleList(nn.Conv2d(c, 2 * d, (k, 1)) for (c, d), k in zip(widths, kernels, strict=True))
        self.aligns = nn.ModuleList(nn.Conv2d(64, 16, 1) for _ in range(2))
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(3, 16, 16) * 0.1) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm([_NODES, width]) for width in (64, 64, 128))
        self.fc1, self.fc2 = nn.Linear(128, 128), nn.Linear(128, 12)

    def _gate(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        p, q = conv(x).chunk(2, 1)
        residual = x[:, :, conv.kernel_size[0] - 1 :]
        residual = torch.cat([residual, residual.new_zeros(len(x), p.shape[1] - x.shape[1], *residual.shape[2:])], 1)
        return (p + residual) * torch.sigmoid(q)

    def forward(self, x: Tensor) -> Tensor:
        for block in range(2):
            x = self.aligns[block](self._gate(x, self.convs[2 * block]))
            y = torch.einsum("khi,btij->bthj", self.polynomials, torch.einsum("bcti,kcd->btid", x, self.weights[block])).permute(0, 3, 1, 2)
            x = self._gate(F.relu(y + x), self.convs[2 * block + 1])
            x = F.dropout(self.norms[block](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 0.5, self.training)
        x = self.norms[2](self._gate(x, self.convs[4]).permute(0, 2, 3, 1))
        return self.fc2(F.relu(self.fc1(x)))


@pytest.mark.parametrize(("name", "plain"), [("graph_wavenet", PlainWaveNet), ("agcrn", PlainRecurrence), ("stgcn", PlainSandwich)])
def test_a_step_beside_plain_torch(name: str, plain: Callable[[Forecaster], nn.Module]) -> None:
    info = _info()
    ours, batch = built(name, info).train(), windows(info, _BATCH)
    theirs = plain(ours).train()
    x = batch.history.permute(0, 3, 2, 1) if name == "graph_wavenet" else batch.history.permute(0, 3, 1, 2)
    x = torch.cat([x, x], 1) if name == "graph_wavenet" else batch.history if name == "agcrn" else x

    def our_step() -> None:
        ours.zero_grad()
        ours.loss_terms(ours(batch), batch)["forecast"].backward()

    def their_step() -> None:
        theirs.zero_grad()
        theirs(x).abs().mean().backward()

    plain_seconds, seconds = _seconds(their_step), _seconds(our_step)
    print(f"{name:14} plain torch {plain_seconds:.3f} s, ours {seconds:.3f} s, ratio {seconds / plain_seconds:.2f}")


_MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
from tests.models.nodes import built, windows
from stmodels.types import REFERENCE, ring
name, nodes, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
info = REFERENCE["sensors"]._replace(shape=(nodes, 1), adjacency=ring(nodes))
fields = {"weights": "random"} if name in ("ofa", "st_llm", "stg_llm", "std_plm") else {}
model = built(name, info, **fields).train()
past = model.config.past(info) if name == "std_mae" else 0
from stlab.inspection.contract import random_batch
batch = random_batch(info, size, past=past)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model.loss_terms(model(batch), batch)["forecast"].backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("nodes", [307, 883])
@pytest.mark.parametrize(
    "name",
    ["tcn", "patchtst", "itransformer", "stgcn", "astgcn", "graph_wavenet", "agcrn", "sstban", "pdformer", "staeformer", "st_llm"],
)
def test_memory_of_a_step(name: str, nodes: int) -> None:
    """Of four windows, which is an eighth of a batch of 32: a whole one has no room on most machines without a GPU."""
    found = subprocess.run([sys.executable, "-c", _MEMORY, name, str(nodes), "4"], capture_output=True, text=True, check=True)
    print(f"{name:14} N = {nodes}, B = 4: {float(found.stdout):,.0f} MB beyond the model; B = 32 about eight times that")
