"""Which cells a question has, and which of them can run now: a paired cell waits for its arm's sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from minilm.config import TrainConfig
from minilm.lab.question import SWEEP_SEED, Arm, Cell, Kind, Line, Question, Scale, config_of, flat, middle
from minilm.text.scripts import load_dataset

Results = Mapping[str, Line]
"""Address -> the line of a cell that is done."""


def ready(question: Question, scale: Scale, results: Results) -> list[Cell]:
    """Cells without a result whose settings are known by now; timed ones last. Empty: the question is done."""
    found = []
    for arm in question.arms(scale):
        swept = sweep(question, scale, arm)
        missing = [cell for cell in swept if cell.address not in results]
        rate = None if missing else best_rate(swept, results)
        found += missing
        if not missing and (not swept or rate is not None):
            found += [c for c in paired(question, scale, arm, rate) if c.address not in results]
            if question.timed:
                found += [c for c in [timed(question, scale, arm, rate)] if c.address not in results]
    return sorted(found, key=lambda cell: cell.kind == "timed")


def sweep(question: Question, scale: Scale, arm: Arm) -> list[Cell]:
    """One cell a rate, on the sweep's seed; none where the arm has no rates."""
    if not question.trains:
        return []
    rates = middle(arm.rates, scale.n_rates)
    return [_cell(question, scale, arm, "sweep", SWEEP_SEED, {"lr": rate}) for rate in rates]


def paired(question: Question, scale: Scale, arm: Arm, rate: float | None) -> list[Cell]:
    run = {} if rate is None else {"lr": rate}
    return [_cell(question, scale, arm, "paired", seed, run) for seed in range(scale.n_seeds)]


def timed(question: Question, scale: Scale, arm: Arm, rate: float | None) -> Cell:
    run = {"lr": rate} if rate is not None else {}
    short = {"max_steps": scale.timed_steps, "eval_every_steps": 0, "save_every_steps": 0, "eval_tokens": 100}
    return _cell(question, scale, arm, "timed", 0, {**run, **short})


def best_rate(swept: list[Cell], results: Results) -> float | None:
    """The rate of the lowest validation loss; None where there was no sweep, or where all of it diverged."""
    losses = [(results[c.address]["metrics"].get("val_loss", math.inf), c.config.lr) for c in swept]
    finite = [pair for pair in losses if math.isfinite(pair[0])]
    return min(finite)[1] if finite else None


def all_cells(question: Question, scale: Scale) -> int:
    """How many there are in the end, all arms converging."""
    arms = question.arms(scale)
    return sum(len(sweep(question, scale, arm)) + scale.n_seeds + question.timed for arm in arms)


def done_cells(question: Question, scale: Scale, results: Results) -> int:
    """How many of them have a result."""
    done = 0
    for arm in question.arms(scale):
        swept = sweep(question, scale, arm)
        done += sum(cell.address in results for cell in swept)
        rate = best_rate(swept, results) if all(cell.address in results for cell in swept) else None
        if not swept or rate is not None:
            cells = [*paired(question, scale, arm, rate), *([timed(question, scale, arm, rate)] * question.timed)]
            done += sum(cell.address in results for cell in cells)
    return done


def total_tokens(question: Question, scale: Scale) -> int:
    """Tokens that all training of a question comes to, the base's too."""
    total = 0
    if question.base is not None:
        base = question.base(scale)
        config = config_of(scale, base.run, 0)
        total += _tokens(config) * (scale.n_seeds if base.per_seed else 1)
    if question.trains:
        for arm in question.arms(scale):
            cells = [*sweep(question, scale, arm), *paired(question, scale, arm, None)]
            cells += [timed(question, scale, arm, None)] if question.timed else []
            total += sum(_tokens(cell.config) for cell in cells)
    return total


def _tokens(config: TrainConfig) -> int:
    return config.max_steps * config.batch_size * config.model.block_size


def _cell(question: Question, scale: Scale, arm: Arm, kind: Kind, seed: int, run: Mapping[str, Any]) -> Cell:
    return Cell(
        question=question.name,
        arm=arm.label,
        kind=kind,
        seed=seed,
        config=config_of(scale, {**arm.run, **run}, seed),
        data=with_fingerprint({**scale.data, **arm.data}),
        base=base_settings(question, scale, seed),
        measure={**arm.measure, "n_stories": scale.n_stories if kind == "paired" else 0},
        scale=scale.name,
    )


def base_settings(question: Question, scale: Scale, seed: int) -> Line | None:
    """What decides the weights that arms start from: no question's name, so that all share them."""
    if question.base is None:
        return None
    base = question.base(scale)
    config = config_of(scale, base.run, seed if base.per_seed else 0)
    return {"config": flat(config), "data": with_fingerprint({**scale.data, **base.data})}


def with_fingerprint(data: Mapping[str, Any]) -> Line:
    """Options of tales, and what tells this text from what another version of minilm would tell."""
    options = {name: value for name, value in data.items() if name not in ("tokenizer", "vocabulary")}
    key = tuple(sorted(options.items()))
    return {**data, "fingerprint": _fingerprint(key)}


@cache
def _fingerprint(options: tuple[tuple[str, Any], ...]) -> str:
    tales = load_dataset("tales")
    assert tales.made is not None
    return tales.made(**tales.check_options(dict(options))).fingerprint
