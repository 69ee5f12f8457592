"""The recurrent models of grids: the time of a training step beside the same arithmetic in plain torch.

The reference is written as public code writes it: every gate by name, frames in a list, and convolutions of the same sizes. The budget is
1.3 times its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from stmodels.types import REFERENCE
from tests.models.nodes import built, windows

Timed = Callable[[Mapping[str, Callable[[], object]], int], dict[str, float]]
_WIDTH, _BATCH = 32, 8


class PlainPredRNN(nn.Module):
    """PredRNN without folding and scheduled sampling, layer by layer."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 5, 1, 2, bias=False)

        self.width = width
        self.conv_x = nn.ModuleList(conv(width if i else channels, 7 * width) for i in range(4))
        self.conv_h, self.conv_m = (nn.ModuleList(conv(width, n * width) for _ in range(4)) for n in (4, 3))
        self.conv_o = nn.ModuleList(conv(2 * width, width) for _ in range(4))
        self.conv_last = nn.ModuleList(nn.Conv2d(2 * width, width, 1, bias=False) for _ in range(4))
        self.readout = nn.Conv2d(width, channels, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        nothing = frames.new_zeros(len(frames), self.width, *frames.shape[-2:])
        h, c, m, found = [nothing] * 4, [nothing] * 4, nothing, []
        for t in range(11):
            x = frames[:, t] if t < 6 else found[-1]
            for i in range(4):
                i_x, f_x, g_x, i_p, f_p, g_p, o_x = torch.split(self.conv_x[i](x), self.width, 1)
                i_h, f_h, g_h, o_h = torch.split(self.conv_h[i](h[i]), self.width, 1)
                i_m, f_m, g_m = torch.split(self.conv_m[i](m), self.width, 1)
                c[i] = torch.sigmoid(f_x + f_h + 1.0) * c[i] + torch.sigmoid(i_x + i_h) * torch.tanh(g_x + g_h)
                m = torch.sigmoid(f_p + f_m + 1.0) * m + torch.sigmoid(i_p + i_m) * torch.tanh(g_p + g_m)
                memory = torch.cat((c[i], m), 1)
                h[i] = torch.sigmoid(o_x + o_h + self.conv_o[i](memory)) * torch.tanh(self.conv_last[i](memory))
                x = h[i]
            found.append(self.readout(x))
        return torch.stack(found, 1)


class PlainConvLSTM(nn.Module):
    """Both ConvLSTMs of ACFM and what lies between, with a convolution for each gate of each input."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, 1, 1, bias=bias)

        self.begin, self.end, self.out = conv(channels, width), conv(width, width), conv(width, 6 * channels)
        self.units = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.SELU(), conv(width, width), nn.BatchNorm2d(width), nn.SELU(), conv(width, width))
            for _ in range(2)
        )
        self.gates = nn.ModuleList(nn.ModuleList(conv(width, width, n < 4) for n in range(8)) for _ in range(2))
        self.peep = nn.Parameter(torch.zeros(2, 3, width, 16, 8))
        self.attention = nn.ModuleList(nn.Sequential(conv(2 * width, width), nn.SELU(), conv(width, width)) for _ in range(6))

    def lstm(self, n: int, frames: list[Tensor]) -> list[Tensor]:
        h = c = torch.zeros_like(frames[0])
        w, (p_i, p_f, p_o), states = self.gates[n], self.peep[n], []
        for x in frames:
            i = torch.sigmoid(w[0](x) + w[4](h) + p_i * c)
            f = torch.sigmoid(w[1](x) + w[5](h) + p_f * c)
            c = f * c + i * torch.tanh(w[2](x) + w[6](h))
            h = torch.sigmoid(w[3](x) + w[7](h) + p_o * c) * torch.tanh(c)
            states.append(h)
        return states

    def forward(self, frames: Tensor) -> Tensor:
        features = []
        for t in range(6):
            x = self.begin(frames[:, t])
            for unit in self.units:
                x = x + unit(x)
            features.append(self.end(torch.selu(x)))
        states = self.lstm(0, features)
        weighed = [f * (1 + a(torch.cat([f, h], 1))) for f, h, a in zip(features, states, self.attention, strict=True)]
        return self.out(self.lstm(1, weighed)[-1])


@pytest.mark.parametrize(("name", "plain", "width"), [("predrnn", PlainPredRNN, _WIDTH), ("acfm", PlainConvLSTM, 16)])
def test_a_step_beside_plain_torch(name: str, plain: Callable[[int, int], nn.Module], width: int, in_turns: Timed, processor: str) -> None:
    info = REFERENCE["grid"]
    ours, batch, theirs = built(name, info, width=width).train(), windows(info, _BATCH), plain(2, width).train()

    def our_step() -> None:
        ours.zero_grad()
        sum(ours.loss_terms(ours(batch), batch).values()).backward()

    def their_step() -> None:
        theirs.zero_grad()
        theirs(batch.history).square().mean().backward()

    seconds = in_turns({"plain": their_step, "ours": our_step}, 5)
    print(f"\n{name}: a step of ours takes {seconds['ours'] / seconds['plain']:.2f} of plain torch's, on {processor}")
