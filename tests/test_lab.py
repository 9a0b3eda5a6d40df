"""The lab: every question at its smallest scale, kills, claims, sweeps, and a report made of its numbers alone."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from lab_helpers import light, shards

from minilm import cli
from minilm.config import TrainConfig
from minilm.lab import cells as cells_module
from minilm.lab import places as places_module
from minilm.lab import runner, trial
from minilm.lab.analysis import Analysis, analyse
from minilm.lab.answers import agreement, answer, change_of_default, fits, loss_and_text, reached
from minilm.lab.cells import all_cells, best_rate, done_cells, paired, ready, sweep, timed, total_flops
from minilm.lab.measures import BEFORE, COHERENT, LOSS, STEPS_TO_REFERENCE
from minilm.lab.pictures import pictures
from minilm.lab.places import Places
from minilm.lab.question import (
    CORE_FLOPS,
    SMOKE,
    SWEEP_SEED,
    Arm,
    Base,
    Claim,
    Line,
    Picture,
    Question,
    Scale,
    address,
    grid,
    middle,
)
from minilm.lab.questions import QUESTIONS, load_question
from minilm.lab.report import threats
from minilm.options import build
from minilm.training.loop import train

__all__ = ["light", "shards"]  # fixtures


def two_arms(scale: Scale) -> list[Arm]:
    return [
        Arm("plain", {"optimizer": "adamw"}, grid(1e-2), x=1.0),
        Arm("other", {"optimizer": "muon"}, grid(1e-2), x=2.0),
    ]


TWO = Question(
    name="optimizers",  # results are kept under a name that exists
    asks="?",
    varied="v",
    fixed="f",
    would_change="c.",
    measures=(LOSS, STEPS_TO_REFERENCE, BEFORE, COHERENT),
    margin=0.01,
    reference="plain",
    arms=two_arms,
    scales={"smoke": SMOKE},
    published=(Claim("It is.", "Someone 1999", {"other": "better", "third": "same"}),),
    threats=("One.",),
    pictures=(Picture("lines", "things", "val_loss", log=True),),
)


LONGER = ["loss", "schedules", "warmup", "epochs", "data_size", "components", "precision", "metrics", "domains"]
LONGER += ["defaults", "freeze", "theory", "transfer", "sampling"]
FIRST = [name for name in QUESTIONS if name not in LONGER]
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in LONGER]


@pytest.mark.parametrize("name", [*FIRST, *MORE])
def test_every_question_runs_and_is_reported(name: str, tmp_path: Path) -> None:
    question, places = load_question(name), Places(tmp_path / "lab")
    scale = question.scale("smoke")
    runner.work([name], "smoke", places)
    results = places.results(name, "smoke")
    whole = all_cells(question, scale)
    assert whole == done_cells(question, scale, results)
    assert len(results) == whole or (name == "defaults" and len(results) < whole)  # searches may meet in a trial
    found = analyse(question, scale, results)
    assert not found.missing
    assert len(found.arms) == len(question.arms(scale))
    groups = {arm.group for arm in question.arms(scale)}
    assert len(found.comparisons) == len(found.arms) - len(groups)
    first = question.measures[0].name
    assert all(math.isfinite(value) for r in found.arms for value in r.values[first])
    assert all(len(r.values[first]) == scale.n_seeds for r in found.arms)
    for line in results.values():
        assert {"config", "data"} <= set(line["settings"])
        assert line["seconds"] > 0
        assert line["versions"]["torch"]
    text = answer(found)
    assert text.count(". ") >= 1
    assert not list((tmp_path / "lab" / "work" / "runs").glob("*"))  # cells clear up behind them
    runner.work([name], "smoke", places)
    assert places.results_file(name).read_text("utf-8").count("\n") == len(results)  # nothing runs twice


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("scale", ["smoke", "laptop", "gpu"])
def test_questions_are_whole_and_fair(name: str, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "fingerprint", lambda options: "that of the text")
    question = load_question(name)
    at = question.scale(scale)
    arms = question.arms(at)
    assert question.name == name
    assert at.name == scale
    assert len({arm.label for arm in arms}) == len(arms)
    assert {arm.group for arm in arms} == {arm.group for arm in arms if arm.name == question.reference}
    assert len({len(middle(arm.rates, at.n_rates)) for arm in arms if arm.rates}) < 2  # as many rates each
    assert at.n_seeds >= (2 if scale == "smoke" else 3)
    known = {m.name for m in question.measures}
    for picture in question.pictures:
        assert picture.y in known
        assert picture.kind != "points" or picture.x in known
        assert picture.kind != "curves" or "epochs" in known
    cells = [cell for arm in arms for cell in [*sweep(question, at, arm), *paired(question, at, arm, 1e-3)]]
    if name == "defaults":  # its arms differ in what is searched: until then they are the same
        cells = [cell for cell in cells if cell.arm.startswith("rate searched")]
    assert len({cell.address for cell in cells}) == len(cells)
    for cell in cells:  # what a model reads, and what a step has, are whole
        assert cell.config.batch_size >= 1
        assert (cell.config.batch_size * cell.config.model.block_size) % cell.config.model.block_size == 0
    assert {cell.seed for cell in cells if cell.kind == "sweep"} <= {SWEEP_SEED}
    assert SWEEP_SEED not in {cell.seed for cell in cells if cell.kind == "paired"}
    if scale == "laptop":
        assert total_flops(question, at) <= question.minutes * 60 * 2 * CORE_FLOPS
    labels = {arm.label for arm in question.arms(question.scale("laptop"))} | {a.name for a in arms}
    assert all(label in labels for claim in question.published for label in claim.says)
    assert all(claim.says or claim.pairs or claim.untested or judged(question, claim) for claim in question.published)
    assert len(question.judges) == sum(judged(question, claim) for claim in question.published)
    for arm, measure, other, by, _ in (pair for claim in question.published for pair in claim.pairs):
        assert {arm, other} <= labels | {""}
        assert {measure, by} <= known | {""}


def judged(question: Question, claim: Claim) -> bool:
    return claim.source.partition(",")[0] in question.judges


def fake(question: Question, scale: Scale, losses: dict[str, list[float]], tuned: dict[str, float]) -> dict[str, Line]:
    """Results with these losses for each seed, the sweep's lowest at the rate in `tuned`."""
    results: dict[str, Line] = {}
    for arm in question.arms(scale):
        if arm.label not in losses:
            continue
        cells = sweep(question, scale, arm)
        metrics: list[Any] = [{"val_loss": 1.0 + abs(c.config.lr - tuned[arm.label])} for c in cells]
        runs = paired(question, scale, arm, tuned[arm.label])
        cells += runs
        metrics += [
            {
                "val_loss": loss,
                "before": 100 - loss,
                "coherent": 50.0,
                "curve": [[2, loss + 1], [4, loss]],
                "tokens": 1000,
            }
            for loss in losses[arm.label]
        ]
        for cell, numbers in zip(cells, metrics, strict=True):
            results[cell.address] = {
                "arm": cell.arm,
                "kind": cell.kind,
                "seed": cell.seed,
                "lr": cell.config.lr,
                "scale": "smoke",
                "metrics": numbers,
                "seconds": 1.0,
                "load": 0.5,
                "threads": 1,
                "date": "2026-11-25",
                "commit": "abc",
                "versions": {"torch": "2", "processor": "x", "minilm": "0"},
                "settings": cell.settings,
            }
    return results


