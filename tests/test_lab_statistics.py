"""The lab's statistics against scipy where it is installed, and against its figures and closed forms everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm.lab.analysis import verdict_of
from minilm.lab.statistics import (
    Effect,
    crossing,
    holm,
    paired_effect,
    power_law,
    rank_correlation,
    ranks,
    t_quantile,
    t_tail,
)

# scipy 1.17: stats.t.sf(t, df) and stats.t.ppf(0.975, df).
TAILS = [
    (0.5, 1, 0.35241638234956674),
    (2.0, 2, 0.09175170953613698),
    (3.5, 3, 0.019740518809641387),
    (12.0, 4, 0.0001382142742514865),
    (1e4, 2, 4.9999999250000005e-09),
    (40.0, 30, 6.863022597203209e-28),
]
QUANTILES = [(1, 12.706204736174694), (2, 4.302652729749462), (4, 2.7764451051977934), (30, 2.0422724563012378)]


@pytest.mark.parametrize(("t", "df", "tail"), TAILS)
def test_tail_of_t_has_known_values(t: float, df: int, tail: float) -> None:
    assert t_tail(t, df) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize(("df", "value"), QUANTILES)
def test_quantile_of_t_has_known_values(df: int, value: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(value, rel=1e-10)


def test_tail_of_t_equals_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 2, 3, 4, 5, 8, 13, 40, 101):
        for t in (0.0, 1e-3, 0.3, 1.0, 2.2, 4.0, 9.0, 55.0, 1e3):
            assert t_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-9, abs=1e-300), (t, df)
        assert t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)


def test_closed_forms_of_t() -> None:
    for t in (0.1, 1.0, 7.0):
        assert t_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-12)  # Cauchy's
        assert t_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), rel=1e-9)


def test_paired_effect_of_known_runs() -> None:
    # scipy.stats.ttest_rel([1.02, 1.10, 0.97], [1.00, 1.05, 0.96]) and its confidence_interval().
    effect = paired_effect([1.02, 1.10, 0.97], [1.00, 1.05, 0.96])
    d = np.array([0.02, 0.05, 0.01])
    half = 4.302652729749462 * d.std(ddof=1) / math.sqrt(3)
    assert effect.mean == pytest.approx(d.mean())
    assert (effect.low, effect.high) == pytest.approx((d.mean() - half, d.mean() + half))
    t = d.mean() / (d.std(ddof=1) / math.sqrt(3))
    assert effect.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=9))
def test_paired_effect_equals_scipys(pairs: list[tuple[float, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = np.array(pairs).T
    if (x - y).std() < 1e-6:
        return
    effect, theirs = paired_effect(list(x), list(y)), stats.ttest_rel(x, y)
    interval = theirs.confidence_interval(0.95)
    assert effect.p == pytest.approx(theirs.pvalue, rel=1e-7, abs=1e-12)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-9)


def test_effects_of_few_and_equal_runs() -> None:
    one = paired_effect([1.5], [1.0])
    assert (one.n, one.mean) == (1, 0.5)
    assert math.isnan(one.p)
    assert math.isnan(one.low)
    assert paired_effect([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired_effect([2.0, 3.0], [1.0, 2.0]).p == 0.0  # the same difference twice
    assert math.isnan(paired_effect([2.0, 2.0], [1.0, 1.0]).p)  # one measurement, copied
    for arm, reference in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_effect(arm, reference)


def test_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(800):
        seeds, noise = random.normal(0, 5, 4), random.normal(0.3, 1, 4)  # what seeds share falls out of pairs
        effect = paired_effect(list(seeds + noise), list(seeds))
        hits += effect.low <= 0.3 <= effect.high
    assert abs(hits / 800 - 0.95) < 0.025


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(p, "holm")
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    with_nan = holm([0.02, math.nan, 0.03])
    assert with_nan[0] == pytest.approx(0.04)
    assert math.isnan(with_nan[1])
    assert holm([]) == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    rejected = set()
    for k, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] * (len(p_values) - k) >= 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p < 0.05} == rejected


def test_rank_correlation_of_known_ranks() -> None:
    assert list(ranks([3.0, 1.0, 3.0, 2.0])) == [3.5, 1.0, 3.5, 2.0]
    rho, p = rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert rho == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert p == pytest.approx(2 / 15)  # 16 of 120 orders are as far from 0
    assert rank_correlation([1, 2, 3], [30, 20, 10]) == pytest.approx((-1.0, 2 / 6))
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3])[0])
    with pytest.raises(ValueError, match="cannot be paired"):
        rank_correlation([1, 2, 3], [1, 2])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=9, max_size=14))
def test_rank_correlation_equals_scipys(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        return
    rho, p = rank_correlation(x, y)
    theirs = stats.spearmanr(x, y)
    assert rho == pytest.approx(theirs.statistic, abs=1e-12)
    assert p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=5))
def test_p_of_few_ranks_equals_scipys_permutations(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        return
    orders = stats.permutation_test(
        (x,), lambda a: stats.spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=math.inf
    )
    rho, p = rank_correlation(x, y)
    assert rho == pytest.approx(orders.statistic, abs=1e-12)
    # scipy doubles the smaller tail; ours counts both, which are equal without ties.
    if len(set(x)) == len(x) and len(set(y)) == len(y):
        assert p == pytest.approx(min(orders.pvalue, 1.0), abs=1e-12)
    assert 0 < p <= 1


def test_power_law_is_found_again() -> None:
    x = [1e4, 3e4, 1e5, 4e5, 2e6]
    law = power_law(x, [0.7 + 35.0 * at**-0.34 for at in x])
    assert (law.floor, law.scale, law.power) == pytest.approx((0.7, 35.0, 0.34), rel=1e-4)
    assert law.error < 1e-7
    assert law(1e6) == pytest.approx(0.7 + 35.0 * 1e6**-0.34)
    straight = power_law(x[:2], [5.0 * at**-0.2 for at in x[:2]], with_floor=False)
    assert (straight.floor, straight.scale, straight.power) == pytest.approx((0.0, 5.0, 0.2), rel=1e-5)
    for bad in ([1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match="power law"):
            power_law(bad, [1.0] * len(bad))


def test_power_law_equals_scipys_least_squares() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(3)
    x = np.array([1e4, 3e4, 1e5, 4e5, 2e6, 7e6])
    y = 0.7 + 35.0 * x**-0.34 + random.normal(0, 0.004, len(x))

    def curve(x: np.ndarray, floor: float, scale: float, power: float) -> np.ndarray:
        return floor + scale * (x / 1e5) ** -power

    (floor, scale, power), _ = optimize.curve_fit(curve, x, y, p0=(0.5, 1.0, 0.3), xtol=1e-14, ftol=1e-14)
    law = power_law(list(x), list(y))
    assert (law.floor, law.power) == pytest.approx((floor, power), rel=1e-4)
    assert law.scale == pytest.approx(scale * 1e5**power, rel=1e-3)


def test_crossing() -> None:
    assert crossing([0, 10, 20], [4.0, 2.0, 1.0], 3.0) == pytest.approx(5.0)
    assert crossing([0, 10, 20], [4.0, 2.0, 1.0], 1.0) == 20.0
    assert crossing([5, 10], [1.0, 2.0], 1.5) == 5.0
    assert crossing([0, 10], [4.0, 2.0], 1.0) is None
    assert crossing([], [], 1.0) is None


def test_what_no_seed_changes_is_measured_once() -> None:
    for mean, verdict in ((0.2, "measured once"), (-0.2, "measured once"), (0.005, "same"), (0.0, "same")):
        effect = paired_effect([1.0 + mean] * 3, [1.0] * 3)
        assert effect.mean == pytest.approx(mean)
        assert verdict_of(effect, effect.p, 0.01, "lower") == verdict
    one = paired_effect([1.2], [1.0])  # a single run of two that seeds do change
    assert verdict_of(one, one.p, 0.01, "lower") == "undecided"


@pytest.mark.parametrize(
    ("mean", "half", "p", "better", "verdict"),
    [
        (0.002, 0.005, 0.001, "lower", "same"),  # certain, and too small to matter
        (-0.2, 0.1, 0.01, "lower", "better"),
        (0.2, 0.1, 0.01, "lower", "worse"),
        (0.2, 0.1, 0.01, "higher", "better"),
        (0.2, 0.1, 0.2, "lower", "undecided"),  # after Holm's correction
    ],
)
def test_verdicts(mean: float, half: float, p: float, better: str, verdict: str) -> None:
    effect = Effect(3, mean, mean - half, mean + half, p)
    assert verdict_of(effect, p, 0.01, better) == verdict
