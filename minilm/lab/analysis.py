"""From lines of results to what they say: values by arm and seed, paired effects, verdicts.

A verdict is one of five. same: the 95 % interval lies within the question's margin, whatever p is. better, worse: it
does not, and p is below 0.05 after Holm's correction over all comparisons of the question. measured once: no seed
changes what either side measures, and they differ by more than the margin. undecided: none of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from minilm.lab.cells import Chosen, Results, base_address, best_rate, chosen_by, decided, paired, timed
from minilm.lab.question import Arm, Line, Measure, Question, Scale
from minilm.lab.statistics import ALPHA, Effect, crossing, holm, paired_effect

Verdict = Literal["better", "worse", "same", "undecided", "measured once"]
TIMED = ("tokens_per_second",)  # what other work on the machine would change: from timed cells only


@dataclass(frozen=True)
class ArmResult:
    """What an arm came to."""

    arm: Arm
    chosen: Chosen
    """By the sweep or search; None where there was none, or where everything tried diverged."""
    swept: tuple[tuple[float, float], ...]
    """(rate, the loss that chooses) of the sweep; infinite where it diverged."""
    values: Mapping[str, tuple[float, ...]]
    """Measure -> a value for each seed, NaN where it has none; of timed ones one value."""
    diverged: int
    """Paired runs whose loss was no longer finite."""
    bases: tuple[tuple[str, str], ...] = ()
    """Of each paired run the base that it started from, and what tells its weights from another training of it."""

    @property
    def rate(self) -> float | None:
        return self.chosen if self.chosen is None or isinstance(self.chosen, float) else self.chosen.get("lr")

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest tried: a better one may lie beyond."""
        rates = [rate for rate, _ in self.swept]
        return not self.arm.search and len(rates) > 1 and self.rate in (min(rates), max(rates))

    def mean(self, measure: str) -> float:
        """Over the seeds that have a value; NaN where none has."""
        found = [value for value in self.values.get(measure, ()) if math.isfinite(value)]
        return sum(found) / len(found) if found else math.nan


@dataclass(frozen=True)
class Comparison:
    """An arm against the reference of its group, by one measure."""

    arm: Arm
    reference: Arm
    effect: Effect
    p: float
    """After Holm's correction."""
    verdict: Verdict


@dataclass(frozen=True)
class Analysis:
    """All that a report tells of a question."""

    question: Question
    scale: Scale
    arms: tuple[ArmResult, ...]
    """Those that have all their paired runs."""
    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...]
    """Labels of arms with cells still to run."""
    untimed: tuple[str, ...]
    """Labels of arms whose speed is still to be taken."""
    lines: tuple[Line, ...]

    def verdict(self, label: str, measure: str = "") -> Verdict | None:
        """measure: another than the first, of which every difference matters."""
        found = self.comparisons
        if measure:
            asked = next(m for m in self.question.measures if m.name == measure)
            found = tuple(compare(self.question, list(self.arms), asked, 0.0))
        return next((c.verdict for c in found if c.arm.label == label), None)

    def among(self, verdict: Verdict) -> list[Comparison]:
        return [c for c in self.comparisons if c.verdict == verdict]


def analyse(question: Question, scale: Scale, results: Results) -> Analysis:
    """Raises nothing for what is missing: it is named."""
    found, missing, slow, lines = [], [], [], []
    for arm in question.arms(scale):
        swept = decided(question, scale, arm, results)
        rate = best_rate(swept, results, arm) if all(c.address in results for c in swept) else None
        cells = paired(question, scale, arm, rate) if not swept or rate is not None else []
        clock = timed(question, scale, arm, rate) if question.timed and cells else None
        wanted = [*swept, *cells]
        here = [results[cell.address] for cell in wanted if cell.address in results]
        untimed = clock is not None and clock.address not in results
        lines += [*here, *([results[clock.address]] if clock and not untimed else [])]
        if len(here) < len(wanted) or (not cells and any(c.address not in results for c in swept)):
            missing.append(arm.label)
            continue
        tried = [(c.config.lr, chosen_by(c, results[c.address])) for c in swept]
        runs = [results[cell.address]["metrics"] for cell in cells]
        slow += [arm.label] if untimed else []
        values = _values(runs, results[clock.address]["metrics"] if clock and not untimed else {})
        diverged = sum("diverged" in run for run in runs) if cells else scale.n_seeds
        bases = tuple(_base_of(results[cell.address]) for cell in cells)
        found.append(ArmResult(arm, rate, tuple(tried), values, diverged, bases))
    found = _steps_to_reference(question, scale, found, results)
    compared = tuple(compare(question, found, question.measures[0], question.margin))
    return Analysis(question, scale, tuple(found), compared, tuple(missing), tuple(slow), tuple(lines))


