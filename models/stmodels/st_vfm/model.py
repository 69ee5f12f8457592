"""ST-VFM, assembled. Equation numbers are those of arXiv 2507.11558.

Legend: B batch, P history, Q horizon, C channels, H×W grid, s patch, p temporal patch, N = (H/s)(W/s) spatial tokens,
T' = P/p, Q' = Q/p, V = p·C·s² values a patch, D_T temporal width, D backbone width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.backbones import Backbone, create_backbone
from stmodels.base import Forecaster, TrainWindows
from stmodels.layers.cross_prompt import CrossPromptLayer
from stmodels.layers.flow import flow_mask, history_flow, target_flow
from stmodels.layers.losses import mean_squared
from stmodels.layers.patches import patchify
from stmodels.layers.remainder import Remainder
from stmodels.st_vfm.branch import Embedding, Geometry, MLPDecoder, TransformerDecoder
from stmodels.st_vfm.config import STVFMConfig
from stmodels.types import Batch, Forecast, SeriesInfo


class STVFM(Forecaster):
    """A frozen vision model between a temporal-aware token adapter and a temporal decoder, for one branch or two.

    Frozen weights are drawn or loaded here; trainable ones are to be drawn by :func:`stmodels.rng.initialise`.

    Raises:
        ConfigError: the configuration does not fit the data.
        WeightsError: the backbone's weights cannot be had.
    """

    criterion = staticmethod(mean_squared)

    def __init__(self, config: STVFMConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config = config
        self.info = info
        self.geometry = Geometry.of(config, info)
        self.remainder = Remainder(config, info)
        self.flow_std = (config.seasonal_residual and info.residual_flow_std) or info.flow_std
        self.backbone: Backbone = create_backbone(
            config.backbone, config.weights, config.weights_seed, config.use_cls, config.weights_shuffled
        )
        if config.peft != "none":
            self.backbone.add_peft(config.peft, config.rank or 0)
        width, heads = self.backbone.width, self.backbone.heads
        branches = ["st", "flow"] if config.flow else ["st"]
        decoder = TransformerDecoder if config.decoder == "transformer" else MLPDecoder
        self.embed = nn.ModuleDict(
            {b: Embedding(config, info, self.geometry, self.backbone, self.remainder.told if b == "st" else 1) for b in branches}
        )
        self.decode = nn.ModuleDict(
            {b: decoder(config, info, self.geometry, width, self.remainder.told_ahead if b == "st" else 0) for b in branches}
        )
        prompts = None if config.prompts == "all" else int(config.prompts)
        self.cross = nn.ModuleList(
            CrossPromptLayer(width, heads, self.geometry.tokens_hw, prompts) for _ in range(config.cross_prompt_layers)
        )

    def reset_parameters(self) -> None:
        self.remainder.start_at_the_base(self.decode["st"].readout)

    def fit(self, windows: TrainWindows) -> None:
        self.remainder.fit(windows)

    def choose(self, validation: TrainWindows, by: str) -> dict[str, float]:
        return self.remainder.choose(validation, by)

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the horizon, and the backward differences in it, from the history, its calendar and the season known beforehand."""
        tokens = {"st": self.embed["st"](self._st_input(batch), batch.history_slot)}
        if self.config.flow:
            flow = history_flow(self._moving(batch.history, batch.history_season)) / self.flow_std
            tokens["flow"] = self.embed["flow"](self._patches(flow), batch.history_slot)
        # Both branches go through the backbone in one stacked pass.
        encoded = self.backbone(torch.cat(list(tokens.values()))).chunk(len(tokens))
        states = dict(zip(tokens, encoded, strict=True))
        if self.cross:
            states["st"], states["flow"] = self._coordinate(states["st"], states["flow"])
        return Forecast(
            value=self._st_forecast(states["st"], batch),
            aux={"flow": self._decode("flow", states["flow"], batch) * self.flow_std} if self.config.flow else None,
        )

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        """The terms of Eq. 11 before weighting, both mean squared errors in scaled space."""
        terms = super().loss_terms(forecast, batch)
        if forecast.aux is not None:
            before, after = self._moving(batch.history, batch.history_season), self._moving(batch.target, batch.target_season)
            difference = forecast.aux["flow"] - target_flow(before, after)
            terms["flow"] = mean_squared(difference, flow_mask(batch.target_mask))
        return terms

    def _moving(self, readings: Tensor, season: Tensor | None) -> Tensor:
        """What the flow is the change of: the readings, or with ``seasonal_residual`` their residuals. The change of raw readings would be
        mostly that of the season, which is known, and its loss would outweigh that of the forecast."""
        return readings - season if self.config.seasonal_residual and season is not None else readings

    def _st_input(self, batch: Batch) -> Tensor:
        """Patches of the history; with ``seasonal_residual``, of its residual and, beside it, of the season itself."""
        return torch.cat([self._patches(series) for series in self.remainder.past(batch)], dim=-1)

    def _st_forecast(self, states: Tensor, batch: Batch) -> Tensor:
        known = [self._patches(series) for series in self.remainder.ahead(batch)]
        return self.remainder.forecast(batch, self._decode("st", states, batch, torch.cat(known, dim=-1) if known else None))

    def _patches(self, grid: Tensor) -> Tensor:
        """(B, T, C, H, W) → (B, T/p, N, V), padded first where the configuration asks for it."""
        if self.geometry.padding != (0, 0):
            rows, columns = self.geometry.padding
            grid = F.pad(grid, (0, columns, 0, rows))
        return patchify(grid, self.config.patch, self.config.temporal_patch)

    def _decode(self, branch: str, states: Tensor, batch: Batch, ahead: Tensor | None = None) -> Tensor:
        """(B, T', N, D) → (B, Q, C, H, W)."""
        grid = self.decode[branch](states, batch.history_slot, batch.target_slot, ahead)
        _, height, width = self.info.shape
        return grid[..., :height, :width]

    def _coordinate(self, st: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-prompt layers, frame by frame: (B, T', N, D) of each branch → the same."""
        shape = st.shape
        st, flow = st.flatten(0, 1), flow.flatten(0, 1)
        for layer in self.cross:
            st, flow = layer(st, flow)
        return st.view(shape), flow.view(shape)