SCALE3 = replace(SMOKE, n_seeds=3, n_rates=3)


def analysed(plain: list[float], other: list[float]) -> Analysis:
    results = fake(TWO, SCALE3, {"plain": plain, "other": other}, TUNED)
    return analyse(TWO, SCALE3, {**results})


def test_answers_follow_the_numbers() -> None:
    better = analysed([2.0, 2.5, 3.0], [1.5, 1.99, 2.51])
    assert answer(better).startswith(
        "Better than the reference, `plain`: other, validation loss -0.5000 nats per token (95 % "
    )
    assert "come about: other" in change_of_default(better)
    of_another = replace(better, question=replace(TWO, changes_of="third"))
    assert change_of_default(of_another) == "It has not come about."
    assert agreement(better, TWO.published[0]) == (
        "other: agrees (better), at an edge of the rates tried; third: not measured here"
    )
    worse = analysed([1.5, 1.99, 2.51], [2.0, 2.5, 3.0])
    told = answer(worse)
    assert told.startswith(
        "Nothing was found to be better than the reference, `plain`. Worse: other (validation loss +0.5"
    )
    assert "1 of 2 arms best at an edge" in told
    assert change_of_default(worse) == "It has not come about."
    told = agreement(worse, TWO.published[0])
    assert "disagrees (published better, here worse), at an edge of the rates tried" in told
    same = analysed([2.0, 2.5, 3.0], [2.001, 2.502, 2.999])
    assert answer(same).startswith(
        "No difference found that matters between the reference, `plain`, and other. Every 95 % interval lies within 0."
    )
    unclear = analysed([2.0, 2.5, 3.0], [2.3, 2.1, 3.2])
    assert "Undecided at this scale: other" in answer(unclear)
    assert "not excluded" in change_of_default(unclear)
    assert "other: undecided here" in agreement(unclear, TWO.published[0])


