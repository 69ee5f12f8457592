"""The configuration of ST-LLM. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stmodels.calendar_fields import CalendarConfig
from stmodels.errors import ConfigError
from stmodels.language.gpt2_config import Gpt2Config


@dataclass(frozen=True, kw_only=True)
class STLLMConfig(Gpt2Config, CalendarConfig):
    """Configuration of ST-LLM: one token a node or cell, and a GPT-2 whose last blocks have their attention tuned."""

    FAMILIES = ("sensors", "grid")
    MODEL = "stmodels.language.st_llm:STLLM"
    PAPER = "arXiv 2401.10134"
    PARAMETERS = 3_853_580 + 256 * 207

    name: Literal["st_llm"] = "st_llm"
    """The model."""
    width: int = 256
    """Width of each of the three parts of a token."""
    tuned: int = 1
    """U, the number of last blocks whose attention is tuned."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "blocks", "width")
        if not 0 <= self.tuned <= self.blocks:
            raise ConfigError(f"model.tuned must lie between 0 and model.blocks={self.blocks}, it is {self.tuned}")

    def reads(self) -> tuple[str, ...]:
        """Further channels are read where the data have them."""
        return ("inputs",)
