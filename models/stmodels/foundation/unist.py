"""UniST (Yuan et al., KDD 2024).

Legend: B batch, M images (windows, times channels where these are independent), P history, Q horizon, C channels, c channels of an image,
H×W grid, T' rows of tokens in time, of which F are ahead, n patches of a frame, V numbers of a patch, D width.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.foundation.unist_config import UniSTConfig
from stmodels.foundation.unist_masks import Mask, draw, the_future
from stmodels.foundation.unist_prompts import PromptNetwork, Seen
from stmodels.layers.calendar import slot_and_day
from stmodels.layers.earlier_days import earlier_days
from stmodels.layers.linear import Linear, accelerate
from stmodels.layers.losses import mean_squared
from stmodels.layers.padding import cropped, padded
from stmodels.layers.patches import patchify, unpatchify
from stmodels.layers.positions import sinusoid
from stmodels.types import Batch, Forecast, SeriesInfo


class PatchCalendar(nn.Module):
    """Hour and weekday of the frames of a patch: (B, T) slots of the week → (B, T', D)."""

    def __init__(self, slots_per_day: int, width: int, steps: int) -> None:
        super().__init__()
        self.slots_per_day, self.steps = slots_per_day, steps
        self.slot, self.day = nn.Embedding(slots_per_day, width), nn.Embedding(7, width)
        self.merge = Linear(steps * width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in (self.slot, self.day):
            nn.init.trunc_normal_(table.weight, std=0.02)

    def forward(self, slots: Tensor) -> Tensor:
        slot, day = slot_and_day(slots, self.slots_per_day)
        return self.merge((self.slot(slot) + self.day(day)).unflatten(1, (-1, self.steps)).flatten(2))


def _blocks(width: int, heads: int, count: int) -> nn.Sequential:
    norm = partial(nn.LayerNorm, eps=1e-6)
    blocks = (Block(width, heads, mlp_ratio=2.0, qkv_bias=True, norm_layer=norm) for _ in range(count))
    return nn.Sequential(*blocks, norm(width))


class UniST(Forecaster):
    """Frames are cut into space-time patches. Only visible ones are encoded; the decoder fills in the hidden ones.

    In the stage ``pretrain`` patches are hidden by one of four masks a batch, and the loss is that of the hidden ones. A batch may have
    another grid there than the forecasts, and another number of channels where these are independent. In the training the future is
    hidden, the prompts are added to its empty tokens before the decoder, and all weights are trained. What lies before the history
    (``batch.past``) is read by the prompt of the period alone.

    The mask is drawn anew for every part of a batch and by every worker, as dropout is.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    criterion = staticmethod(mean_squared)

    def __init__(self, config: UniSTConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        assert info.slots_per_day is not None
        self.config, self.info, width = config, info, config.width
        c, h, w = info.shape
        self.colours = 1 if config.channels == "independent" else c
        values = config.time_patch * self.colours * config.patch**2
        self.embed = Linear(values, width)
        self.calendar = PatchCalendar(info.slots_per_day, width, config.time_patch)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = _blocks(width, config.encoder_heads, config.encoder_layers)
        self.to_decoder = Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoder = _blocks(width, config.decoder_heads, config.decoder_layers)
        self.head = nn.Sequential(Linear(width, width), nn.GELU(), Linear(width, width), nn.GELU(), Linear(width, values))
        self.prompts = PromptNetwork(config, info.history * self.colours, config.patch) if config.prompt != "none" else None
        self.register_buffer("positions", self._positions(h, w), persistent=False)
        accelerate(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)

    def begin(self, stage: str) -> None:
        super().begin(stage)
        if self.prompts is not None:
            self.prompts.requires_grad_(not stage)

    def forward(self, batch: Batch) -> Forecast:
        if self.stage:
            return self._masked(batch)
        future = torch.zeros_like(batch.history[:, :1]).expand(-1, self.info.horizon, *self.info.shape)
        tokens = self.tokens(torch.cat([batch.history, future], dim=1))
        rows = self._future_rows
        mask = the_future((len(tokens), *tokens.shape[1:3], rows), 0.0, tokens.device)
        whole, place_and_time = self.encoded(tokens, mask, batch)
        if self.prompts is not None:
            seen = Seen(whole, place_and_time[:, -rows:], self._earlier(batch), self._images(batch.history).flatten(1, 2))
            whole = torch.cat([whole[:, :-rows], whole[:, -rows:] + self.prompts(seen)], dim=1)
        return Forecast(self.frames(self.decoded(whole)[:, -rows:], batch))

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        """The error of the forecast; in the stage that of the hidden patches, those of the future where there are readings."""
        if not self.stage or forecast.aux is None:
            return super().loss_terms(forecast, batch)
        truth, hidden = torch.cat([batch.history, batch.target], dim=1), forecast.aux["hidden"]
        if batch.target_mask is not None:
            hidden = hidden & torch.cat([torch.ones_like(batch.history, dtype=torch.bool), batch.target_mask], dim=1)
        return {"forecast": self.criterion(forecast.value - truth, hidden)}

    def _masked(self, batch: Batch) -> Forecast:
        """All frames of a train window as they are filled in, with the cells that were hidden."""
        target = batch.target
        if batch.target_mask is not None:  # a missing reading looks as in the history
            target = target.where(batch.target_mask, torch.full_like(target, self.info.zero))
        tokens = self.tokens(torch.cat([batch.history, target], dim=1))
        mask = draw((len(tokens), *tokens.shape[1:3], self._future_rows), self.config.mask_ratio, tokens.device)
        whole, _ = self.encoded(tokens, mask, batch)
        cells = mask.hidden[..., None].expand(*mask.hidden.shape, self.head[-1].out_features).float()
        return Forecast(self.frames(self.decoded(whole), batch), {"hidden": self.frames(cells, batch) > 0.5})

    def tokens(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) → the embedded patches (M, T', n, D)."""
        return self.embed(patchify(self._images(frames), self.config.patch, self.config.time_patch))

    def encoded(self, tokens: Tensor, mask: Mask, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the decoder reads, (M, T', n, D), and position and calendar of each token, which are in it."""
        calendar = self._calendar(batch)[:, :, None]  # (M, T', 1, D)
        order = mask.hidden.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)  # the visible ones first
        visible = order[:, : mask.visible, None].expand(-1, -1, tokens.shape[-1])
        positions = self._positions_of(batch)
        seen = self.encoder((self.dropout(tokens + calendar) + positions).flatten(1, 2).gather(1, visible))
        filled = self.to_decoder(seen)
        empty = self.mask_token.to(filled.dtype).expand(len(tokens), order.shape[1], -1)
        whole = empty.scatter(1, visible, filled).unflatten(1, tokens.shape[1:3])
        place_and_time = (positions + calendar).expand_as(whole)
        return whole + place_and_time, place_and_time

    def decoded(self, whole: Tensor) -> Tensor:
        """(M, T', n, D) → the numbers of each patch, (M, T', n, V)."""
        return self.head(self.decoder(whole.flatten(1, 2))).unflatten(1, whole.shape[1:3])

    def frames(self, patches: Tensor, batch: Batch) -> Tensor:
        """(M, rows, n, V) → (B, T, C, H, W)."""
        s = self.config.patch
        down, right = self._patches(*batch.history.shape[-2:])
        images = unpatchify(patches, s, self.config.time_patch, (self.colours, down * s, right * s))
        if self.config.channels == "independent":
            images = images.squeeze(2).unflatten(0, (len(batch.history), -1)).transpose(1, 2)
        return cropped(images, batch.history)

    @property
    def _future_rows(self) -> int:
        return self.info.horizon // self.config.time_patch

    def _patches(self, height: int, width: int) -> tuple[int, int]:
        """The number of patches down and to the right of a grid."""
        return -(-height // self.config.patch), -(-width // self.config.patch)

    def _positions(self, height: int, width: int) -> Tensor:
        """(T', n, D), for a grid of that size."""
        rows = (self.info.history + self.info.horizon) // self.config.time_patch
        return _positions(rows, *self._patches(height, width), self.config.width)

    def _positions_of(self, batch: Batch) -> Tensor:
        """Those of the batch's grid, which may be another one than that of the forecasts while the model is pre-trained."""
        height, width = batch.history.shape[-2:]
        return self.positions if (height, width) == self.info.shape[-2:] else self._positions(height, width).to(self.positions)

    def _images(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) → (M, T, c, H', W')."""
        frames = padded(frames, self.config.patch)
        return frames.transpose(1, 2).flatten(0, 1)[:, :, None] if self.config.channels == "independent" else frames

    def _calendar(self, batch: Batch) -> Tensor:
        """(M, T', D)."""
        assert batch.history_slot is not None
        assert batch.target_slot is not None
        calendar = self.calendar(torch.cat([batch.history_slot, batch.target_slot], dim=1))
        return calendar.repeat_interleave(batch.history.shape[2] // self.colours, dim=0)

    def _earlier(self, batch: Batch) -> Tensor | None:
        """The tokens of the frames of earlier days at the time of the forecast, or of the season: (M, K, F, n, D)."""
        config = self.config
        if not config.reads_period:
            return None
        if config.period == "season":
            assert batch.target_profile is not None
            days = batch.target_profile[:, None]
        else:
            days = earlier_days(batch, config.days, self.info.slots_per_day or 0, self.info.horizon)
        return torch.stack([self.tokens(day) for day in days.unbind(1)], dim=1)


def _positions(rows: int, down: int, right: int, width: int) -> Tensor:
    """Half of the width for each of both axes of the grid, plus one over all of it for time: (T', n, D); ``rows`` is T'."""
    row, column = sinusoid(down, width // 2), sinusoid(right, width // 2)
    place = torch.cat([row[:, None].expand(-1, right, -1), column.expand(down, -1, -1)], dim=-1)
    return sinusoid(rows, width)[:, None] + place.flatten(0, 1)
