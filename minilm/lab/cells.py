"""Which cells a question has, and which of them can run now: a paired cell waits for its arm's sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.lab.question import (
    SWEEP_SEED,
    Arm,
    Cell,
    Kind,
    Line,
    Question,
    Scale,
    address,
    config_of,
    flat,
    grid,
    middle,
)
from minilm.lab.texts import fingerprint, sources_of
from minilm.model.gpt import GPT

Results = Mapping[str, Line]
"""Address -> the line of a cell that is done."""
NONE: Results = {}
MORE_RATES = 4  # that a sweep may take beyond its first, one by one, while its best lies at an edge
RANDOM_TRIALS = 4  # of a search, the preset among them, before the sampler follows what they came to
VOCABULARY = 700  # words of tales, roughly
Chosen = float | Mapping[str, Any] | None
"""What a sweep came to: a rate, or the fields that a search found."""


def ready(question: Question, scale: Scale, results: Results) -> list[Cell]:
    """Cells without a result whose settings are known by now; timed ones last. Empty: the question is done."""
    found = []
    for arm in question.arms(scale):
        swept = sweep(question, scale, arm, results)
        missing = [cell for cell in swept if cell.address not in results]
        rate = None if missing else best_rate(swept, results, arm)
        found += missing
        if not missing and (not swept or rate is not None):
            found += [c for c in paired(question, scale, arm, rate) if c.address not in results]
            if question.timed:
                found += [c for c in [timed(question, scale, arm, rate)] if c.address not in results]
    return sorted(found, key=lambda cell: cell.kind == "timed")


def sweep(question: Question, scale: Scale, arm: Arm, results: Results = NONE) -> list[Cell]:
    """One cell a rate, on the sweep's seed; none where the arm has no rates. One more while the best of those done is
    the lowest or highest. Of a search those that are done, and the next one."""
    if not question.trains:
        return []
    if arm.search:
        return _searched(question, scale, arm, results)
    rates = list(middle(arm.rates, scale.n_rates))

    def cells() -> list[Cell]:
        return [_cell(question, scale, arm, "sweep", SWEEP_SEED, {"lr": rate}) for rate in rates]

    for _ in range(MORE_RATES if len(rates) > 2 else 0):
        if any(cell.address not in results for cell in cells()):
            break
        best = best_rate(cells(), results)
        if best == max(rates):
            rates.append(next_rate(arm.rates, max(rates), up=True))
        elif best is None or best == min(rates):
            rates.insert(0, next_rate(arm.rates, min(rates), up=False))
        else:
            break
    return cells()


def next_rate(rates: tuple[float, ...], edge: float, up: bool) -> float:
    """The arm's own next rate beyond an edge, and where it has none three times it or a third of it."""
    beyond = [rate for rate in rates if (rate > edge if up else rate < edge)]
    return (min if up else max)(beyond) if beyond else grid(edge, 3)[2 if up else 0]


def decided(question: Question, scale: Scale, arm: Arm, results: Results) -> list[Cell]:
    """The sweep as far as a rate can be chosen from it: without a rate beyond an edge that is still to be tried."""
    swept = sweep(question, scale, arm, results)
    done = [cell for cell in swept if cell.address in results]
    return swept if arm.search or len(done) < scale.n_rates else done


def _searched(question: Question, scale: Scale, arm: Arm, results: Results) -> list[Cell]:
    """The first trial is the arm as it stands; the others Optuna's TPE (Bergstra 2011) asks for, which is told every
    result in the same order, so that a search goes on where it was killed. Raises UsageError without Optuna."""
    found = [_cell(question, scale, arm, "sweep", SWEEP_SEED, {})]
    if found[0].address not in results or scale.extra["trials"] == 1:
        return found
    try:
        import optuna
    except ImportError:
        raise UsageError('the search needs Optuna: pip install "minilm[lab]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = optuna.distributions
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SWEEP_SEED, n_startup_trials=RANDOM_TRIALS))
    study.enqueue_trial({name: found[0].settings["config"][name] for name in arm.search})
    space: dict[str, Any] = {
        name: kinds.FloatDistribution(values[0], values[1], log=True)
        if kind == "log"
        else kinds.CategoricalDistribution(values)
        for name, (kind, *values) in arm.search.items()
    }
    found = []
    for _ in range(scale.extra["trials"]):
        trial = study.ask(space)
        found.append(_cell(question, scale, arm, "sweep", SWEEP_SEED, trial.params))
        if found[-1].address not in results:
            break
        study.tell(trial, min(chosen_by(found[-1], results[found[-1].address]), 1e3))
    return found


def paired(question: Question, scale: Scale, arm: Arm, rate: Chosen) -> list[Cell]:
    run = _fields(rate)
    return [_cell(question, scale, arm, "paired", seed, run) for seed in range(scale.n_seeds)]


def same_run(question: Question, cell: Cell) -> set[str]:
    """Addresses of cells of other arms, without rates to sweep, that measure what this one trains."""
    scale = question.scale(cell.scale)
    arms = [arm for arm in question.arms(scale) if arm.label != cell.arm and not sweep(question, scale, arm)]
    return {c.address for arm in arms for c in paired(question, scale, arm, None) if c.training == cell.training}


def timed(question: Question, scale: Scale, arm: Arm, rate: Chosen) -> Cell:
    short = {"max_steps": scale.timed_steps, "eval_every_steps": 0, "save_every_steps": 0, "eval_tokens": 100}
    return _cell(question, scale, arm, "timed", 0, {**_fields(rate), **short})