def test_what_no_seed_changes_is_told_with_its_difference() -> None:
    found = analysed([2.0, 2.0, 2.0], [292.6, 292.6, 292.6])
    assert "Measured once, no seed changing it: other (validation loss +290.6000 nats per token (one" in answer(found)
    assert "undecided" not in answer(found).lower()
    assert change_of_default(found) == "It has not come about."
    better = analysed([2.0, 2.0, 2.0], [1.5, 1.5, 1.5])
    assert change_of_default(better) == "It has not come about, and is not excluded."


def test_a_claim_may_name_another_measure() -> None:
    found = analysed([2.0, 2.5, 3.0], [1.5, 1.99, 2.51])
    by_steps = replace(TWO.published[0], measure="steps_to_reference", says={"other": "better"})
    curves = analysed([2.0, 2.0, 2.1], [1.5, 1.4, 1.6])  # 3 to 3.2 of 4 steps
    told = agreement(curves, by_steps)
    assert told.startswith("by steps to the reference's last loss: other: agrees (better)")
    by_stories = replace(by_steps, measure="coherent")
    assert found.verdict("other", "coherent") == "same"  # every seed has 50 %
    assert "other: disagrees (published better, here same" in agreement(found, by_stories)


def test_a_claim_may_compare_any_two_numbers() -> None:
    found = analysed([2.0, 2.5, 3.0], [1.5, 1.99, 2.51])
    claim = replace(TWO.published[0], says={})

    def told(*pairs: tuple[str, str, str, str, Any]) -> str:
        return agreement(found, replace(claim, pairs=pairs))

    edge = ", at an edge of the rates tried"
    effect = "validation loss -0.5000 nats per token (-0.5248 to -0.4752)"
    pair = ("other", "val_loss", "plain", "val_loss")
    assert told((*pair, "lower")) == f"other beside plain: {effect}, agrees{edge}"
    assert told((*pair, "higher")) == f"other beside plain: {effect}, disagrees (published higher){edge}"
    assert "validation loss -47.5000" in told(("plain", "val_loss", "plain", "coherent", "lower"))
    assert told(("plain", "coherent", "", "", "higher")) == "plain: coherent stories +50.0 %, agrees"
    assert told(("plain", "coherent", "other", "coherent", "same")) == (
        f"plain beside other: coherent stories +0.0 %, agrees{edge}"
    )
    assert told(("plain", "val_loss", "third", "val_loss", "lower")) == "plain beside third: not measured here"
    assert told((*pair, "lower"), (*pair, "lower")).count("agrees") == 2
    wide, narrow = (agreement(found, replace(claim, within=w, pairs=((*pair, "same"),))) for w in (0.6, 0.1))
    assert wide == f"other beside plain: {effect}, agrees{edge}"
    assert narrow.endswith(f"disagrees (published same, within 0.1){edge}")


def test_a_claim_may_have_a_judge_or_a_reason_why_it_has_none() -> None:
    found = analysed([2.0, 2.5, 3.0], [1.5, 1.99, 2.51])
    claim = replace(TWO.published[0], says={}, untested="no arm does it")
    assert agreement(found, claim) == "not tested: no arm does it"
    counting = replace(TWO, judges={"Someone 1999": lambda analysis: f"{len(analysis.arms)} arms"})
    judged = replace(found, question=counting)
    assert agreement(judged, replace(claim, source="Someone 1999, table 3")) == "2 arms; not tested: no arm does it"
    waiting = replace(judged, missing=("third",))
    assert agreement(waiting, claim).startswith("not all measured here yet; ")
    general = replace(claim, untested="", says={"other": "not worse"})
    edge = ", at an edge of the rates tried"
    assert agreement(found, general) == f"other: agrees (not worse){edge}"
    assert agreement(analysed([2.0, 2.5, 3.0], [2.001, 2.502, 2.999]), general).startswith("other: agrees (not worse)")
    assert "here worse)" in agreement(analysed([1.5, 1.99, 2.51], [2.0, 2.5, 3.0]), general)
    assert "undecided here" in agreement(analysed([2.0, 2.5, 3.0], [2.3, 2.1, 3.2]), general)


def test_curves_are_drawn_over_seeds() -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra `lab`")
    drawn = replace(TWO, pictures=(Picture("curves", "passes", "val_loss"),))
    (_, _), (title, svg) = pictures(replace(analysed([2.0, 2.5, 3.0], [1.5, 1.99, 2.51]), question=drawn))
    assert title == "validation loss against passes, mean over seeds"
    assert {"plain", "other"} <= set(re.findall(r">(\w+)</text>", svg))


def test_steps_to_the_references_loss() -> None:
    found = analysed([2.0, 2.0, 2.0], [1.5, 1.5, 2.5])
    by_name = {r.arm.name: r.values["steps_to_reference"] for r in found.arms}
    assert by_name["plain"] == (4.0, 4.0, 4.0)
    assert by_name["other"][:2] == (3.0, 3.0)  # from 2.5 at step 2 to 1.5 at step 4
    assert math.isnan(by_name["other"][2])


