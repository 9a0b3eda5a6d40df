"""Coherence: the share of a model's own tales that make sense, as an exact grader judges (`text/tales/grader.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Unpack

import torch

from minilm.decoding.engine import Filters, generate_ids
from minilm.errors import UsageError
from minilm.evaluation.intervals import wilson
from minilm.model.gpt import GPT
from minilm.text.shards import Split
from minilm.text.tales import stories
from minilm.text.tales.copying import CopyCheck
from minilm.text.tales.grader import Verdict, grade
from minilm.text.tales.grammar import grammar
from minilm.text.tokenizer import Tokenizer

COPIED_SHARE = 0.6  # a story with more of its words than this in one span of the training text is a copy
N_REAL = 100  # real stories that say how long a story is
SAMPLES_SHOWN = 3


@dataclass(frozen=True)
class Coherence:
    """What share of a model's tales make sense. `str()` is the report, samples included."""

    level: int
    style: str
    n_stories: int
    passed: int
    low: float
    """Lower end of the share's 95 % Wilson interval."""
    high: float
    """Its upper end."""
    failures: dict[str, int]
    """First broken rule of each failed story -> stories, most frequent first: the grader's, `copied`, `duplicate`."""
    mean_before: float
    """Mean over all stories of the share of sentences before the first that the grader rejects (1 where none is)."""
    samples: tuple[str, ...]
    """The first stories, whether they passed or not."""
    sampler: str
    """How the stories were drawn."""
    copies_checked: bool
    """Whether there was a training text to compare with."""
    beyond_context: float
    """Share of real stories that are longer than the model's context: it writes their ends without their beginnings."""

    @property
    def share(self) -> float:
        return self.passed / self.n_stories

    def __str__(self) -> str:
        failures = ", ".join(f"{rule} {n}" for rule, n in self.failures.items()) or "none"
        unchecked = "" if self.copies_checked else " (not compared with a training text)"
        styled = "" if self.style == "plain" else f", {self.style}"
        lines = [
            f"coherence, level {self.level}{styled}: {100 * self.share:.1f} % of {self.n_stories} stories pass "
            f"({100 * self.low:.1f} to {100 * self.high:.1f} %, Wilson 95 %; {self.sampler}){unchecked}",
            f"  first broken rule: {failures}; {100 * self.mean_before:.0f} % of sentences come before it",
        ]
        if self.beyond_context:
            lines.append(f"  {100 * self.beyond_context:.0f} % of real stories are longer than the model's context")
        return "\n".join(lines + [f"  {i}. {text}" for i, text in enumerate(self.samples, 1)])


def coherence(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    train: CopyCheck | Split | Iterable[str] | None,
    level: int = 1,
    style: str = "plain",
    n_stories: int = 200,
    seed: int = 0,
    **filters: Unpack[Filters],
) -> Coherence:
    """Samples stories and has them graded; the defaults are how coherence is always measured.

    train: what copies are looked for in, as tokens, texts or a `CopyCheck` made once for several calls; None leaves
    copies unchecked, and the report says so. A story begins with its style's control code, which is given, and is cut
    at twice the tokens of the longest of 100 real ones; beyond the context, `generate`'s window moves on. Two stories
    that are alike both fail. filters: `generate`'s. Raises UsageError on an unknown level or style or a number out of
    range.
    """
    if n_stories < 1:
        raise UsageError(f"n_stories must be 1 or more, not {n_stories}")
    real, settled = _real_lengths(tokenizer, level, style), _settled(**filters)
    texts = tell_stories(model, tokenizer, level=level, style=style, n_stories=n_stories, seed=seed, **filters)
    named = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in settled.items()]
    return judge(
        texts,
        train=copy_check(train, tokenizer),
        level=level,
        style=style,
        sampler=", ".join([*named, f"seed {seed}"]),
        # End-of-text stands before a story, and its last token is never read.
        beyond_context=sum(n > model.config.block_size for n in real) / N_REAL,
    )


