"""From frame to frame: the loop of PredRNN, MIM and MAU.

Legend: B batch, P history, Q horizon, C channels, H×W grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stmodels.base import Forecaster
from stmodels.layers.losses import mean_squared
from stmodels.layers.padding import cropped, padded
from stmodels.types import Batch, Forecast, SeriesInfo
from stmodels.video.recurrent_config import RecurrentConfig


class FrameByFrame(Forecaster):
    """Reads the history one frame after the other, then its own forecasts. Each frame read gives a forecast of the next.

    In training a true frame takes the place of a forecast with the probability η (``truth_probability``), which falls from 1 to 0 as
    training goes on, for each window and step by itself. Where the true frame has no reading, the forecast stays.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    criterion = staticmethod(mean_squared)

    def __init__(self, config: RecurrentConfig, info: SeriesInfo, multiple: int) -> None:
        """``multiple``: both sides of a frame are made multiples of it."""
        super().__init__()
        config.check(info)
        self.info, self.multiple = info, multiple
        self.sampling_share = self.changing_share = config.sampling_share
        self.register_buffer("truth_probability", torch.tensor(float(config.sampling_share > 0)), persistent=False)

    def progresses(self, share: float) -> None:
        left = 1 - share / self.sampling_share if self.sampling_share else 0.0
        self.truth_probability.fill_(max(0.0, left))

    def frame_by_frame(self, frame: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A frame (B, C, H, W), and the state after the frames before it or None → a forecast of the next frame, and the state."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Forecast:
        history = padded(batch.history, self.multiple)
        truth = padded(batch.target, self.multiple) if self.training else None
        state, found = None, []
        for t in range(self.info.history + self.info.horizon - 1):
            ahead = t - self.info.history  # below 0 in the history; 0 is the first frame of the forecast
            frame = history[:, t] if ahead < 0 else self._sampled(found[-1], truth, batch.target_mask, ahead)
            following, state = self.frame_by_frame(frame, state)
            found.append(following)
        frames = cropped(torch.stack(found, dim=1), batch.history)
        known = self.info.history - 1
        return Forecast(frames[:, known:], {"known": frames[:, :known]})

    def _sampled(self, own: Tensor, truth: Tensor | None, mask: Tensor | None, ahead: int) -> Tensor:
        """The frame to read at a step ahead: the forecast of it or, in training and by chance, the true one."""
        if truth is None or not self.sampling_share:
            return own
        is_true = torch.rand(len(own), 1, 1, 1, device=own.device) < self.truth_probability
        if mask is not None:
            is_true = is_true & padded(mask[:, ahead].float(), self.multiple).bool()
        return torch.where(is_true, truth[:, ahead].to(own.dtype), own)

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        """``forecast``, and ``history``: the error of the frames of the history that follow another.

        Where every target has a reading, their sum is the mean over all P + Q − 1 frames, but for the factor (P + Q − 1) / Q. A missing
        reading of the history counts as it is stored.
        """
        terms = super().loss_terms(forecast, batch)
        known = forecast.aux["known"] if forecast.aux else None
        if known is not None and known.shape[1]:
            share = known.shape[1] / self.info.horizon
            terms["history"] = share * self.criterion(known - batch.history[:, 1:], None)
        return terms
