"""Sentences made from numbers: the answer to a question, and whether what was published agrees."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np

from minilm.lab.analysis import Analysis, Comparison
from minilm.lab.question import Claim, Measure
from minilm.lab.statistics import paired_effect, power_law, rank_correlation, told_p

WITH_NUMBERS = 2  # arms of a verdict whose effect an answer gives; the table has all


def answer(analysis: Analysis) -> str:
    """Two sentences: what is better than the reference, and what became of the other arms."""
    reference, measure = analysis.question.reference, analysis.question.measures[0]
    if not analysis.comparisons:
        return "Undecided at this scale: no arm can be compared yet. Nothing follows for any of them."
    better = sorted(analysis.among("better"), key=lambda c: -abs(c.effect.mean))
    if better:
        best = better[0]
        first = f"Better than the reference, `{reference}`: {best.arm.label}, {told(best, measure)}"
        if others := [c.arm.label for c in better[1:]]:
            first += f"; so {'is' if len(others) == 1 else 'are'} {listed(others)}"
    elif len(analysis.among("same")) == len(analysis.comparisons):
        all_arms = listed([c.arm.label for c in analysis.comparisons])
        first = f"No difference found that matters between the reference, `{reference}`, and {all_arms}"
        return f"{first}. Every 95 % interval lies within {_margin(analysis)}."
    else:
        first = f"Nothing was found to be better than the reference, `{reference}`"
    rest = []
    if worse := analysis.among("worse"):
        rest.append(f"worse: {_strongest(worse, measure)}")
    if same := analysis.among("same"):
        which = listed([c.arm.label for c in same])
        rest.append(f"no difference found that matters (none beyond {_margin(analysis)}): {which}")
    if once := analysis.among("measured once"):
        rest.append(f"measured once, no seed changing it: {_strongest(once, measure)}")
    if open_ := analysis.among("undecided"):
        rest.append(f"undecided at this scale: {_strongest(open_, measure)}")
    if n_at_edge := sum(r.at_edge for r in analysis.arms):
        arms = f"{n_at_edge} of {len(analysis.arms)} arms"
        rest.append(f"{arms} best at an edge of the rates tried so far, perhaps better beyond (marked in the table)")
    second = "; ".join(rest) or "no arm is worse, and none was left undecided"
    return f"{first}. {second[0].upper()}{second[1:]}."


def _strongest(comparisons: list[Comparison], measure: Measure) -> str:
    """All of them, those of the largest effects with it."""
    ordered = sorted(comparisons, key=lambda c: -abs(c.effect.mean))
    with_numbers = [f"{c.arm.label} ({told(c, measure)})" for c in ordered[:WITH_NUMBERS]]
    return listed(with_numbers + [c.arm.label for c in ordered[WITH_NUMBERS:]])


def told(comparison: Comparison, measure: Measure) -> str:
    """by 0.12 nats per token lower validation loss (95 % ... to ..., p ..., 3 seeds)."""
    effect, digits = comparison.effect, measure.digits
    interval = "no interval from one seed" if effect.n == 1 else "one measurement"
    if ends := effect.interval(digits):
        interval = f"95 % {ends}, p {told_p(comparison.p)}, {effect.n} seeds"
    return f"{measure.title} {effect.mean:+.{digits}f}{_unit(measure)} ({interval})"


def change_of_default(analysis: Analysis) -> str:
    """Whether the outcome that would change a default has come about, as far as the first measure tells."""
    if not analysis.question.changes_when:
        return "No verdict decides that; table and pictures show it."
    of = analysis.question.changes_of
    decisive = [c for verdict in analysis.question.changes_when for c in analysis.among(verdict)]
    if found := [c.arm.label for c in decisive if of in ("", c.arm.name)]:
        return f"By the first measure it has come about: {listed(found)}."
    lower = analysis.question.measures[0].better == "lower"
    once = [c for c in analysis.among("measured once") if (c.effect.mean < 0) == lower]
    if analysis.missing or analysis.among("undecided") or once:
        return "It has not come about, and is not excluded."
    return "It has not come about."


def agreement(analysis: Analysis, claim: Claim) -> str:
    """What was found beside what a publication says of the same arms, or of pairs of them."""
    labels: dict[str, list[str]] = {}
    for result in analysis.arms:
        for name in {result.arm.name, result.arm.label}:
            labels.setdefault(name, []).append(result.arm.label)
    found = []
    for name, says in claim.says.items():
        here = labels.get(name, [])
        verdicts = [v for label in here if (v := analysis.verdict(label, claim.measure)) is not None]
        fitting = {"better", "same"} if says == "not worse" else {says}
        if len(verdicts) < max(len(here), 1):
            told_here = f"not {'compared' if here else 'measured'} here"
        elif set(verdicts) <= fitting:
            told_here = f"agrees ({says})"
        elif set(verdicts) <= {*fitting, "undecided", "measured once"}:
            told_here = "undecided here"
        else:
            each = [f"{n} times {verdict}" if n > 1 else verdict for verdict, n in Counter(verdicts).items()]
            told_here = f"disagrees (published {says}, here {', '.join(each)})"
        found.append(f"{name}: {told_here}{_edge(analysis, [*here, analysis.question.reference])}")
    by = next((f"by {m.title}: " for m in analysis.question.measures if m.name == claim.measure), "")
    parts = [by + "; ".join(found)] if found else []
    parts += [_pair(analysis, *pair, claim.within) for pair in claim.pairs]
    if judge := analysis.question.judges.get(claim.source.partition(",")[0]):
        parts.append("not all measured here yet" if analysis.missing else judge(analysis))
    return "; ".join([*parts, *([f"not tested: {claim.untested}"] if claim.untested else [])])


def _edge(analysis: Analysis, names: list[str]) -> str:
    at_edge = any(r.at_edge for r in analysis.arms if r.arm.name in names or r.arm.label in names)
    return ", at an edge of the rates tried" if at_edge else ""


def _pair(analysis: Analysis, arm: str, measure: str, other: str, by: str, says: str, within: float) -> str:
    """Two numbers, each of an arm, by seeds (the other's is zero where it is not named): not among the comparisons that
    Holm's correction counts."""
    named = {m.name: m for m in analysis.question.measures}
    shown = named[measure]
    beside = f" beside {named[by].title if other == arm else other}" if other else ""
    found = {r.arm.label: r.values for r in analysis.arms}
    mine = found.get(arm, {}).get(measure, ())
    theirs = found.get(other, {}).get(by, ()) if other else (0.0,) * len(mine)
    pairs = [pair for pair in zip(mine, theirs, strict=False) if all(map(math.isfinite, pair))]
    if not pairs:
        return f"{arm}{beside}: not measured here"
    effect = paired_effect(*zip(*pairs, strict=True))
    low, high = (effect.low, effect.high) if math.isfinite(effect.low) else (effect.mean, effect.mean)
    nothing = max(0.5 * 10.0**-shown.digits, within)  # what is not shown
    published = f"{says}, within {within:g}" if within else says
    here = "lower" if high < -nothing else "higher" if low > nothing else "undecided"
    here = "same" if -nothing <= low and high <= nothing else here
    agrees = "agrees" if here == says else f"disagrees (published {published})"
    agrees = "undecided here" if here == "undecided" else agrees
    change = f"{shown.title} {effect.mean:+.{shown.digits}f}{_unit(shown)}"
    change += f" ({ends})" if (ends := effect.interval(shown.digits)) else ""
    return f"{arm}{beside}: {change}, {agrees}{_edge(analysis, [arm, other])}"


def power(analysis: Analysis) -> str:
    """Whether the loss is a power law in the arms' x, a straight line where both are logarithms: slope and bend are
    fitted to the runs of each seed, and their 95 % intervals are over seeds."""
    found = []
    for group in dict.fromkeys(r.arm.group for r in analysis.arms):
        mine = [r for r in analysis.arms if r.arm.group == group]
        x, seeds = np.log([r.arm.x for r in mine]), np.log([r.values["val_loss"] for r in mine]).T
        if len(mine) > 2 and np.isfinite(seeds).all():
            fits = [[np.polyfit(x, y, degree)[0] for y in seeds] for degree in (1, 2)]
            slope, bend = (paired_effect(of, np.zeros(len(of)).tolist()) for of in fits)
            verdict = "no bend found" if slope.high < 0 else "undecided here"
            verdict = verdict if bend.low <= 0 <= bend.high else "it bends, as no power law without a floor does"
            told_bend = f"bend of the line in logarithms {bend.mean:+.4f} ({bend.interval(4)}), {verdict}"
            found.append(f"{group} exponent {slope.mean:.3f} ({slope.interval(3)}), {told_bend}".lstrip())
    return "; ".join(found) or "not measured here"


def loss_and_text(analysis: Analysis) -> str:
    """Whether arms with a lower loss write better: rank correlation over the trained arms of a group, whose losses are
    of one text. Of each group of five or more; empty where there is none, or where another sentence tells it."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for r in analysis.arms:
        pair = r.mean("val_loss"), r.mean("before")
        if r.mean("tokens") > 0 and all(map(math.isfinite, pair)):
            groups.setdefault(r.arm.group, []).append(pair)
    found = []
    for group, pairs in groups.items():
        rho, _ = rank_correlation(*map(list, zip(*pairs, strict=True))) if len(pairs) > 4 else (math.nan, 1.0)
        if math.isfinite(rho):
            found.append(f"{rho:+.2f} over {len(pairs)} arms{f' of {group}' if group else ''}")
    told = "Rank correlation of validation loss with sentences before the first broken rule"
    return f"{told}: {', '.join(found)} (which share seeds: no p)." if found and analysis.question.tells is None else ""


def correlations(analysis: Analysis, names: list[str]) -> str:
    """Spearman's correlation of each of these measures with the first over the arms of a seed: mean and 95 % interval
    over seeds, strongest first; and by how much the strongest is stronger than the next."""
    titles, of = {m.name: m.title for m in analysis.question.measures}, dict[str, list[float]]()
    first = analysis.question.measures[0].name
    for name in (name for name in titles if name in names):
        for seed in range(analysis.scale.n_seeds):
            pairs = [(r.values[name][seed], r.values[first][seed]) for r in analysis.arms if name in r.values]
            pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
            of.setdefault(name, []).append(rank_correlation([x for x, _ in pairs], [y for _, y in pairs])[0])
    found = {name: paired_effect(rhos, [0.0] * len(rhos)) for name, rhos in of.items() if all(map(math.isfinite, rhos))}
    if not found:
        return f"No rank correlation with {titles[first]} can be worked out."
    one, *others = sorted(found, key=lambda name: -abs(found[name].mean))
    found["more"] = paired_effect(*([abs(rho) for rho in of[name]] for name in (one, (others or [one])[0])))
    shown = {name: f"{e.mean:+.2f}{f' ({ends})' if (ends := e.interval(2)) else ''}" for name, e in found.items()}
    each = ", ".join(f"{titles[name]} {shown[name]}" for name in (one, *others))
    told = f"Rank correlation with {titles[first]}, over the arms of a seed (95 % over seeds): {each}."
    return f"{told} The strongest is stronger than the next by {shown['more']}."


def fits(analysis: Analysis) -> list[str]:
    """Power laws of the loss in the arms' x, where a question draws one and a group has five points or more (a law has
    three numbers) on a curve that only falls."""
    found = []
    for picture in analysis.question.pictures:
        if picture.kind != "lines" or picture.y != "val_loss" or not picture.log:
            continue
        for group in dict.fromkeys(r.arm.group for r in analysis.arms):
            pairs = [(r.arm.x, r.mean("val_loss")) for r in analysis.arms if r.arm.group == group]
            points = [pair for pair in pairs if all(map(math.isfinite, pair))]
            falls = all(later < earlier for (_, earlier), (_, later) in pairwise(sorted(points)))
            if len({x for x, _ in points}) < max(5, len(points)) or not falls:
                continue
            law = power_law([x for x, _ in points], [y for _, y in points])
            found.append(
                f"{group + ': ' if group else ''}loss = {law.floor:.3f} + {law.scale:.3g} x^-{law.power:.3f}, x the "
                f"{picture.x}, {len(points)} points, root mean square error {law.error:.4f} nats per token."
            )
    return found


def reached(analysis: Analysis) -> list[str]:
    """The smallest arm of each group that reaches the question's goal, else the one that comes nearest."""
    if analysis.question.goal is None:
        return []
    (name, goal), found = analysis.question.goal, []
    measure = next(m for m in analysis.question.measures if m.name == name)
    for group in dict.fromkeys(r.arm.group for r in analysis.arms):
        mine = sorted((r for r in analysis.arms if r.arm.group == group), key=lambda r: r.arm.x)
        there = [r for r in mine if r.mean(name) >= goal]
        r = there[0] if there else max(mine, key=lambda r: r.mean(name))
        which = f"{r.arm.name} ({r.mean(name):.{measure.digits}f} {measure.unit})"
        told_goal = f"{goal:g} {measure.unit} {measure.title}"
        told_arm = f"the smallest arm with {told_goal} is" if there else f"no arm reaches {told_goal}; the most has"
        found.append(f"{group + ': ' if group else ''}{told_arm} {which}.")
    return found


def listed(words: list[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _margin(analysis: Analysis) -> str:
    return f"{analysis.question.margin:g}{_unit(analysis.question.measures[0])}"


def _unit(measure: Measure) -> str:
    return f" {measure.unit}" if measure.unit else ""
