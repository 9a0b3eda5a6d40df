"""Statistics of few paired runs, exact and without a dependency: checked against scipy in tests/test_lab_statistics.py.

Runs are few (3 to 5 seeds) and paired: an arm and its reference share seed and data order, so what is compared is the
mean of differences. With so few the bootstrap of a mean is too narrow, so the interval is Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

EXACT = 8  # pairs whose 40,320 orders are gone through
ALPHA = 0.05  # of intervals (95 %) and of what counts as a difference, after Holm's correction


@dataclass(frozen=True)
class Effect:
    """An arm less its reference, over paired runs."""

    n: int
    mean: float
    low: float
    """95 % interval of Student's t; NaN with one pair, or copies of one."""
    high: float
    p: float
    """Two-sided, of a paired t-test; NaN where the interval is."""

    def interval(self, digits: int) -> str:
        """-0.12 to +0.03; empty where there is none."""
        return f"{self.low:+.{digits}f} to {self.high:+.{digits}f}" if math.isfinite(self.low) else ""


def paired_effect(arm: Sequence[float], reference: Sequence[float]) -> Effect:
    """Differences of runs that share their seed, in the same order (Student 1908). Raises ValueError on none, or on
    unequal numbers."""
    d = np.asarray(arm, float) - np.asarray(reference, float)
    if not len(d) or len(arm) != len(reference):
        raise ValueError(f"{len(arm)} runs cannot be paired with {len(reference)}")
    n, mean = len(d), float(d.mean())
    copies = len(set(arm)) == len(set(reference)) == 1  # neither side's measurement depends on the seed
    if n < 2 or copies:
        return Effect(n, mean, math.nan, math.nan, math.nan)
    error = float(d.std(ddof=1)) / math.sqrt(n)
    half = t_quantile(1 - ALPHA / 2, n - 1) * error
    p = (1.0 if mean == 0.0 else 0.0) if error == 0.0 else 2.0 * t_tail(abs(mean) / error, n - 1)
    return Effect(n, mean, mean - half, mean + half, p)


def told_p(p: float) -> str:
    """= 0.0123, or < 0.0001: what stands behind p."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"


def t_tail(t: float, df: int) -> float:
    """P(T > t) of Student's t with a whole number of degrees of freedom, t >= 0: the finite sums of Abramowitz & Stegun
    26.7.3 and 26.7.4. Beyond t = 2, where they cancel, the incomplete beta function's series 26.5.4 instead."""
    x = df / (df + t * t)  # = cos(theta) ** 2
    if t > 2.0:
        return 0.5 * _beta_series(x, df / 2, 0.5)
    theta = math.atan2(t, math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    term = total = 1.0 if df % 2 == 0 else cosine
    for k in range(1, df // 2 if df % 2 == 0 else (df - 1) // 2):
        step = (2 * k - 1) / (2 * k) if df % 2 == 0 else 2 * k / (2 * k + 1)
        term *= step * cosine * cosine
        total += term
    inside = sine * total if df % 2 == 0 else 2 / math.pi * (theta + (sine * total if df > 1 else 0.0))
    return 0.5 * (1.0 - inside)


def _beta_series(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta I_x(a, b) , whose terms are all positive: x^a (1 - x)^b / (a B(a, b)) (1 + sum of
    B(a + 1, n + 1) / B(a + b, n + 1) x^(n + 1))."""
    front = math.exp(
        a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    ) if x > 0 else 0.0  # fmt: skip
    term = total = 1.0
    n = 0
    while term > 1e-17 * total:
        term *= (a + b + n) / (a + 1 + n) * x
        total += term
        n += 1
    return front / a * total


def t_quantile(share: float, df: int) -> float:
    """t with P(T <= t) = share, for shares from 0.5 on: by bisection."""
    tail = 1.0 - share
    low, high = 0.0, 1.0
    while t_tail(high, df) > tail:
        low, high = high, 2 * high
    while high - low > 1e-14 * high:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if t_tail(middle, df) > tail else (low, middle)
    return 0.5 * (low + high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of comparisons (Holm 1979): p of rank k is multiplied by how many are not below it,
    and never less than a smaller one's. NaN stays NaN and does not count."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's rho (1904), ties at their mean rank, and its two-sided p: over all orders of up to EXACT pairs, of
    more by Student's t with n - 2 degrees of freedom. NaN where a side is constant or there are under three pairs."""
    n = len(x)
    if n != len(y):
        raise ValueError(f"{n} values cannot be paired with {len(y)}")
    a, b = ranks(x), ranks(y)
    if n < 3 or a.std() == 0 or b.std() == 0:
        return math.nan, math.nan
    a, b = a - a.mean(), b - b.mean()
    rho = float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))
    rho = max(-1.0, min(1.0, rho))
    if n <= EXACT:
        orders = np.array(list(permutations(range(n))))
        others = (a * b[orders]).sum(1) / math.sqrt((a * a).sum() * (b * b).sum())
        return rho, float((np.abs(others) >= abs(rho) - 1e-12).mean())
    if 1.0 - abs(rho) < 1e-15:
        return math.copysign(1.0, rho), 0.0
    return rho, 2.0 * t_tail(abs(rho) * math.sqrt((n - 2) / (1 - rho * rho)), n - 2)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1 on, ties at the mean of theirs."""
    x = np.asarray(values, float)
    _, places, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


@dataclass(frozen=True)
class PowerLaw:
    """y = floor + scale x ^ -power."""

    floor: float
    scale: float
    power: float
    error: float
    """Root mean square of what is left, in y's unit."""

    def __call__(self, x: float) -> float:
        return self.floor + self.scale * x**-self.power


def power_law(x: Sequence[float], y: Sequence[float], with_floor: bool = True) -> PowerLaw:
    """Least squares of y = floor + scale x^-power with power in [0.01, 10]: for each power the other two are linear,
    and the power is found by a grid and golden sections. Raises ValueError on fewer points than numbers to fit, or
    x <= 0.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) != len(ys) or len(np.unique(xs)) < 2 + with_floor or (xs <= 0).any():
        raise ValueError(f"a power law needs {2 + with_floor} points with different x above 0")
    unit = math.exp(float(np.log(xs).mean()))  # powers of x stay near 1

    def solved(log_power: float) -> tuple[float, np.ndarray]:
        column = (xs / unit) ** -math.exp(log_power)
        design = np.stack([column, np.ones_like(xs)], axis=1) if with_floor else column[:, None]
        found = np.linalg.lstsq(design, ys, rcond=None)[0]
        return float(((design @ found - ys) ** 2).sum()), found

    grid = np.linspace(math.log(0.01), math.log(10.0), 200)
    best = int(np.argmin([solved(at)[0] for at in grid]))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-10:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if solved(left)[0] <= solved(right)[0] else (left, high)
    rest, found = solved(0.5 * (low + high))
    power = math.exp(0.5 * (low + high))
    floor = float(found[1]) if with_floor else 0.0
    return PowerLaw(floor, float(found[0]) * unit**power, power, math.sqrt(rest / len(xs)))


def crossing(x: Sequence[float], y: Sequence[float], target: float) -> float | None:
    """The first x at which y has fallen to target, straight lines between points; None where it does not."""
    before: tuple[float, float] | None = None
    for at, value in zip(x, y, strict=True):
        if value <= target:
            if before is None or before[1] == value:
                return float(at)
            return float(before[0] + (before[1] - target) / (before[1] - value) * (at - before[0]))
        before = (at, value)
    return None
