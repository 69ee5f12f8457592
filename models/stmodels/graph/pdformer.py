"""PDFormer (Jiang et al., AAAI 2023).

Legend: B batch, P history, Q horizon, N nodes, D width, h heads, e width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from stmodels.base import Forecaster
from stmodels.correlation import dtw_distances
from stmodels.errors import ConfigError
from stmodels.graph.pdformer_config import PDFormerConfig
from stmodels.layers.calendar import CalendarTables
from stmodels.layers.graph import laplacian_eigenvectors, within_hops
from stmodels.layers.linear import Linear
from stmodels.layers.positions import sinusoid
from stmodels.layers.time_conv import pad_past, shifted
from stmodels.types import Batch, Forecast, Readings, SeriesInfo, with_inputs

_MOST_PIECES = 50_000  # of which the patterns are the means


class Heads(nn.Module):
    """Attention of some heads among the last but one axis: (B, M, L, D) → (B, M, L, h·e)."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * heads * head_width)

    def forward(self, x: Tensor, mask: Tensor | None = None, to_keys: Tensor | None = None) -> Tensor:
        """``mask`` (L, L) bool says which tokens a token sees, and ``to_keys`` (B, M, L, h·e) is added to the keys."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k = k if to_keys is None else k + to_keys
        # With more than four axes PyTorch would build all scores, (L, L) for each step and head.
        q, k, v = (t.unflatten(-1, (self.heads, -1)).flatten(0, -4).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2).unflatten(0, x.shape[:-2])


class Patterns(nn.Module):
    """softmax(q Kᵀ / √e) V: what the patterns say of each node's last steps, for the keys of the near heads."""

    def __init__(self, width: int, outputs: int, head_width: int) -> None:
        super().__init__()
        self.scale = head_width**-0.5
        self.query, self.key, self.value = (Linear(width, outputs) for _ in range(3))

    def forward(self, pieces: Tensor, patterns: Tensor) -> Tensor:
        """pieces (B, P, N, D) and patterns (K, D), both embedded → (B, P, N, outputs)."""
        weights = (self.query(pieces) @ self.key(patterns).T * self.scale).softmax(-1)
        return weights @ self.value(patterns)


class Layer(nn.Module):
    """Pre-norm: x + heads over near nodes, similar nodes and time; then x + MLP. (B, P, N, D) → same."""

    def __init__(self, config: PDFormerConfig, skipped: float) -> None:
        super().__init__()
        width, e = config.width, config.head_width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time = Heads(width, config.time_heads, e)
        self.near = Heads(width, config.near_heads, e)
        self.similar = Heads(width, config.similar_heads, e)
        self.patterns = Patterns(width, config.near_heads * e, e)
        self.project = nn.Sequential(Linear(width, width), nn.Dropout(config.dropout))
        self.mlp = nn.Sequential(
            Linear(width, config.mlp_ratio * width), nn.GELU(), nn.Dropout(config.dropout),
            Linear(config.mlp_ratio * width, width), nn.Dropout(config.dropout),
        )  # fmt: skip
        self.skip = StochasticDepth(skipped, "row")

    def forward(self, x: Tensor, pieces: Tensor, patterns: Tensor, near: Tensor, similar: Tensor) -> Tensor:
        y = self.norm1(x)
        along = self.time(y.transpose(1, 2)).transpose(1, 2)
        heads = [along, self.near(y, near, self.patterns(pieces, patterns)), self.similar(y, similar)]
        x = x + self.skip(self.project(torch.cat(heads, dim=-1)))
        return x + self.skip(self.mlp(self.norm2(x)))


