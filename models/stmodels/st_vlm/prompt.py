"""From the description of the task to token ids, by BERT's tokenizer or by a substitute that needs no vocabulary."""

from __future__ import annotations

import hashlib
import re

from stmodels.errors import ConfigError, WeightsError

BERT = "bert-base-uncased"
_CLS, _SEP, _FIRST_WORD = 101, 102, 1000  # where bert-base-uncased keeps them; words and signs come after the unused and special ids


def hash_tokens(text: str, vocabulary: int) -> list[int]:
    """Ids of the words and signs of a text by their hashes: [CLS] … [SEP].

    They replace a vocabulary: the same word always gets the same id, but the ids have no meaning for pretrained weights.
    """
    first = min(_FIRST_WORD, vocabulary // 2)
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    ids = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") for word in words]
    return [_CLS % first, *(first + number % (vocabulary - first) for number in ids), _SEP % first]


def token_ids(text: str, tokenizer: str, vocabulary: int, positions: int) -> list[int]:
    """The ids of a prompt.

    Args:
        text: the prompt.
        tokenizer: ``pretrained``, ``hash``, or the folder of a tokenizer.
        vocabulary: the number of words that the backbone knows.
        positions: the number of its text positions.

    Raises:
        WeightsError: the tokenizer is not available, or does not belong to the backbone.
        ConfigError: the prompt has more tokens than the backbone has positions.
    """
    ids = hash_tokens(text, vocabulary) if tokenizer == "hash" else _bert_tokens(text, tokenizer)
    if max(ids) >= vocabulary:
        raise WeightsError(
            f"model.tokenizer={tokenizer} gives id {max(ids)}, and the backbone knows {vocabulary} words: it belongs to another model."
        )
    if len(ids) > positions:
        raise ConfigError(
            f"model.prompt has {len(ids)} tokens, and the backbone has {positions} text positions: shorten model.prompt or model.subject"
        )
    return ids


def _bert_tokens(text: str, tokenizer: str) -> list[int]:
    from transformers import AutoTokenizer

    source = BERT if tokenizer == "pretrained" else tokenizer
    try:
        ids: list[int] = AutoTokenizer.from_pretrained(source)(text)["input_ids"]
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise WeightsError(
            f"the tokenizer '{tokenizer}' ({source}) cannot be loaded: {reason.strip()} Download it once where the Hugging Face hub can be "
            "reached (the cache folder is HF_HOME), give a folder with model.tokenizer=PATH, or use model.tokenizer=hash, whose ids "
            "have no meaning for pretrained weights."
        ) from error
    return ids