def test_sweep_chooses_and_says_where_it_is_at_the_edge() -> None:
    found = analysed([2.0, 2.0, 2.1], [2.0, 2.0, 2.0])
    chosen = {r.arm.name: (r.rate, r.at_edge) for r in found.arms}
    assert chosen == {"plain": (1e-2, False), "other": (3.3e-3, True)}


def test_rates() -> None:
    assert grid(1e-2) == (1.1e-3, 3.3e-3, 1e-2, 3e-2, 9e-2)
    assert middle(grid(1e-2), 3) == (3.3e-3, 1e-2, 3e-2)
    assert middle(grid(1e-2), 1) == (1e-2,)
    assert middle((), 3) == ()
    arm = two_arms(SMOKE)[0]
    cells = sweep(TWO, SCALE3, arm)
    diverged = {cell.address: {"metrics": {"diverged": "loss nan"}} for cell in cells}
    assert best_rate(cells, diverged) is None
    assert ready(TWO, SCALE3, {})[0].kind == "sweep"
    left = ready(TWO, SCALE3, diverged)
    assert {(cell.arm, cell.config.lr) for cell in left} == {
        *(("other", rate) for rate in (3.3e-3, 1e-2, 3e-2)),
        ("plain", 1.1e-3),  # where every rate diverges the next is lower
    }


def best_at(rate: float, arm: Arm) -> dict[float, float]:
    """Rate -> loss of a sweep that was followed to its end, where the loss is lowest at `rate`."""
    results: dict[str, Line] = {}
    while left := [c for c in sweep(TWO, SCALE3, arm, results) if c.address not in results]:
        for cell in left:
            loss = abs(math.log(cell.config.lr / rate)) if rate else math.nan
            results[cell.address] = {"metrics": {"val_loss": loss} if rate else {"diverged": "loss nan"}}
    return {
        c.config.lr: results[c.address]["metrics"].get("val_loss", math.inf) for c in sweep(TWO, SCALE3, arm, results)
    }


def test_a_sweep_goes_on_while_its_best_is_at_an_edge() -> None:
    arm = two_arms(SMOKE)[0]
    assert sorted(best_at(1e-2, arm)) == [3.3e-3, 1e-2, 3e-2]  # within: three are enough
    assert sorted(best_at(3e-2, arm)) == [3.3e-3, 1e-2, 3e-2, 9e-2]
    assert sorted(best_at(0.27, arm)) == [3.3e-3, 1e-2, 3e-2, 9e-2, 0.27, 0.81]  # beyond the arm's own, by three
    assert sorted(best_at(1e-3, arm)) == [3.7e-4, 1.1e-3, 3.3e-3, 1e-2, 3e-2]
    assert len(best_at(1e9, arm)) == 3 + cells_module.MORE_RATES  # not for ever
    assert sorted(best_at(0.0, arm)) == [4e-5, 1.2e-4, 3.7e-4, 1.1e-3, 3.3e-3, 1e-2, 3e-2]  # all diverge
    two = replace(SMOKE, n_rates=2)
    first = sweep(TWO, two, arm)
    lines = {c.address: {"metrics": {"val_loss": c.config.lr}} for c in first}
    assert sweep(TWO, two, arm, lines) == first  # of two rates the best is always at an edge


def test_what_a_sweep_has_found_is_told_before_its_next_rate_is_tried() -> None:
    """An arm whose paired runs were made at the best rate so far is reported at it, and said to be at an edge."""
    found = analysed([2.0, 2.0, 2.1], [2.0, 2.0, 2.0])
    assert not found.missing
    assert [
        (cell.arm, cell.kind, cell.config.lr)
        for cell in ready(TWO, SCALE3, {**fake(TWO, SCALE3, {"plain": [2.0] * 3, "other": [2.0] * 3}, TUNED)})
    ] == [("other", "sweep", 1.1e-3)]


def test_paired_arms_see_the_same_batches() -> None:
    one, two = (paired(TWO, SMOKE, arm, 1e-2) for arm in two_arms(SMOKE))
    for a, b in zip(one, two, strict=True):
        unlike = {name for name, value in a.settings["config"].items() if b.settings["config"][name] != value}
        assert unlike == {"optimizer"}
        assert a.seed == b.seed == a.config.seed


def test_address_outlives_new_fields_but_not_new_defaults() -> None:
    settings = paired(TWO, SMOKE, two_arms(SMOKE)[0], 1e-2)[0].settings
    old = json.loads(json.dumps(settings))
    assert address(old) == address(settings)
    del old["config"]["adafactor_clip"]  # as if it did not exist when the result was made
    assert address(old) == address(settings)
    old["config"]["adafactor_clip"] = TrainConfig().adafactor_clip + 1  # as if the default had been another
    assert address(old) != address(settings)
    assert address({**settings, "data": {**settings["data"], "fingerprint": "other text"}}) != address(settings)
    drawn, elsewhere = copy.deepcopy(settings), copy.deepcopy(settings)
    drawn["config"]["lr"], elsewhere["config"]["lr"] = 0.00011876116071726279, 0.00011876116071726278
    assert drawn["config"]["lr"] != elsewhere["config"]["lr"]  # as two processors' exponentials have it
    assert address(drawn) == address(elsewhere) != address(settings)


