"""Stories to predict, each from its own beginning: a loss that no packing changes. And what stories told are."""

from __future__ import annotations

from typing import Any

from minilm.evaluation.likeness import document_nats
from minilm.evaluation.perplexity import perplexity
from minilm.model.gpt import GPT
from minilm.text.shards import ShardFolder
from minilm.text.tales.grader import grade
from minilm.text.tales.grammar import grammar
from minilm.text.tokenizer import Tokenizer


def some_stories(data: ShardFolder, tokenizer: Tokenizer, n: int, split: str) -> list[str]:
    """The first n of a split, always the same."""
    text = data.splits[split]
    return [tokenizer.decode(text.document(i)) for i in range(min(n, text.n_documents))]


def validation_stories(data: ShardFolder, tokenizer: Tokenizer, n: int) -> list[str]:
    return some_stories(data, tokenizer, n, "val")


def story_loss(model: GPT, tokenizer: Tokenizer, texts: list[str], **changes: Any) -> float:
    """Nats per token, the first token after end-of-text included. changes: of the protocol, such as its context."""
    scored = perplexity(model, texts, "minilm", tokenizer=tokenizer, documents="each", first="after_eot", **changes)
    return scored.nats_per_token


def behind_code(model: GPT, tokenizer: Tokenizer, texts: list[str], code: str) -> float:
    """Nats per token of texts without a control code, which is given: ln p(code, text) - ln p(code). Without one
    each text begins with the blank that would stand behind it."""
    texts = texts if code else [f" {text}" for text in texts]
    with_code = document_nats(model, tokenizer, [code + text for text in texts])[0].sum()
    alone = len(texts) * document_nats(model, tokenizer, [code.rstrip()])[0].sum() if code else 0.0
    return float(with_code - alone) / sum(map(len, tokenizer.encode_batch(texts)))


def obeyed(texts: list[str], level: int, style: str) -> float:
    """Share in % of stories (without code) whose first sentence is one that the style's grammar tells."""
    verdicts = [grade(grammar(level, style).code + text, level, style) for text in texts]
    return 100 * sum(v.passed or v.before > 0 for v in verdicts) / len(texts)
