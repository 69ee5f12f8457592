"""SSTBAN (Guo et al., ICDE 2023).

Legend: B batch, T steps, P history, Q horizon, N nodes, D width, h heads, r reference points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.graph.sstban_config import SSTBANConfig
from stmodels.layers.batch_norm import NormedLinear, held_statistics
from stmodels.layers.calendar import slot_and_day
from stmodels.layers.losses import mean_squared
from stmodels.types import Batch, Forecast, SeriesInfo


class Attention(nn.Module):
    """Attention of queries (…, X, ·) to keys and values (…, Y, ·): (…, X, outputs). All four maps are linear, BatchNorm, ReLU."""

    def __init__(self, queries: int, keys: int, values: int, outputs: int, config: SSTBANConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.query, self.key, self.value = (NormedLinear(inputs, width) for inputs in (queries, keys, values))
        self.output = NormedLinear(width, outputs)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> Tensor:
        """``visible`` (…, Y) bool: the keys that are seen; None means all."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in (self.query(x), self.key(keys), self.value(values)))
        scores = q @ k.mT * k.shape[-1] ** -0.5  # the original divides by √8 whatever the width of a head
        if visible is not None:
            # A query that sees nothing weighs all alike, so that its answer stays finite.
            scores = scores.masked_fill(~visible[..., None, None, :], torch.finfo(scores.dtype).min)
        return self.output((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))


class Bottleneck(nn.Module):
    """Y = MHA(X̂, H) with H = MHA(I, X̂): X̂ (B, M, L, 2D) asks r reference points, I (M, r, 2D), instead of all L → (B, M, L, D)."""

    def __init__(self, groups: int, config: SSTBANConfig) -> None:
        super().__init__()
        both = 2 * config.width
        self.references = nn.Parameter(torch.empty(groups, config.references, both))
        self.gather = Attention(both, both, both, both, config)
        self.spread = Attention(both, both, both, config.width, config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.references)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        references = self.references.expand(len(x), -1, -1, -1)
        gathered = self.gather(references, x, x, visible)
        return self.spread(x, gathered, gathered)


class Block(nn.Module):
    """X + Y_S + Y_T, attention over the nodes of a step and over the steps of a node, both of [X ‖ STE]: (B, T, N, D) → same."""

    def __init__(self, steps: int, nodes: int, config: SSTBANConfig) -> None:
        super().__init__()
        self.over_nodes = Bottleneck(steps, config)
        # The reference points of time lie side by side for all nodes, (r, N, 2D) in the paper.
        self.over_time = Bottleneck(nodes, config)

    def forward(self, x: Tensor, embedding: Tensor, visible: Tensor | None = None) -> Tensor:
        """``visible`` (B, T, N) bool: tokens that others may see; None means all."""
        told = torch.cat([x, embedding], dim=-1)
        across = self.over_nodes(told, visible)
        along = self.over_time(told.transpose(1, 2), None if visible is None else visible.transpose(1, 2))
        return x + across + along.transpose(1, 2)


class SSTBAN(Forecaster):
    """Encoder, attention from the steps ahead to those of the history, decoder. N is fixed by node embeddings and reference points.

    A second, masked pass in training has to find the latent of the first one. It leaves the forecast alone. Its BatchNorms use the
    statistics of the batch, as the first pass does, and keep them out of the running ones.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: SSTBANConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config, self.history = config, info.history
        self.slots_per_day = info.slots_per_day or 0
        nodes, width = info.shape[0], config.width
        self.value = _two(1, width, width)
        self.calendar = _two(7 + self.slots_per_day, width, width)
        self.node = nn.Parameter(torch.empty(nodes, width))
        self.encoder = nn.ModuleList(Block(info.history, nodes, config) for _ in range(config.layers))
        self.transform = Attention(width, width, width, width, config)
        self.decoder = nn.ModuleList(Block(info.horizon, nodes, config) for _ in range(config.layers))
        self.readout = _two(width, width, 1)
        if config.latent_weight:
            self.mask_token = nn.Parameter(torch.empty(width))
            self.restore = Block(info.history, nodes, config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.node)
        if self.config.latent_weight:
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, batch: Batch) -> Forecast:
        embedding = self.embedding(batch)
        before, ahead = embedding.split([self.history, embedding.shape[1] - self.history], dim=1)
        latent = self.encode(batch.history, before)
        # Steps ahead ask the steps of the history, node by node.
        asked = (t.transpose(1, 2) for t in (ahead, before, latent))
        states = self.transform(*asked).transpose(1, 2)
        for block in self.decoder:
            states = block(states, ahead)
        return Forecast(self.readout(states), {"latent": latent, "embedding": before})

    def embedding(self, batch: Batch) -> Tensor:
        """STE, the sum of node and calendar, for history and horizon: (B, P + Q, N, D)."""
        assert batch.history_slot is not None
        assert batch.target_slot is not None
        slot, day = slot_and_day(torch.cat([batch.history_slot, batch.target_slot], dim=1), self.slots_per_day)
        marks = torch.cat([F.one_hot(day, 7), F.one_hot(slot, self.slots_per_day)], dim=-1)
        return self.calendar(marks.to(batch.history.dtype))[:, :, None] + self.node

    def encode(self, history: Tensor, embedding: Tensor, visible: Tensor | None = None) -> Tensor:
        x = self.value(history)
        for block in self.encoder:
            x = block(x, embedding, visible)
        return x

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        """The error of the forecast, and with λ that of the masked pass's latent."""
        terms = super().loss_terms(forecast, batch)
        if self.config.latent_weight and forecast.aux is not None:
            target, embedding = forecast.aux["latent"], forecast.aux["embedding"]
            with held_statistics(self):
                restored = self.restored(batch.history, embedding, self.draw_visible(batch.history))
            terms["latent"] = mean_squared(restored - (target.detach() if self.config.detach_target else target), None)
        return terms

    def draw_visible(self, history: Tensor) -> Tensor:
        """Which tokens stay visible, (B, P, N): patches of time of each node are hidden at the mask rate."""
        b, p, n, _ = history.shape
        patches = torch.rand(b, p // self.config.mask_length, n, device=history.device) >= self.config.mask_rate
        return patches.repeat_interleave(self.config.mask_length, dim=1)

    def restored(self, history: Tensor, embedding: Tensor, visible: Tensor) -> Tensor:
        """The latent as the masked pass has it: hidden tokens are seen by none, and start from the mask token in one further block."""
        latent = self.encode(history, embedding, visible)
        return self.restore(torch.where(visible[..., None], latent, self.mask_token.to(latent.dtype)), embedding)


def _two(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(NormedLinear(inputs, width), NormedLinear(width, outputs, has_relu=False))