class PDFormer(Forecaster):
    """Layers over (step, node) tokens, each of which adds to a skip connection; that is mapped from history to horizon.

    Which nodes are similar, and the patterns, come from the train segment. No weight belongs to a node, so N is free.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: PDFormerConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        assert info.adjacency is not None
        self.config = config
        self.slots_per_day = info.slots_per_day
        width, nodes = config.width, info.shape[0]
        self.register_buffer("near", within_hops(info.adjacency, config.hops - 1), persistent=False)
        self.register_buffer("places", laplacian_eigenvectors(info.adjacency, config.eigenvectors), persistent=False)
        self.register_buffer("steps", sinusoid(info.history, width), persistent=False)
        self.register_buffer("similar", torch.eye(nodes, dtype=torch.bool))
        self.register_buffer("patterns", torch.zeros(config.patterns, config.pattern_length))
        self.reading = Linear(1 + info.inputs, width)
        self.calendar = CalendarTables(info.slots_per_day if config.calendar else None, width, width)
        self.place = Linear(config.eigenvectors, width)
        self.piece = Linear(config.pattern_length, width)
        depths = torch.linspace(0, config.stochastic_depth, config.layers, device="cpu").tolist()
        self.layers = nn.ModuleList(Layer(config, skipped) for skipped in depths)
        self.skips = nn.ModuleList(Linear(width, config.skip_width) for _ in depths)
        self.ahead = Linear(info.history, info.horizon)
        self.readout = Linear(config.skip_width, 1)

    def prepare(self, train: Readings) -> dict[str, Tensor]:
        """Similar nodes by the warped distance of their mean days, and patterns as the centres of short pieces of the first days.

        Raises:
            ConfigError: there are fewer different pieces than patterns.
        """
        values, seen = train.values[..., 0], None if train.mask is None else train.mask[..., 0]
        return {
            "similar": nearest(dtw_distances(_mean_day(values, seen, train.slot, self.slots_per_day).T), self.config.similar),
            "patterns": self._centres(values, seen),
        }

    def forward(self, batch: Batch) -> Forecast:
        x = self.embed(batch)
        pieces, patterns = self.piece(self.last_steps(batch.history)), self.piece(self.patterns)
        skip = x.new_zeros(())
        for layer, to_skip in zip(self.layers, self.skips, strict=True):
            x = layer(x, pieces, patterns, self.near, self.similar)
            skip = skip + to_skip(x)
        ahead = self.ahead(skip.relu().transpose(1, 3)).relu()  # (B, c, N, Q)
        return Forecast(self.readout(ahead.transpose(1, 3)))

    def embed(self, batch: Batch) -> Tensor:
        """Reading + step + slot of the day + day of the week + place, (B, P, N, D)."""
        slot, day = self.calendar(batch.history_slot, batch.history).chunk(2, dim=-1)
        places = self.places
        if self.training and self.config.flip_signs:
            places = places * (torch.rand(places.shape[1], device=places.device) < 0.5).to(places.dtype).mul(2).sub(1)
        return self.reading(with_inputs(batch)) + (slot + day + self.steps)[:, :, None] + self.place(places)

    def last_steps(self, history: Tensor) -> Tensor:
        """The last readings up to each step, filled up with zeros at the start: (B, P, N, 1) → (B, P, N, pattern_length)."""
        length = self.config.pattern_length
        return shifted(pad_past(history, length - 1), length)

    def _centres(self, values: Tensor, seen: Tensor | None) -> Tensor:
        from scipy.cluster.vq import kmeans2

        first = values[: (self.slots_per_day or len(values)) * self.config.pattern_days]
        pieces = first.unfold(0, self.config.pattern_length, 1).flatten(0, 1)
        if seen is not None:
            pieces = pieces[seen[: len(first)].unfold(0, self.config.pattern_length, 1).flatten(0, 1).all(1)]
        chosen = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))[:_MOST_PIECES]
        pieces = pieces.cpu()[chosen].double()
        if len(pieces.unique(dim=0)) < self.config.patterns:
            raise ConfigError(f"model.patterns={self.config.patterns}: the train segment has fewer different pieces of "
                              f"{self.config.pattern_length} steps. Choose fewer patterns")
        centres, _ = kmeans2(pieces.numpy(), self.config.patterns, minit="++", seed=0)
        return torch.from_numpy(centres).float()


def nearest(distances: Tensor, count: int) -> Tensor:
    """Which nodes are among the ``count`` nearest of a node, itself always: (N, N) → (N, N) bool."""
    own = distances.clone().fill_diagonal_(-1)
    chosen = own.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(own, dtype=torch.bool).scatter_(1, chosen, True)


def _mean_day(values: Tensor, seen: Tensor | None, slot: Tensor | None, slots_per_day: int | None) -> Tensor:
    """(n, N) → the means by slot of the day, (slots, N); without a calendar, of days that begin with the first step."""
    present = torch.ones_like(values) if seen is None else seen.to(values.dtype)
    slots = slots_per_day or min(len(values), 288)
    day = torch.arange(len(values), device=values.device) % slots if slot is None else slot % slots
    sums, counts = (values.new_zeros(slots, values.shape[1]).index_add_(0, day, x) for x in (values * present, present))
    return sums / counts.clamp_min(1)
