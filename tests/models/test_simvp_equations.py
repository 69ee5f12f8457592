"""SimVP and TAU against their equations: TAU's attention, the shell's skip connection, and the U-net of the first version."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.video.blocks import GatedAttention, InceptionUNet, TemporalAttention
from stmodels.video.simvp import SimVPShell
from tests.models.grids import grid_info
from tests.models.nodes import small, windows


def mixed(attention: GatedAttention | TemporalAttention, u: Tensor) -> Tensor:
    """1×1 of depthwise 7×7, dilation 3, of depthwise 5×5: what both attentions begin with."""
    near, far, mix = attention.near, attention.far, attention.mix
    h = F.conv2d(u, near.weight, near.bias, padding=2, groups=u.shape[1])
    h = F.conv2d(h, far.weight, far.bias, padding=9, dilation=3, groups=u.shape[1])
    return F.conv2d(h, mix.weight, mix.bias)


def test_gated_attention_is_its_equation() -> None:
    torch.manual_seed(0)
    attention = GatedAttention(4).double()
    u = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    both = mixed(attention, u)
    torch.testing.assert_close(attention(u), both[:, :4] * torch.sigmoid(both[:, 4:]))


def test_temporal_attention_is_its_equation() -> None:
    torch.manual_seed(0)
    attention = TemporalAttention(16).double()
    u = torch.randn(2, 16, 9, 9, dtype=torch.float64)
    k = mixed(attention, u)
    v = torch.sigmoid(torch.relu(u.mean((2, 3)) @ attention.squeeze.weight.T) @ attention.excite.weight.T)
    torch.testing.assert_close(attention(u), k * v[:, :, None, None] * u)


class Kept(nn.Module):
    """Gives back a constant, and keeps what it was given."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.given = answer, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        return self.answer


def test_the_first_layer_of_a_frame_is_added_before_the_last_of_its_decoder() -> None:
    model, batch = small("simvp", grid_info((2, 8, 6))), windows(grid_info((2, 8, 6)))
    assert isinstance(model, SimVPShell)
    model.eval()
    b, p = batch.history.shape[:2]
    frames = batch.history.flatten(0, 1)
    first = model.encoder[0](frames)
    encoded = first
    for layer in model.encoder[1:]:
        encoded = layer(encoded)
    translated = torch.randn(b, p * encoded.shape[1], *encoded.shape[2:])
    model.translator = kept = Kept(translated)
    found = model.next_frames(batch.history)
    torch.testing.assert_close(kept.given, encoded.reshape(translated.shape))
    decoded = translated.reshape(encoded.shape)
    for layer in model.decoder[:-1]:
        decoded = layer(decoded)
    torch.testing.assert_close(found, model.readout(model.decoder[-1](decoded + first)).reshape(batch.history.shape))


class Named(nn.Module):
    """A layer that writes down whom it reads: every channel of its answer is its own number."""

    def __init__(self, number: float, width: int, read: dict[float, list[float]]) -> None:
        super().__init__()
        self.number, self.width, self.read = number, width, read

    def forward(self, x: Tensor) -> Tensor:
        self.read[self.number] = x[0].flatten(1).mean(1).unique().tolist()
        return x.new_full((len(x), self.width, *x.shape[2:]), self.number)


def test_the_unet_reads_the_layers_down_from_the_last_but_one_to_the_first() -> None:
    net, read = InceptionUNet(6, 4, 3), {}
    for number in range(3):
        net.down[number] = Named(float(number + 1), 4, read)
        net.up[number] = Named(float(number + 11), 4, read)
    net(torch.zeros(1, 6, 5, 5))
    assert read == {1: [0], 2: [1], 3: [2], 11: [3], 12: [2, 11], 13: [1, 12]}