def _base_of(line: Line) -> tuple[str, str]:
    """A base that another machine trained has other weights, whatever its address: results without a mark of them are
    told apart by the processor."""
    base = line["settings"]["base"]
    if base is None or not base.get("weights", True):
        return "", ""
    return base_address(base), str(line.get("base_weights") or line["versions"]["processor"])


def another_base(result: ArmResult, reference: ArmResult, seed: int) -> bool:
    """Whether the two started from two trainings of one base, which their difference would then hold too."""
    if max(len(result.bases), len(reference.bases)) <= seed:
        return False
    (one, mine), (other, theirs) = result.bases[seed], reference.bases[seed]
    return one == other and mine != theirs


def reference_of(question: Question, arm: Arm, found: list[ArmResult]) -> ArmResult | None:
    """The reference of the arm's group, where it is there."""
    return next((r for r in found if r.arm.group == arm.group and r.arm.name == question.reference), None)


def _values(runs: list[Line], clock: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    names = {name for run in runs for name, value in run.items() if isinstance(value, int | float)}
    values = {n: tuple(float(run.get(n, math.nan)) for run in runs) for n in names if n not in TIMED}
    speed = clock.get("tokens_per_second", math.nan)
    if math.isfinite(speed):
        values["tokens_per_second"] = (float(speed),)
        values["seconds_alone"] = tuple(tokens / speed for tokens in values.get("tokens", ()))
    return values


def compare(question: Question, found: list[ArmResult], measure: Measure, margin: float) -> list[Comparison]:
    """One family: every arm against the reference of its group."""
    effects: list[tuple[Arm, Arm, Effect]] = []
    for result in found:
        reference = reference_of(question, result.arm, found)
        if reference is None or reference is result:
            continue
        values, theirs = (r.values.get(measure.name, ()) for r in (result, reference))
        both = list(zip(values, theirs, strict=False))
        pairs = [pair for pair in both if all(map(math.isfinite, pair))]
        if any(another_base(result, reference, i) for i in range(len(both))):
            continue
        if pairs:
            effects.append((result.arm, reference.arm, paired_effect(*zip(*pairs, strict=True))))
    adjusted = holm([effect.p for _, _, effect in effects])
    return [
        Comparison(arm, reference, effect, p, verdict_of(effect, p, margin, measure.better))
        for (arm, reference, effect), p in zip(effects, adjusted, strict=True)
    ]


def verdict_of(effect: Effect, p: float, margin: float, better: str) -> Verdict:
    """p: after correction. NaN, from one pair, decides nothing; from copies of one it is a measurement."""
    once = effect.n > 1 and math.isnan(effect.p)
    low, high = (effect.mean, effect.mean) if once else (effect.low, effect.high)
    if -margin <= low and high <= margin:
        return "same"
    if once:
        return "measured once"
    if p < ALPHA:
        return "better" if (effect.mean < 0) == (better == "lower") else "worse"
    return "undecided"


def _steps_to_reference(question: Question, scale: Scale, found: list[ArmResult], results: Results) -> list[ArmResult]:
    """Adds, where it is asked for, after how many steps each run's validation loss is the reference's last one."""
    if all(measure.name != "steps_to_reference" for measure in question.measures):
        return found
    complete = []
    for result in found:
        reference = reference_of(question, result.arm, found)
        steps = []
        if reference is not None and result.rate is not None and reference.rate is not None:
            pairs = zip(
                paired(question, scale, result.arm, result.chosen),
                paired(question, scale, reference.arm, reference.chosen),
                strict=True,
            )
            for mine, theirs in pairs:
                curve = results[mine.address]["metrics"].get("curve", [])
                target = results[theirs.address]["metrics"].get("val_loss", -math.inf)
                reached = crossing([step for step, _ in curve], [loss for _, loss in curve], target)
                steps.append(math.nan if reached is None else reached)
        values = {**result.values, "steps_to_reference": tuple(steps)}
        complete.append(replace(result, values=values))
    return complete