def _fields(rate: Chosen) -> Mapping[str, Any]:
    return {"lr": rate} if isinstance(rate, float) else rate or {}


def best_rate(swept: list[Cell], results: Results, arm: Arm | None = None) -> Chosen:
    """The rate of the lowest loss, of an arm that is searched all its fields; None where there was no sweep, or where
    all of it diverged."""
    losses = [chosen_by(cell, results[cell.address]) for cell in swept]
    finite = [(loss, cell.config.lr, cell) for loss, cell in zip(losses, swept, strict=True) if math.isfinite(loss)]
    if not finite:
        return None
    _, rate, cell = min(finite, key=lambda found: found[:2])
    return {name: cell.settings["config"][name] for name in arm.search} if arm and arm.search else rate


def chosen_by(cell: Cell, line: Line) -> float:
    """The loss that chooses the rate; infinite where the run diverged."""
    return float(line["metrics"].get(cell.measure.get("chosen_by", "val_loss"), math.inf))


def all_cells(question: Question, scale: Scale, results: Results = NONE) -> int:
    """How many there are in the end, all arms converging, as far as results tell: a sweep may go on beyond an edge."""
    tries = [
        scale.extra["trials"] if arm.search else len(sweep(question, scale, arm, results))
        for arm in question.arms(scale)
    ]
    return sum(n + scale.n_seeds + question.timed for n in tries)


def done_cells(question: Question, scale: Scale, results: Results) -> int:
    """How many of them have a result."""
    done = 0
    for arm in question.arms(scale):
        swept = decided(question, scale, arm, results)
        done += sum(cell.address in results for cell in swept)
        rate = best_rate(swept, results, arm) if all(cell.address in results for cell in swept) else None
        if not swept or rate is not None:
            cells = [*paired(question, scale, arm, rate), *([timed(question, scale, arm, rate)] * question.timed)]
            done += sum(cell.address in results for cell in cells)
    return done


def total_flops(question: Question, scale: Scale, results: Results | None = None) -> float:
    """Of all training of a question, the bases' too; as if everything was trained. With results also of the sweeps that
    went on beyond their first rates."""
    runs = dict[str, float]()
    for arm in question.arms(scale):
        swept = sweep(question, scale, arm, results or {})
        cells = swept[:1] * scale.extra["trials"] if arm.search else list(swept)
        cells += [*paired(question, scale, arm, None), *([timed(question, scale, arm, None)] * question.timed)]
        for i, cell in enumerate(cells):
            if question.trains:  # at its own rate, which is not known here, no arm's run is another's
                runs[f"{arm.label} {i}" if swept else cell.training] = _flops(cell.config)
            if (base := cell.base) and "pretrained" not in base:
                runs[base_address(base)] = _flops(config_of(scale, tuples(base["config"]), base["config"]["seed"]))
    return sum(runs.values())


def _flops(config: TrainConfig) -> float:
    T = config.model.block_size
    return config.max_steps * config.batch_size * T * flops_per_token(replace(config.model, vocab_used=0))


@cache
def flops_per_token(model: GPTConfig) -> float:
    """Training FLOPs at the model's context; an open vocabulary counts as VOCABULARY rows."""
    with torch.device("meta"):
        made = GPT(replace(model, vocab_size=model.vocab_size or VOCABULARY))
    return made.flops_per_token(model.block_size)


def tuples(values: Mapping[str, Any]) -> Line:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _cell(question: Question, scale: Scale, arm: Arm, kind: Kind, seed: int, run: Mapping[str, Any]) -> Cell:
    chosen = {"chosen_by": question.chosen_by} if kind == "sweep" and question.chosen_by != "val_loss" else {}
    own = question.measure is not None and (kind == "paired" or bool(chosen))
    measure = {**(arm.measure if own else {}), "n_stories": scale.n_stories if kind == "paired" else 0, **chosen}
    base = base_settings(question, scale, arm, seed)
    tokenizer = {"tokenizer": base["data"]["tokenizer"]} if base and "pretrained" in base else {}
    return Cell(
        question=question.name,
        arm=arm.label,
        kind=kind,
        seed=seed,
        config=config_of(scale, {**arm.run, **run}, seed),
        data=with_fingerprint({**scale.data, **arm.data, **tokenizer}),
        base=base,
        measure=measure,
        scale=scale.name,
        own=own,
    )


def base_settings(question: Question, scale: Scale, arm: Arm, seed: int) -> Line | None:
    """What decides the weights that arms start from: no question's name, so that all share them."""
    base = arm.base or (question.base(scale) if question.base else None)
    if base is None:
        return None
    config, data = config_of(scale, base.run, seed if base.per_seed else 0), {**scale.data, **base.data}
    taken = {"pretrained": base.pretrained} if base.pretrained else {}
    data |= {"tokenizer": "gpt2"} if base.pretrained.startswith("gpt2") else {}
    made = {"config": flat(config), "data": with_fingerprint(data), **taken}
    return made if base.weights else {**made, "weights": False}


def base_address(base: Mapping[str, Any]) -> str:
    return address({"config": base["config"], "data": base["data"]})


def with_fingerprint(data: Mapping[str, Any]) -> Line:
    """Options of a text, and what tells it from what another version of minilm would tell."""
    marks = [fingerprint(options) for options in sources_of(data)]
    return {**data, "fingerprint": marks[0] if len(marks) == 1 else marks}
