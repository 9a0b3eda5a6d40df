"""Is one model better than another, or is it chance? Paired over the same documents (or windows of one text).

Tokens of one document are not independent, so what is drawn is the document; of one long text it is the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minilm.errors import UsageError
from minilm.evaluation.intervals import Estimate
from minilm.evaluation.perplexity import LN2, Part, Perplexity

RESAMPLES = 10_000
DRAWN_AT_ONCE = 1 << 22  # numbers held while resampling


@dataclass(frozen=True)
class Difference:
    """What B has more than A, per unit of the protocol, and whether that can be chance. `str()` is a sentence."""

    a: str
    b: str
    value: Estimate
    """Nats per token or word, bits per byte or character: B less A, with a paired bootstrap's 95 % interval."""
    p: float
    """Of a difference as large where models do not matter: approximate randomization (Noreen 1989), two-sided."""
    n_units: int
    unit: str
    drawn: str
    """What was drawn: documents or windows."""

    @property
    def measure(self) -> str:
        """What `value` is."""
        return f"{'nats' if self.unit in ('token', 'word') else 'bits'} per {self.unit}"

    def __str__(self) -> str:
        what = self.measure
        low, high = sorted((abs(self.value.low), abs(self.value.high)))
        proof = f"p {'<' if self.p < 0.0002 else '='} {max(self.p, 0.0002):.4f}, {self.n_units:,} {self.drawn}"
        if self.value.low <= 0.0 <= self.value.high or self.p >= 0.05:
            return (
                f"{self.a} and {self.b} cannot be told apart: {self.value.value:+.4f} {what} "
                f"(95 % {self.value.low:+.4f} to {self.value.high:+.4f}; {proof})"
            )
        better, worse = (self.b, self.a) if self.value.value < 0 else (self.a, self.b)
        times = ""
        if self.unit in ("token", "word"):
            times = f", a perplexity {100 * (1 - math.exp(-abs(self.value.value))):.1f} % lower"
        return (
            f"{better} is better than {worse} by {abs(self.value.value):.4f} {what} "
            f"(95 % {low:.4f} to {high:.4f}; {proof}){times}"
        )


def difference(
    a: Perplexity, a_parts: Sequence[Part], b: Perplexity, b_parts: Sequence[Part], *, seed: int = 0
) -> Difference:
    """Compares two measurements of one text by one protocol. Raises UsageError where they are unlike, or the text has
    fewer than two documents (of one text: windows) to compare, or one that only one tokenizer has a target in."""
    a.check_alike(b)
    by_document = a.protocol.documents == "each" and a.n_documents > 1
    if a.tokenizer != b.tokenizer and not (by_document and a.protocol.first == "after_eot"):
        raise UsageError(
            "models with different tokenizers are compared by document, from its first token on: give a text of "
            "several (a folder of files) with --documents each --first after_eot"
        )
    left, right = (_per_unit(parts, by_document) for parts in (a_parts, b_parts))
    for number in sorted(left.keys() ^ right.keys()):
        raise UsageError(f"document {number + 1} has a token for one of the two tokenizers only: leave it out")
    if len(left) < 2:
        raise UsageError("one window cannot tell chance from difference: give a longer text, or several documents")
    (x, x_tokens), (y, y_tokens) = (np.array(list(side.values())).T for side in (left, right))
    shares = (x_tokens / x_tokens.sum() + y_tokens / y_tokens.sum()) / 2  # of the text: tokenizers may part it unlike
    a.check_counted()
    total = {"token": a.n_tokens, "word": a.n_words, "byte": a.n_bytes, "character": a.n_characters}[a.protocol.unit]
    scale = 1.0 / total / (1.0 if a.protocol.unit in ("token", "word") else LN2)
    found, p = paired(x, y, shares, seed=seed)
    value = Estimate(*(scale * number for number in found))
    drawn = "documents" if by_document else "windows"
    return Difference(a.model, b.model, value, p, len(x), a.protocol.unit, drawn)


def paired(
    x: np.ndarray, y: np.ndarray, sizes: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, float]:
    """x and y (N,): what A and B sum to on each of N units of the given sizes, such as documents and their tokens.

    Returns sum(y - x) / sum(sizes) with percentiles of a bootstrap of units (Efron 1979), and the two-sided p of
    flipping each pair at random.
    """
    d = np.asarray(y, float) - np.asarray(x, float)
    random = np.random.default_rng(seed)
    means, flipped = [], []
    rows = max(1, DRAWN_AT_ONCE // len(d))
    for start in range(0, resamples, rows):
        n = min(rows, resamples - start)
        drawn = random.integers(len(d), size=(n, len(d)))
        means.append(d[drawn].sum(1) / sizes[drawn].sum(1))
        flipped.append(np.abs((d * random.choice([-1.0, 1.0], size=(n, len(d)))).sum(1)))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    # A rounding error must not make a difference of exactly the observed size smaller than it.
    as_large = int((np.concatenate(flipped) >= abs(d.sum()) * (1 - 1e-12)).sum())
    return Estimate(float(d.sum() / sizes.sum()), float(low), float(high)), (as_large + 1) / (resamples + 1)


def _per_unit(parts: Sequence[Part], by_document: bool) -> dict[int, tuple[float, float]]:
    """Number of each document, or of each window, in order -> its nats and tokens."""
    found: dict[int, tuple[float, float]] = {}
    for window, part in enumerate(parts):
        unit = part.document if by_document else window
        nats, tokens = found.get(unit, (0.0, 0.0))
        found[unit] = nats + float(part.nats.sum(dtype=np.float64)), tokens + len(part.nats)
    return found
