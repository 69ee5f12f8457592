"""iTransformer (Liu et al., ICLR 2024): one token a node.

Legend: B batch, P history, Q horizon, N nodes, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.layers.encoder import EncoderLayer
from stmodels.layers.linear import Linear
from stmodels.layers.window_norm import normalised
from stmodels.series.itransformer_config import ITransformerConfig
from stmodels.types import Batch, Forecast, SeriesInfo


class ITransformer(Forecaster):
    """A node's window is embedded whole; attention passes between nodes, and the feed-forward networks work on each. No node has an
    identity.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: ITransformerConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.window_norm = config.window_norm
        self.embed = nn.Sequential(Linear(info.history, config.width), nn.Dropout(config.dropout))
        self.encoder = nn.Sequential(
            *(EncoderLayer(config.width, config.heads, config.feedforward, config.dropout, "gelu") for _ in range(config.layers)),
            nn.LayerNorm(config.width),
        )
        self.readout = Linear(config.width, info.horizon)

    def forward(self, batch: Batch) -> Forecast:
        x = batch.history[..., 0]  # (B, P, N)
        if not self.window_norm:
            return Forecast(self._ahead(x)[..., None])
        x, mean, deviation = normalised(x)
        return Forecast((self._ahead(x) * deviation + mean)[..., None])

    def _ahead(self, x: Tensor) -> Tensor:
        """(B, P, N) → (B, Q, N)."""
        return self.readout(self.encoder(self.embed(x.transpose(1, 2)))).transpose(1, 2)
