"""The ST-VLM model. Equation numbers are those of the paper (Zhao et al., ST-VLM).

Legend: B batch, P history, Q horizon, N nodes, L prompt tokens, G = ceil(N/32) image patches per side, S = 32·G, D width of ViLT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster, TrainWindows
from stmodels.layers.linear import Linear
from stmodels.layers.lstm import LSTM
from stmodels.layers.remainder import Remainder
from stmodels.st_vlm.config import STVLMConfig
from stmodels.st_vlm.image import CorrelationCanvas, PatchBias
from stmodels.st_vlm.prompt import token_ids
from stmodels.st_vlm.vilt import FrozenVilt, create_vilt
from stmodels.types import Batch, Forecast, ModelInput, SeriesInfo


class NodeEncoder(nn.Module):
    """Eq. 3: an LSTM reads a node's window, its last state is projected to ViLT's width, and an embedding of the node is added."""

    def __init__(self, config: STVLMConfig, info: SeriesInfo, width: int, told: int) -> None:
        super().__init__()
        self.lstm = LSTM(told, config.hidden)
        self.widen = Linear(config.hidden, width)
        self.node = nn.Parameter(torch.empty(info.shape[0], width))
        self.slot = nn.Embedding(info.slots_per_day, width) if config.time_of_day else None
        self.slots_per_day = info.slots_per_day
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.node, std=0.02)
        if self.slot is not None:
            nn.init.trunc_normal_(self.slot.weight, std=0.02)

    def forward(self, history: Tensor, slot: Tensor | None) -> Tensor:
        """(B, P, N, series told) scaled and (B,) slot of the week at the forecast → (B, N, D)."""
        windows = history.transpose(0, 1).flatten(1, 2)  # (P, B·N, series)
        _, (state, _) = self.lstm(windows)
        tokens = self.widen(state[0]).unflatten(0, (len(history), -1)) + self.node
        if self.slot is not None and slot is not None:
            tokens = tokens + self.slot(slot % self.slots_per_day)[:, None]
        return tokens


class NodeDecoder(nn.Module):
    """Eq. 11: a linear layer, an LSTM over the horizon and a linear layer map a node's state to its forecast.

    Every step has the same input but for what is known of it beforehand, which another linear layer adds.
    """

    def __init__(self, config: STVLMConfig, info: SeriesInfo, width: int, told_ahead: int) -> None:
        super().__init__()
        self.horizon = info.horizon
        self.narrow = Linear(width, config.hidden)
        self.lstm = LSTM(config.hidden, config.hidden)
        self.know = Linear(told_ahead, config.hidden) if told_ahead else None
        self.read = Linear(config.hidden, 1)

    def forward(self, states: Tensor, ahead: Tensor | None) -> Tensor:
        """(B, N, D), and what is known ahead, (B, Q, N, series told) → (B, Q, N)."""
        known = self.narrow(states).flatten(0, 1)  # (B·N, hidden)
        if self.know is None or ahead is None:
            steps, _ = self.lstm.repeat(known, self.horizon)  # (Q, B·N, hidden)
        else:
            steps, _ = self.lstm(known + self.know(ahead.transpose(0, 1).flatten(1, 2)))
        return self.read(steps).view(self.horizon, *states.shape[:2]).transpose(0, 1)


class STVLM(Forecaster):
    """Nodes are words and their correlations are an image, for one pass of a frozen ViLT per window.

    The loss is the mean absolute error (Eq. 12).

    Frozen weights are drawn or loaded here, and :func:`stmodels.rng.initialise` draws the trainable ones.

    Raises:
        ConfigError: the configuration does not fit the data.
        WeightsError: the weights or the tokenizer are not available.
    """

    def __init__(self, config: STVLMConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config = config
        self.nodes = info.shape[0]
        vilt = create_vilt(config.backbone, config.weights, config.weights_seed)
        patch = vilt.config.patch_size
        self.vilt = FrozenVilt(vilt, -(-self.nodes // patch), config.lora_rank, config.lora_alpha)
        self.remainder = Remainder(config, info)
        self.encode = NodeEncoder(config, info, self.vilt.width, self.remainder.told)
        self.decode = NodeDecoder(config, info, self.vilt.width, self.remainder.told_ahead)
        has_image = config.fusion != "none"
        self.canvas = CorrelationCanvas(self.nodes, patch, config.channels, config.lag) if has_image else None
        self.bias = PatchBias(patch, config.saf_squash, config.saf_gain) if config.fusion == "saf" else None
        text = config.text(info)
        ids = [] if text is None else token_ids(text, str(config.tokenizer), self.vilt.vocabulary, self.vilt.text_positions)
        self.register_buffer("prompt", torch.tensor(ids, dtype=torch.int64)[None], persistent=False)  # (1, L)

    def reset_parameters(self) -> None:
        self.remainder.start_at_the_base(self.decode.read)

    def fit(self, windows: TrainWindows) -> None:
        self.remainder.fit(windows)

    def choose(self, validation: TrainWindows, by: str) -> dict[str, float]:
        return self.remainder.choose(validation, by)

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the horizon of each node from the histories of all nodes."""
        history = batch.history.squeeze(-1)  # (B, P, N)
        slot = None if batch.target_slot is None else batch.target_slot[:, 0]
        text = self.vilt.embed_nodes(self.encode(torch.cat(self.remainder.past(batch), dim=-1), slot))
        if self.prompt.shape[1]:
            prompt = self.vilt.embed_text(self.prompt).expand(len(text), -1, -1)
            text = torch.cat([text, prompt], dim=1)  # M_concat, (B, N + L, D)
        image = None if self.canvas is None else self.canvas(history)  # M', (B, 3, S, S)
        states = self.understand(text, image)
        ahead = self.remainder.ahead(batch)
        decoded = self.decode(states, torch.cat(ahead, dim=-1) if ahead else None)[..., None]
        return Forecast(value=self.remainder.forecast(batch, decoded))

    def understand(self, text: Tensor, image: Tensor | None) -> Tensor:
        """Node states after ViLT: (B, N + L, D) and (B, 3, S, S) → (B, N, D)."""
        first, *others = self.vilt.layers
        if image is None:
            tokens = first(text) if others else first(text[:, : self.nodes], text)
        elif self.bias is None:
            tokens = first(torch.cat([text, self.vilt.embed_image(image)], dim=1))
        else:
            pixels = self.vilt.embed_image(image)
            bias = self.bias(image, self.nodes, text.shape[1] - self.nodes)
            fused = first(text, pixels, bias)  # Eq. 4-7
            tokens = torch.cat([fused, first(pixels, torch.cat([text, pixels], dim=1))], dim=1)
        for layer in others[:-1]:
            tokens = layer(tokens)
        if others:
            # Only the states of the nodes are used after the last layer, so only the nodes are queries in it.
            tokens = others[-1](tokens[:, : self.nodes], tokens)
        return self.vilt.norm(tokens[:, : self.nodes])

    def model_input(self, batch: Batch) -> ModelInput | None:
        """The correlation image, before W_af."""
        if self.canvas is None:
            return None
        shown = self.canvas.shown.flatten().bool()
        return ModelInput(self.config.channels, self.canvas.pixels(batch.history.squeeze(-1))[:, shown])