def test_a_full_file_of_results_goes_on_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path)
    lines = list(fake(TWO, SCALE3, {"plain": [1.0, 1.0, 1.0]}, {"plain": 1e-2}).values())
    monkeypatch.setattr(places_module, "FULL_BYTES", len(json.dumps(lines[0])) + 10)
    for line in lines:
        places.append("optimizers", line)
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names[:2] == ["optimizers.2.jsonl", "optimizers.3.jsonl"]
    assert "optimizers.jsonl" in names
    assert sorted(places.results("optimizers", "smoke")) == sorted(address(line["settings"]) for line in lines)
    cell = paired(replace(TWO, name="schedules"), SCALE3, two_arms(SMOKE)[0], 1e-2)[0]
    found = places.elsewhere(cell)
    assert found is not None
    assert found["run_for"] == "optimizers"


def test_results_survive_a_torn_line(tmp_path: Path) -> None:
    places = Places(tmp_path)
    line = next(iter(fake(TWO, SCALE3, {"plain": [1.0, 1.0, 1.0]}, {"plain": 1e-2}).values()))
    places.append("optimizers", line)
    with places.results_file("optimizers").open("a") as file:
        file.write('{"arm": "pla')
    places.append("optimizers", {**line, "settings": {**line["settings"], "kind": "paired"}})
    assert len(places.results("optimizers", "smoke")) == 2
    assert places.results("optimizers", "laptop") == {}


def test_a_cell_of_several_questions_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, arm = Places(tmp_path), two_arms(SMOKE)[0]
    others = replace(TWO, name="schedules")
    of_two, of_others = (paired(question, SMOKE, arm, 1e-2)[0] for question in (TWO, others))
    first = trial.run_cell(TWO, of_two, places)
    ran: list[TrainConfig] = []

    def counted(config: TrainConfig) -> Any:
        ran.append(config)
        return train(config)

    monkeypatch.setattr(trial, "train", counted)
    again = trial.run_cell(others, of_others, places)
    assert not ran
    assert again == {**first, "run_for": "optimizers"}
    assert places.results("schedules", "smoke")[of_others.address]["metrics"] == first["metrics"]
    # What a question measures itself, another number of stories, and a speed are not to be had elsewhere.
    measuring = replace(others, measure=lambda trained: {"more": 1.0})
    assert paired(measuring, SMOKE, arm, 1e-2)[0].address != of_two.address
    assert paired(others, replace(SMOKE, n_stories=1), arm, 1e-2)[0].address != of_two.address
    trial.run_cell(TWO, timed(TWO, SMOKE, arm, 1e-2), places)
    ran.clear()
    assert "run_for" not in trial.run_cell(others, timed(others, SMOKE, arm, 1e-2), places)
    assert ran


def test_arms_that_differ_in_what_is_measured_share_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, begun = Places(tmp_path), []
    measured = [Arm(name, measure={"as": name}) for name in ("plain", "hot")]
    shared = replace(TWO, arms=lambda scale: measured, measure=lambda trained: {trained.cell.measure["as"]: 1.0})
    first, second = (paired(shared, SMOKE, arm, None)[0] for arm in measured)
    assert first.address != second.address
    assert total_flops(shared, SMOKE) == total_flops(replace(shared, arms=lambda scale: measured[:1]), SMOKE)

    def counted(config: TrainConfig) -> Any:
        begun.append(config.existing)
        return train(config)

    monkeypatch.setattr(trial, "train", counted)
    one, other = (trial.run_cell(shared, cell, places)["metrics"] for cell in (first, second))
    assert begun == ["refuse", "resume"]
    assert one.pop("plain") == other.pop("hot") == 1.0
    assert one == other
    assert not list((places.work / "runs").iterdir())


def test_a_result_from_another_training_of_the_base_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, arm = Places(tmp_path), two_arms(SMOKE)[0]
    started = [replace(TWO, name=name, base=lambda scale: Base({}, {})) for name in ("optimizers", "schedules")]
    first, second = (paired(question, SMOKE, arm, 1e-2)[0] for question in started)
    trial.run_cell(started[0], first, places)
    monkeypatch.setattr(trial, "_mark", lambda base: "another machine's")
    assert "run_for" not in trial.run_cell(started[1], second, places)


