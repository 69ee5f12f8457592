"""STD-MAE (Gao et al., IJCAI 2024).

Legend: B batch, N nodes, K patches of the long history, p steps of a patch, D width of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.graph.graph_wavenet import GraphWaveNet
from stmodels.graph.std_mae_config import STDMAEConfig
from stmodels.layers.encoder import EncoderLayer
from stmodels.layers.linear import Linear
from stmodels.layers.positions import sinusoid
from stmodels.types import Batch, Forecast, SeriesInfo


class MaskedAutoencoder(nn.Module):
    """Rebuilds the hidden patches of a long history from the visible ones.

    The tokens (B, N, K, D) are hidden along one axis, ``patches`` (time) or ``nodes``, and attend along that axis too. Only visible tokens
    are encoded.
    """

    def __init__(self, config: STDMAEConfig, nodes: int, patches: int, axis: str) -> None:
        super().__init__()
        self.axis = axis
        width = config.token_width
        self.embed = Linear(config.patch, width)
        self.register_buffer("positions", _positions(nodes, patches, config), persistent=False)  # (N, K, D)

        def layers(count: int) -> nn.Sequential:
            made = (EncoderLayer(width, config.heads, config.feedforward, config.token_dropout, "relu") for _ in range(count))
            return nn.Sequential(*made)

        self.encoder = nn.Sequential(*layers(config.encoder_layers), nn.LayerNorm(width))
        self.to_decoder = Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoder = nn.Sequential(*layers(1), nn.LayerNorm(width))
        self.readout = Linear(width, config.patch)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def encode(self, patches: Tensor, axis: str | None = None) -> Tensor:
        """All tokens of a long history, none hidden: (B, N, K, p) → (B, N, K, D). ``axis`` as in the class, unless another is given."""
        return self._along(axis or self.axis, self.encoder, self._tokens(patches))

    def rebuild(self, patches: Tensor, hidden: Tensor) -> Tensor:
        """(B, N, K, p) as the decoder has them, where ``hidden`` (bool, along the axis) says which are not seen."""
        place = 2 if self.axis == "patches" else 1
        visible, gone = (flag.nonzero().flatten() for flag in (~hidden, hidden))
        encoded = self.to_decoder(self._along(self.axis, self.encoder, self._tokens(patches).index_select(place, visible)))
        asked = (self.mask_token + self.positions).index_select(place - 1, gone).expand(len(patches), -1, -1, -1)
        whole = torch.cat([encoded, asked.to(encoded.dtype)], dim=place)
        back = torch.cat([visible, gone]).argsort()
        return self.readout(self._along(self.axis, self.decoder, whole.index_select(place, back)))

    def _tokens(self, patches: Tensor) -> Tensor:
        embedded = self.embed(patches)
        return (embedded + self.positions) * math.sqrt(embedded.shape[-1])

    @staticmethod
    def _along(axis: str, layers: nn.Module, tokens: Tensor) -> Tensor:
        if axis == "patches":
            return layers(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return layers(tokens.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(tokens), -1)).transpose(1, 2)


class STDMAE(Forecaster):
    """Graph WaveNet, with the last states of both autoencoders added to its skip connection.

    In the stages ``temporal`` and ``spatial`` one autoencoder is trained by itself, and the forecast is the long history as it rebuilds it.
    Then both are held still, without dropout.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: STDMAEConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config, self.steps = config, config.steps(info)
        count = self.steps // config.patch
        self.temporal = MaskedAutoencoder(config, info.shape[0], count, "patches")
        self.spatial = MaskedAutoencoder(config, info.shape[0], count, "nodes")
        self.wavenet = GraphWaveNet(config, info)
        self.adapters = nn.ModuleDict({
            name: nn.Sequential(
                Linear(config.token_width, config.adapter_width), nn.ReLU(), Linear(config.adapter_width, config.skip_width), nn.ReLU()
            )
            for name in ("temporal", "spatial")
        })  # fmt: skip

    def begin(self, stage: str) -> None:
        super().begin(stage)
        for name in ("temporal", "spatial"):
            getattr(self, name).requires_grad_(stage == name)
        for part in (self.wavenet, self.adapters):
            part.requires_grad_(not stage)
        self.train(self.training)

    def train(self, mode: bool = True) -> STDMAE:
        """As usual, but autoencoders that are not trained are held in eval mode: their dropout would be noise in the forecast's input."""
        super().train(mode)
        for name in ("temporal", "spatial"):
            if mode and self.stage != name:
                getattr(self, name).eval()
        return self

    def forward(self, batch: Batch) -> Forecast:
        patches = self.patches(batch)
        if self.stage:
            autoencoder: MaskedAutoencoder = getattr(self, self.stage)
            hidden = self.draw_hidden(patches.shape[2 if self.stage == "temporal" else 1], patches.device)
            return Forecast(autoencoder.rebuild(patches, hidden), {"patches": patches, "hidden": hidden})
        with torch.no_grad():
            states = {
                "temporal": self.temporal.encode(patches)[:, :, -1],
                "spatial": self.spatial.encode(patches, "patches" if self.config.spatial_axis == "time" else None)[:, :, -1],
            }
        skip = self.wavenet.skip(batch)
        for name, state in states.items():
            skip = skip + self.adapters[name](state)
        return Forecast(self.wavenet.head(skip))

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        """The error of the forecast; in a stage that of the hidden patches alone."""
        if not self.stage or forecast.aux is None:
            return super().loss_terms(forecast, batch)
        patches, hidden = forecast.aux["patches"], forecast.aux["hidden"]
        place = 2 if self.stage == "temporal" else 1
        rebuilt, truth = (t.index_select(place, hidden.nonzero().flatten()) for t in (forecast.value, patches))
        return {"forecast": self.criterion(rebuilt - truth, None)}

    def patches(self, batch: Batch) -> Tensor:
        """The long history in patches, (B, N, K, p)."""
        known = batch.history if batch.past is None else torch.cat([batch.past, batch.history], dim=1)
        return known[:, -self.steps :, :, 0].transpose(1, 2).unflatten(2, (-1, self.config.patch))

    def draw_hidden(self, count: int, device: torch.device) -> Tensor:
        """Which of the patches, or of the nodes, are hidden: (count,) bool, at least one, and not all."""
        chosen = torch.randperm(count, device=device)[: min(max(1, round(self.config.mask_rate * count)), max(1, count - 1))]
        return torch.zeros(count, dtype=torch.bool, device=device).index_fill_(0, chosen, True)


def _positions(nodes: int, patches: int, config: STDMAEConfig) -> Tensor:
    """Half of the width for the number of the node, half for that of the patch: (N, K, D)."""
    half = config.token_width // 2
    node = sinusoid(nodes, half) if config.node_position == "sinusoid" else torch.zeros(nodes, half)
    return torch.cat([node[:, None].expand(-1, patches, -1), sinusoid(patches, half).expand(nodes, -1, -1)], dim=-1)
