"""Validation stories, each predicted from its own beginning: a loss that no packing and no neighbour changes."""

from __future__ import annotations

from typing import Any

from minilm.evaluation.perplexity import perplexity
from minilm.model.gpt import GPT
from minilm.text.shards import ShardFolder
from minilm.text.tokenizer import Tokenizer


def validation_stories(data: ShardFolder, tokenizer: Tokenizer, n: int) -> list[str]:
    """The first n, always the same."""
    split = data.splits["val"]
    return [tokenizer.decode(split.document(i)) for i in range(min(n, split.n_documents))]


def story_loss(model: GPT, tokenizer: Tokenizer, texts: list[str], **changes: Any) -> float:
    """Nats per token, the first token after end-of-text included. changes: of the protocol, such as its context."""
    scored = perplexity(
        model, texts, "minilm", tokenizer=tokenizer, documents="each", first="after_eot", **changes
    )  # fmt: skip
    return scored.nats_per_token
