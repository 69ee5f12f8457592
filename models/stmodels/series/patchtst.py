"""PatchTST (Nie et al., ICLR 2023), as the library transformers has it.

Legend: B batch, P history, Q horizon, M series (one a sensor, or one a cell and channel of a grid), S the shape of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PatchTSTConfig as LibraryConfig
from transformers import PatchTSTForPrediction

from stmodels.base import Forecaster
from stmodels.layers.linear import accelerate
from stmodels.layers.window_norm import in_own_units
from stmodels.series.patchtst_config import PatchTSTConfig
from stmodels.types import Batch, Forecast, SeriesInfo


class PatchTST(Forecaster):
    """Each series' window is cut into patches, which are tokens of a transformer that all series share; the tokens side by side are mapped
    to the horizon.

    Norms come after each part, as in the original; before it is the library's default. Unlike the original, the library does not
    pass attention scores on from layer to layer, and has no gain in the norm of a window.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: PatchTSTConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.shape, self.repeats = info.shape, config.repeats
        self.window_norm = config.window_norm
        self.net = PatchTSTForPrediction(
            LibraryConfig(
                num_input_channels=info.series,
                context_length=info.history + config.repeats,
                prediction_length=info.horizon,
                patch_length=config.patch,
                patch_stride=config.stride,
                d_model=config.width,
                num_attention_heads=config.heads,
                ffn_dim=config.feedforward,
                num_hidden_layers=config.layers,
                positional_encoding_type=config.positions,
                positional_dropout=config.dropout,
                ff_dropout=config.dropout,
                path_dropout=config.dropout,
                pre_norm=False,
                pooling_type=None,  # the head of the paper; the library's default takes the mean of the patches
                scaling=None,
                loss="mse",
                # Fused kernels refuse more than 65,535 sequences at once, and for so few patches they save nothing.
                attn_implementation="eager",
            )
        )
        self.positions = self.net.model.encoder.positional_encoder
        accelerate(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # The library draws learned positions where they are made, and not again.
        if self.positions.position_enc.requires_grad:
            nn.init.normal_(self.positions.position_enc, std=0.02)

    def forward(self, batch: Batch) -> Forecast:
        ahead = in_own_units(self._ahead, batch.history.flatten(2), self.window_norm)
        return Forecast(ahead.unflatten(2, self.shape))

    def _ahead(self, x: Tensor) -> Tensor:
        """(B, P, M) → (B, Q, M)."""
        repeated = torch.cat([x, x[:, -1:].expand(-1, self.repeats, -1)], dim=1)
        ahead: Tensor = self.net(past_values=repeated).prediction_outputs
        return ahead
