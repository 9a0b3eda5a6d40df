"""Does one model write otherwise than another? Measures of each text, paired by its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from minilm.errors import UsageError
from minilm.evaluation import likeness
from minilm.evaluation.compare import paired
from minilm.evaluation.generated import Sample
from minilm.evaluation.intervals import Estimate
from minilm.evaluation.ngram import words
from minilm.evaluation.repetition import rep_r, seq_rep_n
from minilm.model.gpt import GPT
from minilm.text.tokenizer import Tokenizer

MEASURED: dict[str, Callable[[list[str]], float]] = {
    "length in words": lambda text: float(len(text)),
    **{f"seq-rep-{n}": partial(seq_rep_n, n=n) for n in (1, 2, 3, 4)},
    "rep-r": rep_r,
}
"""Of a text's words."""


@dataclass(frozen=True)
class TextDifference:
    """What B's texts have more of a measure than A's, after the same prompts. `str()` is a sentence."""

    measure: str
    a: str
    b: str
    value: Estimate
    """Mean over texts of B less A, with a paired bootstrap's 95 % interval."""
    p: float
    """Approximate randomization, two-sided."""
    n_prompts: int

    def __str__(self) -> str:
        value, low, high = self.value
        proof = f"p {'<' if self.p < 0.0002 else '='} {max(self.p, 0.0002):.4f}, {self.n_prompts:,} prompts"
        proof = f"(95 % {low:+.4g} to {high:+.4g}; {proof})"
        if low <= 0.0 <= high or self.p >= 0.05:
            return f"{self.measure}: {self.a} and {self.b} cannot be told apart, {value:+.4g} {proof}"
        more = "more" if value > 0 else "less"
        return f"{self.measure}: {self.b} has {abs(value):.4g} {more} than {self.a} {proof}"


def text_scores(
    samples: Sequence[Sample], *, judge: GPT | None = None, judge_tokenizer: Tokenizer | None = None
) -> dict[str, np.ndarray]:
    """Measure -> its value of each text, (N,); NaN where a text is too short for it."""
    split = [words(sample.text) for sample in samples]
    found = {name: np.array([measure(text) for text in split], float) for name, measure in MEASURED.items()}
    if any(sample.ended is not None for sample in samples):
        found["ended by end-of-text"] = np.array([float(bool(sample.ended)) for sample in samples])
    if judge is not None and judge_tokenizer is not None:
        nats, tokens = likeness.document_nats(judge, judge_tokenizer, [sample.text for sample in samples])
        found["nats per token under the judge"] = nats / np.where(tokens > 0, tokens, np.nan)
    return found


def text_differences(
    a: str, a_scores: dict[str, np.ndarray], b: str, b_scores: dict[str, np.ndarray], *, seed: int = 0
) -> list[TextDifference]:
    """One per measure that both have, over the prompts at which both texts have it. UsageError: under two prompts."""
    found = []
    for name, x in a_scores.items():
        if name not in b_scores:
            continue
        if len(x) < 2:
            raise UsageError("one prompt cannot tell chance from difference: give two or more")
        kept = np.isfinite(x) & np.isfinite(b_scores[name])
        if kept.sum() >= 2:
            value, p = paired(x[kept], b_scores[name][kept], np.ones(int(kept.sum())), seed=seed)
            found.append(TextDifference(name, a, b, value, p, int(kept.sum())))
    return found
