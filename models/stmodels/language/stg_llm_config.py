"""The configuration of STG-LLM. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stmodels.calendar_fields import CalendarConfig
from stmodels.language.gpt2_config import Gpt2Config
from stmodels.nodes import NodeConfig


@dataclass(frozen=True, kw_only=True)
class STGLLMConfig(Gpt2Config, CalendarConfig, NodeConfig):
    """Configuration of STG-LLM, as we read its paper: one token a node, an adapter before GPT-2 and one after it."""

    MODEL = "stmodels.language.stg_llm:STGLLM"
    PAPER = "arXiv 2401.14192"
    PARAMETERS = 933_580

    name: Literal["stg_llm"] = "stg_llm"
    """The model."""
    blocks: int = 3
    """K, the number of blocks that are kept, counted from the first."""
    calendar_width: int = 64
    """Width of each of the two tables of the calendar."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "blocks", "calendar_width")

    def reads(self) -> tuple[str, ...]:
        """Further channels are read where the data have them."""
        return ("inputs",)