def test_divergence_is_a_result(tmp_path: Path) -> None:
    places, arm = Places(tmp_path), two_arms(SMOKE)[0]
    cell = sweep(TWO, SMOKE, replace(arm, run={"optimizer": "sgd", "grad_clip": 0.0, "qk_norm": False}, rates=(1e30,)))[
        0
    ]
    line = trial.run_cell(TWO, cell, places)
    assert "loss" in line["metrics"]["diverged"]
    assert places.results("optimizers", "smoke")[cell.address]["metrics"] == line["metrics"]


def test_a_killed_cell_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after its first checkpoint, a cell ends with the numbers of one that never was."""
    cell = paired(TWO, SMOKE, two_arms(SMOKE)[1], 1e-2)[0]
    # A schedule that knows the run's length would differ in the first steps of a shorter one.
    cell = replace(cell, config=replace(cell.config, schedule="constant"))
    whole = trial.run_cell(TWO, cell, Places(tmp_path / "whole"))
    places, done = Places(tmp_path / "killed"), []

    def killed(config: TrainConfig) -> Any:
        done.append(config.existing)
        if len(done) > 1:
            return train(config)
        result = train(replace(config, max_steps=2))
        # Its config becomes that of the whole run: as if it had been killed after two steps of four.
        path = Path(config.out_dir) / "config.toml"
        path.write_text(path.read_text("utf-8").replace("max_steps = 2", "max_steps = 4"), "utf-8")
        return replace(result, interrupted=True)

    monkeypatch.setattr(trial, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        trial.run_cell(TWO, cell, places)
    assert places.results("optimizers", "smoke") == {}
    again = trial.run_cell(TWO, cell, places)
    assert done == ["refuse", "resume"]
    for name in ("val_loss", "before", "coherent", "curve", "tokens"):
        assert again["metrics"][name] == whole["metrics"][name], name


def _hold(folder: str, name: str, ready_file: str) -> None:
    with Places(folder).lock(name):
        Path(ready_file).touch()
        time.sleep(60)


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    places = Places(tmp_path)
    process = multiprocessing.get_context("fork").Process(
        target=_hold, args=(str(tmp_path), "a", str(tmp_path / "there"))
    )
    process.start()
    try:
        while not (tmp_path / "there").exists():
            time.sleep(0.01)
        with places.lock("a", wait=False) as mine:
            assert not mine
        with places.lock("b", wait=False) as mine:
            assert mine
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with places.lock("a", wait=False) as mine:
            assert mine
    finally:
        process.kill()
        process.join()


def test_timed_cells_wait_until_they_are_alone(tmp_path: Path) -> None:
    places = Places(tmp_path)
    with places.lock("machine", shared=True), places.lock("machine", shared=True, wait=False) as both:
        assert both
        with places.lock("machine", wait=False) as alone:
            assert not alone
    with places.lock("machine", wait=False) as alone:
        assert alone
    question = load_question("optimizers")
    arm = question.arms(SMOKE)[0]
    assert timed(question, SMOKE, arm, 1e-3).config.max_steps == SMOKE.timed_steps


@pytest.mark.slow
def test_processes_share_a_question(tmp_path: Path) -> None:
    """Two processes, one killed and started again: every cell once, as a single process would have had it."""
    command = [sys.executable, "-c", "import sys; from minilm.cli import main; sys.exit(main())", "lab", "run"]
    command += ["context", "--scale=smoke", f"--folder={tmp_path / 'lab'}"]
    results = tmp_path / "lab" / "results" / "context.jsonl"
    killed = subprocess.Popen([*command, "--processes=1"])
    while killed.poll() is None and not (results.is_file() and results.read_text("utf-8").count("\n") >= 2):
        time.sleep(0.05)
    killed.kill()  # in the middle of a sweep: nothing is asked, nothing is saved
    killed.wait()
    before = results.read_text("utf-8").splitlines()
    assert 2 <= len(before) < all_cells(load_question("context"), load_question("context").scale("smoke"))
    subprocess.run([*command, "--processes=2"], check=True)
    assert results.read_text("utf-8").splitlines()[: len(before)] == before
    question, places = load_question("context"), Places(tmp_path / "lab")
    lines = places.results_file("context").read_text("utf-8").splitlines()
    assert len(lines) == len(places.results("context", "smoke")) == all_cells(question, question.scale("smoke"))
    runner.work(["context"], "smoke", Places(tmp_path / "alone"))
    alone = Places(tmp_path / "alone").results("context", "smoke")
    for key, line in places.results("context", "smoke").items():
        if line["kind"] != "timed":
            assert line["metrics"]["val_loss"] == pytest.approx(alone[key]["metrics"]["val_loss"], rel=1e-6)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, Path]:
    """(Markdown, HTML, folder) of a report of two arms."""
    pytest.importorskip("matplotlib", reason="the report's pictures need the extra `lab`")
    from minilm.lab import report

    question = replace(TWO, scales={"smoke": SCALE3})
    places = Places(tmp_path / "lab")
    for line in fake(question, SCALE3, {"plain": [2.0, 2.5, 3.0], "other": [1.5, 1.99, 2.51]}, TUNED).values():
        places.append("optimizers", line)
    monkeypatch.setattr(report, "load_question", lambda name: question)
    page = report.write(["optimizers"], "smoke", places, tmp_path / "findings")
    return page.read_text("utf-8"), page.with_name("index.html").read_text("utf-8"), page.parent


TUNED = {"plain": 1e-2, "other": 3.3e-3}


def test_report_is_whole(told: tuple[str, str, Path]) -> None:
    markdown, page, folder = told
    assert "Better than the reference, `plain`: other, validation loss -0.5000 nats per token" in markdown
    assert "| plain | 0.01 of 3 | 2.5000 ± 0.5000 |" in markdown
    assert "| other | 0.0033 of 3 (edge) | 2.0000 ± 0.5051 | 3 ± 0 |" in markdown
    assert "Here: other: agrees (better), at an edge of the rates tried; third: not measured here." in markdown
    assert "[optimizers](#optimizers)" in markdown
    assert '<a href="#optimizers">optimizers</a>' in page
    assert '<h2 id="optimizers">' in page
    assert "`minilm lab run optimizers --scale smoke`" in markdown
    assert "12 cells" in markdown
    pictures = sorted(path.name for path in folder.glob("*.svg"))
    assert pictures == ["optimizers_1.svg", "optimizers_2.svg"]
    assert all(f"({name})" in markdown for name in pictures)
    assert page.count("<svg") == 2
    assert page.count("<table") == 1
    svg = (folder / pictures[0]).read_text("utf-8")
    assert "nats per token" in svg
    colours = re.findall(r"#([0-9a-f]{6})\b", svg)
    assert colours
    assert all(c[:2] == c[2:4] == c[4:] for c in colours)  # greys only


def test_report_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the report's pictures need the extra `lab`")
    folder, out = tmp_path / "lab", tmp_path / "findings"
    assert cli.run_door("lab", ["report", "freeze", f"--folder={folder}", f"--out={out}"]) == 0
    text = (out / "README.md").read_text("utf-8")
    assert "Not run yet at this scale: `minilm lab run freeze --scale laptop`." in text
    assert capsys.readouterr().out.splitlines() == [str(out / "README.md"), str(out / "index.html")]


def test_paired_runs_of_two_machines_are_told_by_name_and_by_vectors() -> None:
    results = fake(TWO, SCALE3, {"plain": [2.0, 2.5, 3.0], "other": [1.9, 2.4, 2.9]}, TUNED)
    paired_lines = [line for line in results.values() if line["kind"] == "paired"]

    def told(*vectors: str) -> list[str]:
        for line, v in zip(paired_lines, cycle(vectors), strict=False):
            line["versions"] = {"processor": "x", **({"vectors": v} if v else {})} | {"torch": "2", "minilm": "0"}
        return [threat for threat in threats(analyse(TWO, SCALE3, results)) if threat.startswith("Paired runs")]

    assert not told("")
    assert not told("AVX2")
    assert "come from x (AVX2) and x (AVX512):" in told("AVX2", "AVX512")[0]
    assert "come from x (AVX512) and x (vector units not recorded):" in told("", "AVX512")[0]


def test_more_that_numbers_say() -> None:
    def arms(scale: Scale) -> list[Arm]:
        return [Arm(name, {"n_embd": 16 * n}, grid(1e-2), x=10.0**n) for n, name in enumerate("abcde", 1)]

    question = replace(TWO, arms=arms, reference="d", goal=("coherent", 50.0))
    losses = {name: [1 + 10 ** (-n / 2) for _ in range(3)] for n, name in enumerate("abcde", 1)}
    results = fake(question, SCALE3, losses, dict.fromkeys("abcde", 1e-2))
    found = analyse(question, SCALE3, results)
    assert reached(found)[0].startswith("the smallest arm with 50 % coherent stories is a (50.0 %")
    assert reached(analyse(replace(question, goal=("coherent", 90.0)), SCALE3, results))[0].startswith(
        "no arm reaches 90"
    )
    assert fits(found)[0].startswith("loss = 1.000 + 1 x^-0.500")
    assert "5 arms" in loss_and_text(found)
    assert "-1.00" in loss_and_text(found)


def test_door(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "fingerprint", lambda options: "that of the text")
    folder = f"--folder={tmp_path}"
    assert cli.run_door("lab", ["list", folder]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: {load_question(name).asks}" in listed for name in QUESTIONS)
    for words, told_ in [
        (["run", folder], "name a question to run"),
        (["run", "optimiser", folder], "did you mean"),
        (["run", "freeze", "--processes=-1", folder], "processes must be 0"),
        (["list", "--scale=huge", folder], "invalid choice"),
        (["list", f"--out={tmp_path}", folder], "`minilm lab list` does not read --out: leave it out"),
        (["present", "tales-writer", folder], "`minilm lab present` does not read tales-writer"),
        (["run", "freeze", "--address=auto", folder], "--address is of a Ray cluster: give it with --engine ray"),
        (["run", "freeze", "--models=x", "--out=y", folder], "does not read --models, --out"),
        (["report", folder], "of lab/: give --out for another report"),
    ]:
        assert cli.run_door("lab", words) == 2
        assert told_ in capsys.readouterr().err


def test_smoke_runs_of_the_preset_build() -> None:
    assert build(dict(SMOKE.run)).model.n_layer == 1


@pytest.mark.slow
def test_presented_models_have_a_card_and_load(tmp_path: Path) -> None:
    """Both models, small: packaged whole, loaded again with the same logits, a card with what was measured."""
    import torch

    from minilm import GPT, get_tokenizer
    from minilm.config import Packing
    from minilm.lab.present import Size, present

    shape = {"block_size": 32, "batch_size": 4, "warmup_steps": 1, "eval_tokens": 200, "precision": "fp32"}
    tries: tuple[tuple[str, int, Packing, float], ...]
    tries = (("width 24", 2, "chunks", 0.02), ("width 48", 3, "best_fit", 0.03))
    size = Size(2, 0.02, 2, tries, tuple({**shape, "compile": "off"}.items()))
    folders = present(tmp_path / "models", tmp_path / "work", size)
    assert [folder.name for folder in folders] == ["tales-smallest", "tales-writer"]
    for folder in folders:
        card = (folder / "README.md").read_text("utf-8")
        model, tokenizer = GPT.from_pretrained(folder), get_tokenizer(folder)
        assert f"{model.num_params():,} parameters" in card
        assert "Wilson 95 %" in card
        ids = torch.tensor([[tokenizer.eot, 1, 2]])
        run = {"tales-writer": "writer", "tales-smallest": "width-48-3-best_fit"}[folder.name]
        trained = GPT.from_pretrained(tmp_path / "work" / run)
        assert not torch.equal(model(ids), trained(ids))
        assert torch.equal(model(ids), trained.bfloat16().float()(ids))
    card = (folders[0] / "README.md").read_text("utf-8")
    told = r"width 24, 2 steps of chunks of 0.02 MB, [\d]+ tokens: [\d.]+ %; width 48, 3 steps of best_fit of 0.03 MB"
    assert re.search(told + r", [\d]+ tokens: [\d.]+ %, which is not above 90 %", card)
    assert card.count("coherence, level") == 1
    shutil.rmtree(tmp_path / "work" / "width-24-2-chunks")
    again = present(tmp_path / "models", tmp_path / "work", size)  # what is trained stays trained
    assert again == folders
    assert not (tmp_path / "work" / "width-24-2-chunks").exists()  # nor is what fell short tried again
    assert (folders[0] / "README.md").read_text("utf-8").split("\n")[2] == card.split("\n")[2]


@pytest.mark.slow
def test_ray_runs_as_one_process_does(tmp_path: Path) -> None:
    """A local cluster of two workers: the same cells with the same losses."""
    pytest.importorskip("ray", reason="it needs the extra `cluster`")
    from minilm.lab import cluster

    question, places = load_question("context"), Places(tmp_path / "ray")
    cluster.run(["context"], "smoke", places, 2)
    found = places.results("context", "smoke")
    assert len(found) == all_cells(question, question.scale("smoke"))
    alone = Places(tmp_path / "alone")
    runner.work(["context"], "smoke", alone)
    for key, line in alone.results("context", "smoke").items():
        if line["kind"] != "timed":
            assert found[key]["metrics"]["val_loss"] == pytest.approx(line["metrics"]["val_loss"], rel=1e-6)
    cluster.run(["context"], "smoke", places, 2)  # nothing is left to do
    assert places.results_file("context").read_text("utf-8").count("\n") == len(found)


def test_every_source_that_a_question_cites_is_in_the_bibliography() -> None:
    pages = Path(__file__).resolve().parent.parent / "docs"
    papers, lab = (pages / "papers.md").read_text("utf-8"), (pages / "lab.md").read_text("utf-8")
    for name in QUESTIONS:
        question = load_question(name)
        assert f"| `{name}` | {question.asks} |" in lab
        assert question.threats
        for claim in question.published:
            assert claim.text in papers or "arXiv" not in claim.source
            for number in re.findall(r"arXiv:(\d{4}\.\d{5})", claim.source):
                assert f"[{number}](https://arxiv.org/abs/{number})" in papers
