"""95 % intervals: of a share; of what was measured on texts, by a bootstrap where each text has its own number, by a
jackknife where only all together have one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

RESAMPLES = 2000
DRAWN_AT_ONCE = 2_000_000  # numbers drawn by the bootstrap, which bounds its memory to some 60 MB
GROUPS = 10  # left out in turn by the jackknife
Z95 = 1.959964

T = TypeVar("T")


class Estimate(NamedTuple):
    """A number and its 95 % interval; NaN ends where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0) -> Estimate:
    """Mean over texts, or sum of values over sum of weights, NaN left out; percentiles of 2,000 resamples of texts
    (Efron 1979), no interval from one text."""
    x = np.asarray(values, float)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    kept = np.isfinite(x) & (w > 0)
    x, w = x[kept], w[kept]
    value = float(x.sum() / w.sum()) if len(x) else np.nan
    if len(x) < 2:
        return Estimate(value, np.nan, np.nan)
    random, means, rows = np.random.default_rng(seed), list[np.ndarray](), max(1, DRAWN_AT_ONCE // len(x))
    for start in range(0, RESAMPLES, rows):
        drawn = random.integers(len(x), size=(min(rows, RESAMPLES - start), len(x)))
        means.append(x[drawn].sum(1) / w[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def jackknife(
    measure: Callable[[list[T]], float], texts: Sequence[T], groups: int = GROUPS, share: bool = False
) -> Estimate:
    """measure(texts) +- 1.96 standard errors from leaving out each of `groups` groups (Quenouille 1956, Tukey 1958).

    For what counts distinct things: a resample repeats texts, and so its value is not one of texts like these.
    share: the interval is cut to 0..1.
    """
    value = measure(list(texts))
    groups = min(groups, len(texts))
    if groups < 2:
        return Estimate(value, np.nan, np.nan)
    left = np.array([measure([t for i, t in enumerate(texts) if i % groups != g]) for g in range(groups)])
    error = float(np.sqrt((groups - 1) / groups * ((left - left.mean()) ** 2).sum()))
    low, high = value - Z95 * error, value + Z95 * error
    return Estimate(value, *map(float, np.clip([low, high], 0, 1))) if share else Estimate(value, low, high)


def share(hits: Sequence[bool | None]) -> Estimate:
    """Of the hits that are known, with Wilson's interval: all of a few are not all of any number, which no resample
    of them can tell."""
    known = [hit for hit in hits if hit is not None]
    if not known:
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(sum(known) / len(known), *wilson(sum(known), len(known)))


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a share, hits of n (Wilson 1927); z = 1.96 covers 95 %."""
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