def tell_stories(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    level: int = 1,
    style: str = "plain",
    n_stories: int = 200,
    seed: int = 0,
    **filters: Unpack[Filters],
) -> list[str]:
    """The stories that `coherence` has graded."""
    code, longest = grammar(level, style).code, max(_real_lengths(tokenizer, level, style))
    settled = _settled(**filters)
    texts = sample_documents(model, tokenizer, code, n_stories, max_new_tokens=2 * longest, seed=seed, **settled)
    return [text.strip() for text in texts]


def judge(
    texts: list[str],
    *,
    train: CopyCheck | None,
    level: int = 1,
    style: str = "plain",
    sampler: str = "",
    beyond_context: float = 0.0,
) -> Coherence:
    """The verdict on stories, one or more, however they were written."""
    verdicts = [grade(text, level, style) for text in texts]
    rules = first_broken_rules(texts, verdicts, train)
    passed = rules.count(None)
    low, high = wilson(passed, len(texts))
    return Coherence(
        level=level,
        style=style,
        n_stories=len(texts),
        passed=passed,
        low=low,
        high=high,
        failures=dict(Counter(rule for rule in rules if rule is not None).most_common()),
        mean_before=sum(share_before(v) for v in verdicts) / len(texts),
        samples=tuple(texts[:SAMPLES_SHOWN]),
        sampler=sampler,
        copies_checked=train is not None,
        beyond_context=beyond_context,
    )


def _real_lengths(tokenizer: Tokenizer, level: int, style: str) -> list[int]:
    """Tokens of each of 100 real stories."""
    return [len(ids) for ids in tokenizer.encode_batch(_real_stories(level, style))]


@cache
def _real_stories(level: int, style: str) -> tuple[str, ...]:
    return tuple(stories(n=N_REAL, level=level, style=style, split="fresh"))


def _settled(**filters: Any) -> dict[str, Any]:
    """Plain sampling, spelt out, under the filters; a strategy's name says all by itself."""
    return filters if "strategy" in filters else {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | filters


def sample_documents(model: GPT, tokenizer: Tokenizer, start: str, n: int, **options: Any) -> list[str]:
    """n texts from the beginning of a document on: after end-of-text and `start`, whose last blanks are the model's to
    write. Each is returned with `start`, up to its own end-of-text. options: `generate_ids`'s.
    """
    begun = start.rstrip()
    prompt = [tokenizer.eot, *tokenizer.encode(begun)]
    ids = torch.tensor([prompt] * n, device=model.device)
    out = generate_ids(model, ids, eot=tokenizer.eot, **options)
    return [begun + _decoded(row, tokenizer) for row in out[:, len(prompt) :].tolist()]


def _decoded(row: list[int], tokenizer: Tokenizer) -> str:
    """The text before end-of-text; a row of the vocabulary that the tokenizer has no text for ends it with U+FFFD."""
    end = next((i for i, token in enumerate(row) if token == tokenizer.eot or token >= tokenizer.vocab_size), len(row))
    return tokenizer.decode(row[:end]) + ("" if row[end:][:1] in ([], [tokenizer.eot]) else "\N{REPLACEMENT CHARACTER}")


def share_before(verdict: Verdict) -> float:
    """Share of a story's sentences before the first that breaks a rule; 1 where none does."""
    return 1.0 if verdict.passed else verdict.before / max(verdict.sentences, 1)


def first_broken_rules(texts: list[str], verdicts: list[Verdict], copies: CopyCheck | None) -> list[str | None]:
    """For each story the grader's rule, else `copied`, else `duplicate` where another text is the same, else None."""
    times = Counter(texts)

    def rule(text: str, verdict: Verdict) -> str | None:
        if not verdict.passed:
            return verdict.rule
        if copies is not None and copies.copied_share(text) > COPIED_SHARE:
            return "copied"
        return "duplicate" if times[text] > 1 else None

    return [rule(text, verdict) for text, verdict in zip(texts, verdicts, strict=True)]


def copy_check(train: CopyCheck | Split | Iterable[str] | None, tokenizer: Tokenizer) -> CopyCheck | None:
    """What copies of the training text are found with: built from texts or from a split's documents."""
    if train is None or isinstance(train, CopyCheck):
        return train
    if isinstance(train, Split):
        return CopyCheck(tokenizer.decode(train.document(i)) for i in range(train.n_documents))
    return CopyCheck(train)
