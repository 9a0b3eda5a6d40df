"""What questions measure and what their text is made of, against closed forms and brute force."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lab_helpers import light, shards

from minilm import runtime
from minilm.config import GPTConfig
from minilm.errors import MinilmError, UsageError
from minilm.lab import (
    components,
    domains,
    double_descent,
    finetune,
    leak,
    mixing,
    model_size,
    overfit,
    sampling,
    transfer,
)
from minilm.lab import loss as lab_loss
from minilm.lab.analysis import Analysis, ArmResult, analyse, compare
from minilm.lab.answers import correlations, power
from minilm.lab.cells import all_cells, best_rate, paired, ready, sweep
from minilm.lab.places import Places
from minilm.lab.question import SMOKE, Arm, Base, Line, Question, Scale, config_of
from minilm.lab.questions import load_question
from minilm.lab.report import threats
from minilm.lab.stories import behind_code, obeyed
from minilm.lab.texts import STYLES, fingerprint, local, prepared, sources_of, without_code
from minilm.lab.theory import change_of_weights
from minilm.lab.transfer import hernandez
from minilm.lab.trial import run_cell
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.model.surgery import swap
from minilm.options import run_config
from minilm.text.mixture import MixedFolder, open_data
from minilm.text.prepare import prepare
from minilm.text.shards import open_shards
from minilm.text.tales import stories
from minilm.text.tales.grammar import grammar
from minilm.text.tokenizer import get_tokenizer

__all__ = ["light", "shards"]  # fixtures

SMALL: dict[str, Any] = {"level": 1, "megabytes": 0.02, "tokenizer": "words"}
TWO_PARTS = [{"style": "fable", "megabytes": 0.02}, {"style": "news", "megabytes": 0.01}]
FINETUNING = ["freeze", "domains", "small_vs_large", "budget", "steer", "transfer", "theory", "defaults"]
WORDS = {"vocabulary": {"style": "fable,news"}}


def opened(data: dict[str, Any], folder: Path) -> Any:
    return open_data(prepared(data, None, Places(folder)))


def test_noise_replaces_its_share_of_training_tokens_alone(tmp_path: Path) -> None:
    plain, noisy = opened(SMALL, tmp_path), opened({**SMALL, "noise": 0.25}, tmp_path)
    for split, share in (("train", 0.25), ("val", 0.0)):
        a, b = (side.splits[split] for side in (plain, noisy))
        assert a.n_documents == b.n_documents
        pairs = [(a.document(i), b.document(i)) for i in range(a.n_documents)]
        before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
        changed = float((before != after).mean())
        same_by_chance = float(((np.bincount(before) / len(before)) ** 2).sum())
        assert changed == pytest.approx(share * (1 - same_by_chance), abs=0.02)
        assert (changed == 0) == (share == 0)
        if share:  # a token's frequency stays what it was
            counts = [np.bincount(x, minlength=a.vocab_size) / len(x) for x in (before, after)]
            assert np.abs(counts[0] - counts[1]).sum() < 0.2  # uniform draws would be 0.3 off
    assert prepared({**SMALL, "noise": 0.25}, None, Places(tmp_path)) == str(noisy.folder)  # and is not made twice


def test_sources_stand_side_by_side_or_in_turn(tmp_path: Path) -> None:
    data = {**SMALL, **WORDS, "parts": TWO_PARTS}
    mixed, turns = opened(data, tmp_path), opened({**data, "in_turn": True}, tmp_path)
    assert isinstance(mixed, MixedFolder)
    assert len(mixed.sources) == 2
    tokenizer = turns.tokenizer()
    whole = [tokenizer.decode(turns.splits["train"].document(i)) for i in range(turns.splits["train"].n_documents)]
    kinds = [text.split(":")[0] for text in whole]
    n = mixed.sources[0].n_documents
    assert kinds == ["fable"] * n + ["news"] * mixed.sources[1].n_documents
    assert turns.meta.splits["train"].bytes == sum(len(text.encode()) for text in whole)
    weighed = opened({**data, "parts": [{**part, "weight": 0.5} for part in TWO_PARTS]}, tmp_path)
    assert weighed.weights == (0.5, 0.5)
    uncoded = opened({**data, "in_turn": True, "codes": False}, tmp_path).splits["train"]
    bare = [tokenizer.decode(uncoded.document(i)) for i in range(uncoded.n_documents)]
    assert bare == [f" {without_code(text)}" for text in whole]
    assert not any(tokenizer.count_unknown(uncoded.document(i).tolist()) for i in range(uncoded.n_documents))
    assert sources_of(data) == [tuple(sorted({"level": 1, **part}.items())) for part in TWO_PARTS]


def test_local_text_is_read_as_far_as_asked(tmp_path: Path) -> None:
    folder = opened({**SMALL, "local": "manual", "tokenizer": "bytes"}, tmp_path)
    n_bytes = sum(split.bytes for split in folder.meta.splits.values())
    assert n_bytes == pytest.approx(20_000, rel=0.05)
    assert all(local("code"))
    assert fingerprint((("local", "code"),)) != fingerprint((("local", "manual"),))


def test_obedience_tells_every_style_from_every_other() -> None:
    told = {s: [without_code(t) for t in stories(n=10, level=1, style=s, split="fresh")] for s in STYLES}
    for style, texts in told.items():
        assert [obeyed(texts, 1, asked) for asked in STYLES] == [100.0 * (asked == style) for asked in STYLES]


def test_loss_behind_a_code_is_a_quotient_of_probabilities() -> None:
    tokenizer = get_tokenizer("bytes")
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=tokenizer.vocab_size)).eval()
    texts, code = ["A cat sat.", "So it goes, he said."], grammar(1, "news").code
    nats, n = 0.0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.eot, *tokenizer.encode(code + text)]])
        logp = model(ids).detach().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        nats -= float(logp[len(code.rstrip()) :].sum())
        n += len(text)
    assert behind_code(model, tokenizer, texts, code) == pytest.approx(nats / n, rel=1e-5)
    alone = [torch.tensor([[tokenizer.eot, *tokenizer.encode(f" {text}")]]) for text in texts]
    without = sum(model.loss(ids[:, :-1], ids[:, 1:], reduction="sum").item() for ids in alone)
    assert behind_code(model, tokenizer, texts, "") == pytest.approx(without / (n + len(texts)), rel=1e-5)


def test_change_of_weights_and_its_rank() -> None:
    torch.manual_seed(0)
    before = {
        "h.0.attn.c_proj.weight": torch.eye(8),
        "h.0.mlp.c_fc.weight": torch.eye(8),
        "wte.weight": torch.ones(4, 8),
    }
    one, full = torch.outer(torch.ones(8), torch.ones(8)), 0.5 * torch.eye(8)
    after = {"h.0.attn.c_proj.weight": torch.eye(8) + one, "h.0.mlp.c_fc.weight": torch.eye(8) + full}
    found = change_of_weights(before, {**after, "wte.weight": 1.5 * torch.ones(4, 8)})
    assert found["change_attention"] == pytest.approx(100 * 8 / math.sqrt(8), rel=1e-6)
    assert found["change_feed-forwards"] == pytest.approx(50.0)
    assert found["change_embeddings"] == pytest.approx(50.0)
    ranks = {name: value for name, value in found.items() if name.startswith("rank_")}
    assert ranks == pytest.approx({"rank_attention": 1.0, "rank_feed-forwards": 8.0, "rank_embeddings": 1.0}, rel=1e-5)
    assert not any(name.startswith("rank_") for name in change_of_weights(before, before))


def test_hernandez_law_is_found_again() -> None:
    rows = [
        (math.log(d), math.log(n), math.log(1.9e4) + 0.18 * math.log(d) + 0.38 * math.log(n))
        for d in (1e4, 1e5, 1e6)
        for n in (1e5, 1e6)
    ]
    assert [name for name, *_ in hernandez(rows)] == ["ln k", "alpha", "beta"]
    for (_, *found), wanted in zip(hernandez(rows), (math.log(1.9e4), 0.18, 0.38), strict=True):
        assert found == pytest.approx([wanted] * 3, rel=1e-4)
    assert [name for name, *_ in hernandez([(d, 1.0, 2 * d) for d in (1.0, 2.0, 4.0)])] == ["ln k", "alpha"]
    assert hernandez(rows[:1]) == []


def results(values: dict[str, dict[str, Any]]) -> list[ArmResult]:
    """Arms by label (name / group), each with its measures by seed and its x."""
    found = []
    for label, of in values.items():
        (name, _, group), x = label.partition(" / "), of.get("x", math.nan)
        found.append(ArmResult(Arm(name, group=group, x=x), None, (), {k: v for k, v in of.items() if k != "x"}, 0))
    return found


def test_a_power_law_is_a_line_that_does_not_bend() -> None:
    def told(loss: Any) -> str:
        noise = np.random.default_rng(0).normal(1.0, 1e-3, (5, 3))
        amounts = [1e3, 1e4, 1e5, 1e6, 1e7]
        arms = {f"{x}": {"x": x, "val_loss": tuple(loss(x) * by)} for x, by in zip(amounts, noise, strict=True)}
        return power(SimpleNamespace(arms=results(arms)))  # type: ignore[arg-type]

    law = told(lambda x: 9 * x**-0.1)
    assert law.startswith("exponent -0.100 (")
    assert law.endswith(", no bend found")
    assert told(lambda x: 1 + 9 * x**-0.3).endswith("it bends, as no power law without a floor does")
    assert "undecided here" in told(lambda x: 2.0)


def test_fronts_are_compared_at_equal_diversity() -> None:
    question = load_question("sampling")

    def told(lift: float) -> str:
        arms: dict[str, Any] = {"temperature 1": {"distinct_3": (80.0, 81.0, 79.0), "coherent": (20.0, 21.0, 19.0)}}
        for way, step, more in (("temperature 0.8", 20.0, 0.0), ("top_k 9", 30.0, 0.0), ("top_p 0.9", 10.0, lift)):
            arms[way] = {"distinct_3": tuple(v - step for v in (80.0, 81.0, 79.0))}
            arms[way]["coherent"] = tuple(v + step + more + i / 9 for i, v in enumerate((20.0, 21.0, 19.0)))
        scale = replace(question.scale("smoke"), n_seeds=3)
        return sampling.fronts(SimpleNamespace(arms=results(arms), scale=scale, question=question))

    assert told(0.0).endswith("agrees")
    assert "top_p +10" in told(20.0)
    assert told(20.0).endswith("disagrees")


def test_a_peak_stands_above_both_ends() -> None:
    def told(*losses: float) -> str:
        noise = np.random.default_rng(0).normal(0.0, 1e-3, (len(losses), 3))
        arms = {f"width {i} / all": {"x": i, "val_loss": tuple(y + noise[i])} for i, y in enumerate(losses)}
        return double_descent.peak(SimpleNamespace(arms=results(arms)))

    assert told(2.0, 3.0, 4.0, 2.5).startswith("all: highest at width 2, +2.0")
    assert told(2.0, 3.0, 4.0, 2.5).endswith(", agrees")
    assert told(2.0, 3.0, 4.0, 5.0).endswith(", disagrees")
    assert told(2.0, 2.0, 2.0, 2.0).endswith(", undecided here")


def test_metrics_are_correlated_over_the_arms_of_each_seed() -> None:
    from scipy.stats import spearmanr

    question, rng = replace(load_question("metrics"), reference="a0"), np.random.default_rng(0)
    first, judged, length = question.measures[0].name, rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    arms = {
        f"a{i}": {first: tuple(-(judged[i] ** 3)), "judged": tuple(judged[i]), "length": tuple(length[i])}
        for i in range(6)
    }
    scale = replace(question.scale("smoke"), n_seeds=3)
    found = SimpleNamespace(arms=results(arms), scale=scale, question=question)
    told = correlations(found, ["judged", "length"])  # type: ignore[arg-type]
    rhos = [spearmanr(-(judged[:, s] ** 3), length[:, s]).statistic for s in range(3)]
    assert "the judge -1.00, words a story" in told
    assert f"words a story {np.mean(rhos):+.2f} (" in told
    assert f"than the next by {1 - np.mean(np.abs(rhos)):+.2f} (" in told
    assert "No rank correlation" in correlations(found, ["zipf"])  # type: ignore[arg-type]


def test_a_distilled_model_is_near_beyond_half_of_the_way() -> None:
    def told(loss: float) -> str:
        own = {"val_loss": (loss, loss + 0.01, loss), "teacher_loss": (1.0, 1.0, 1.0)}
        arms = {"cross-entropy": {"val_loss": (2.0, 2.01, 2.0)}, "distilled": own}
        return lab_loss.nearer(SimpleNamespace(arms=results(arms)))

    assert told(1.2).startswith("distilled goes 8")
    assert told(1.2).endswith("agrees")
    assert told(1.8).endswith("disagrees")


def test_what_finetuning_gains_is_in_bits_of_each_domain() -> None:
    def line(domain: str, first: float, last: float) -> Line:
        metrics = {"curve": [[0, first], [9, last]], "val_loss": last, "bits_per_byte": last / 2}
        return {"kind": "paired", "arm": f"finetuned / {domain}, 0.02 MB", "metrics": metrics}

    def told(far: float) -> str:
        lines = [line(domain, 2.0 + i / 99, 1.8) for domain in ("known style", "new style") for i in range(3)]
        lines += [line(domain, far + i / 99, 2.0) for domain in ("manual", "code") for i in range(3)]
        scale = load_question("domains").scale("smoke")
        return domains.gains(SimpleNamespace(lines=[*lines, {**lines[0], "kind": "sweep"}], scale=scale))

    assert "known style 0.105 (" in told(9.0)
    assert told(9.0).endswith("agrees")
    assert told(2.1).endswith("not all in that order")


def test_what_the_goal_took_is_told_with_seconds_of_cpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"n_stories": 100, "low": 0.5, "high": 0.9, "threads": 2, "parameters": 1000, "size": "tiny", "level": 1}
    rows = [
        {**common, "tokens": 1e9, "passed": 95, "train_seconds": 5, "processor": "NVIDIA X"},
        {**common, "tokens": 5e8, "passed": 91, "train_seconds": 70},
        {**common, "tokens": 1e8, "passed": 20, "train_seconds": 9},
        {**common, "tokens": 1e9, "passed": 20, "train_seconds": 6, "processor": "NVIDIA X", "level": 2},
    ]
    monkeypatch.setattr(model_size, "STUDY", tmp_path / "study.jsonl")
    (tmp_path / "study.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr(model_size, "TRIES", tmp_path / "tries.jsonl")
    (tmp_path / "tries.jsonl").write_text(
        '{"try": ["width 48", 10], "tokens": 2e7, "share": 0.25}\n'
        '{"try": ["width 128", 10], "tokens": 4e7, "share": 0.5, "seconds": 3000}\n'
    )
    first, second, third = model_size.told(SimpleNamespace(question=load_question("model_size")))
    assert "level 1" in first
    assert "tiny reached with 500.0 M tokens, 3 TFLOP as 6 N T, 70 s on 2 CPU threads (91.0 %" in first
    assert "tiny not reached with 1000.0 M tokens, 6 TFLOP as 6 N T (20.0 %" in second
    # 6 N T, N = 12 layers width^2: three layers of 48 and of 128
    assert "width 48, 20.0 M tokens, 10 TFLOP as 6 N T of its blocks, 25.0 %; " in third
    assert third.endswith("width 128, 40.0 M tokens, 142 TFLOP as 6 N T of its blocks, 3,000 s, 50.0 %.")


def test_what_pretraining_is_worth_is_read_between_two_amounts() -> None:
    """From scratch the loss falls by one for each tenfold text; what no amount from scratch reaches is left out."""

    def arm(name: str, size: str, n_bytes: float, loss: float) -> ArmResult:
        values = {"lowest_loss": (loss, loss), "parameters": (1000.0, 1000.0)}
        return ArmResult(Arm(name, group=f"{size}, {n_bytes:g}", x=n_bytes), None, (), values, 0)

    arms = [arm("from scratch", "small", x, 9 - math.log10(x)) for x in (1e4, 1e5, 1e6)]
    arms += [
        arm("pretrained", "small", 1e4, 4.5),
        arm("pretrained", "small", 1e5, 3.2),
        arm("pretrained", "small", 3e5, 2),
    ]
    found = transfer.told(SimpleNamespace(scale=SimpleNamespace(extra={"sizes": {"small": {}}}), arms=arms))
    worth = [10**4.5 - 1e4, 10**5.8 - 1e5]
    assert found[0].endswith(
        f"pretrained / small, 10000: {worth[0] / 1e6:.3g} MB; pretrained / small, 100000: {worth[1] / 1e6:.3g} MB."
    )
    assert found[1] == "Better than every amount from scratch here, so in no law: pretrained / small, 300000."
    assert "cannot be fitted: 2 pretrained arms" in found[2]
    few = SimpleNamespace(scale=SimpleNamespace(extra={"sizes": {"small": {}}}), arms=arms)
    assert transfer.judged(few) == "the law cannot be fitted here"
    line = [arm("from scratch", "small", x, 9 - math.log10(x)) for x in (1e4, 1e5, 1e6, 1e7)]
    # worth 2, 20 and 200 times as much: an alpha of 1, exactly; then of one that wanders about 0.18
    steep = [arm("pretrained", "small", x, 9 - math.log10(3 * x)) for x in (1e4, 1e5, 1e6)]
    told = transfer.judged(SimpleNamespace(scale=few.scale, arms=[*line, *steep]))
    assert told.startswith("alpha 1 (")
    assert told.endswith("beside 0.18: another exponent")
    flat = [arm("pretrained", "small", x, 9 - math.log10(x + more)) for x, more in ((1e4, 9e4), (1e5, 8e4), (1e6, 3e5))]
    assert transfer.judged(SimpleNamespace(scale=few.scale, arms=[*line, *flat])).endswith("beside 0.18: agrees")


def test_known_by_heart_are_rows_as_training_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_shards(prepare("tales", tokenizer="words", level=1, megabytes=0.02))
    split, tokenizer = data.splits["train"], data.tokenizer()
    C, n = 40, overfit.PROMPT + overfit.CONTINUED
    stream = torch.from_numpy(np.concatenate([[tokenizer.eot, *split.document(i)] for i in range(40)]))
    asked: list[torch.Tensor] = []

    def by_rote(_: Any, ids: torch.Tensor, n_new: int, **options: Any) -> torch.Tensor:
        """Goes on as the text does, but for the last token of each row."""
        asked.append(ids)
        found = torch.stack([stream[row * C : row * C + ids.shape[1] + n_new] for row in range(len(ids))])
        found[:, -1] += 1
        return found

    monkeypatch.setattr(overfit, "generate_ids", by_rote)
    monkeypatch.setattr(overfit, "loss_of_rows", lambda *_: 0.25)
    trained: Any = SimpleNamespace(
        model=GPT(GPTConfig(1, 1, 8, block_size=C, vocab_size=tokenizer.vocab_size)),
        tokenizer=tokenizer,
        data=data,
        cell=SimpleNamespace(measure={"documents": 3, "n_stories": 20}, config=None),
        metrics={"failures": {"copied": 5, "duplicate": 2}},
    )
    found = overfit.by_heart(trained)
    assert asked[0].tolist() == [stream[row * C : row * C + overfit.PROMPT].tolist() for row in range(3)]
    share = 100 * (overfit.CONTINUED - 1) / overfit.CONTINUED
    assert found == {"train_loss": 0.25, "by_heart": pytest.approx(share), "copied": 25.0}
    assert n <= C


def test_a_mixture_is_judged_by_its_best_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen by validation stories, measured by fresh ones."""
    tokenizer = get_tokenizer("bytes")
    val = without_code(next(iter(stories(n=1, level=1, style=mixing.OWN, split="val"))))
    for step, loss in ((5, 3.0), (10, 1.0), (15, 2.0)):
        model = GPT(GPTConfig(1, 1, 8, block_size=16, vocab_size=tokenizer.vocab_size))
        torch.nn.init.constant_(model.wte.weight, loss)
        folder = tmp_path / f"step_{step:06}"
        model.save_pretrained(folder)
        (folder / "state.json").write_text("{}")

    def loss_of(model: GPT, _: Any, texts: list[str], code: str) -> float:
        return model.wte.weight[0, 0].item() + (0.0 if texts[0] == val else 0.5)

    asked = list[GPT]()

    def told_by(model: GPT, *_: Any, **__: Any) -> list[str]:
        asked.append(model)
        return ["Who?"]

    monkeypatch.setattr(mixing, "behind_code", loss_of)
    monkeypatch.setattr(mixing, "sample_documents", told_by)
    cell = SimpleNamespace(data={"level": 1}, measure={"documents": 2}, seed=0)
    last: Any = SimpleNamespace(cell=cell, tokenizer=tokenizer, checkpoint=folder, model=model)
    assert mixing.own_style(last) == {"own_loss": 1.5, "last_loss": 2.5, "kept_step": 10.0, "obeyed": 0.0}
    assert asked[0].wte.weight[0, 0].item() == 1.0


def test_a_story_is_longer_than_the_context_that_leak_reads_it_with() -> None:
    data = open_shards(prepare("tales", tokenizer="words", level=1, megabytes=0.02))
    shortest = min(len(data.splits["val"].document(i)) for i in range(data.splits["val"].n_documents))
    contexts = {arm.measure["context"] for arm in leak.arms(load_question("leak").scale("laptop"))}
    assert max(contexts) < shortest


def test_every_part_but_one_has_a_place_for_a_pretrained_feed_forward() -> None:
    scale = load_question("components").scale("smoke")
    names = ("n_layer", "n_head", "n_embd", "block_size")
    base = GPT(GPTConfig(**{name: scale.run[name] for name in names}, vocab_size=50))
    fed = [name for name, _ in base.named_parameters() if ".mlp." in name and name.endswith("weight")]
    for arm in (arm for arm in components.arms(scale) if arm.name in components.PARTS):
        fields = {name: value for name, value in arm.run.items() if hasattr(base.config, name)}
        kept = set(swap(base, **fields)[1].kept)
        assert kept.issuperset(fed) == (arm.name != "SwiGLU")
        assert (arm.name in components.SWITCHED) == (arm.name != "SwiGLU")


def test_a_strategy_that_costs_no_diversity_is_told() -> None:
    arms = {"kept": (60.0, 90.0), "dull": (70.0, 50.0), "temperature 1": (40.0, 90.0)}
    results = tuple(
        ArmResult(Arm(name), None, (), {"coherent": (a, a + 1, a + 0.5), "distinct_3": (b, b + 0.1, b + 0.2)}, 0)
        for name, (a, b) in arms.items()
    )
    question = load_question("sampling")
    compared = tuple(compare(question, list(results), question.measures[0], question.margin))
    analysis = Analysis(question, question.scale("smoke"), results, compared, (), (), ())
    assert sampling.told(analysis) == ["More coherent than plain sampling, and not found to be less diverse: kept."]


def searched(scale: Scale) -> list[Arm]:
    space: dict[str, tuple[Any, ...]] = {"lr": ("log", 1e-4, 1e-1), "beta2": ("of", 0.9, 0.99)}
    return [Arm("plain", {"lr": 1e-2, "beta2": 0.99}), Arm("other", {"lr": 1e-2, "beta2": 0.99}, search=space)]


SEARCH: Question = replace(
    load_question("optimizers"), reference="plain", arms=searched, scales={"smoke": SMOKE}, timed=False
)


def test_a_search_is_replayed_from_its_results() -> None:
    """Every trial follows from the results before it, in whatever process; the first is the arm as it stands."""
    pytest.importorskip("optuna", reason="the search needs the extra `lab`")
    scale = SMOKE.but(extra={"trials": 8})
    arm = searched(scale)[1]
    results: dict[str, Line] = {}
    asked = []
    while len(cells := sweep(SEARCH, scale, arm, results)) > len(results):
        assert len(cells) == len(results) + 1  # the trials before come out again, and one more
        assert [cell.address for cell in cells[:-1]] == list(results)
        rate = cells[-1].config.lr
        results[cells[-1].address] = {"metrics": {"val_loss": abs(math.log(rate / 3e-2))}}
        asked.append(rate)
    assert len(asked) == 8
    assert asked[0] == 1e-2
    assert len(set(asked)) == 8
    best = best_rate(cells, results, arm)
    assert isinstance(best, dict)
    assert best["lr"] == min(asked, key=lambda rate: abs(math.log(rate / 3e-2)))
    assert {cell.config.lr for cell in paired(SEARCH, scale, arm, best)} == {best["lr"]}
    assert {cell.config.beta2 for cell in paired(SEARCH, scale, arm, best)} == {best["beta2"]}
    assert all_cells(SEARCH, scale) == scale.n_seeds + 8 + scale.n_seeds
    assert {cell.kind for cell in ready(SEARCH, scale, results)} == {"paired"}


def left_alone(scale: Scale) -> list[Arm]:
    base = Base({"max_steps": 2}, {})
    return [
        Arm("plain", {"lr": 0.0, "max_steps": 1}, base=base),
        Arm("switched", {"lr": 0.0, "max_steps": 1, "activation": "relu"}, base=base),
        Arm("from scratch", {"lr": 1e-9}, base=replace(base, weights=False)),
    ]


def test_bases_are_left_alone_switched_or_lend_their_tokenizer(tmp_path: Path) -> None:
    question = replace(SEARCH, arms=left_alone)
    scale, places = SMOKE.but(n_stories=0), Places(tmp_path / "lab")
    plain, switched, scratch = (
        run_cell(question, paired(question, scale, arm, None)[0], places)["metrics"] for arm in left_alone(scale)
    )
    assert plain["tokens"] == 0
    assert plain["teraflops"] == 0.0
    base = next((tmp_path / "lab" / "work" / "bases").glob("*/metrics.jsonl"))
    assert f'"val_loss": {plain["val_loss"]}' in base.read_text("utf-8")
    assert switched["val_loss"] != plain["val_loss"]
    assert switched["parameters"] == plain["parameters"]
    assert scratch["val_loss"] > plain["val_loss"]
    assert len(list((tmp_path / "lab" / "work" / "bases").iterdir())) == 1  # one base for all three


def test_gpt2_is_the_base_where_the_cache_has_it(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    question = load_question("small_vs_large")
    scale = question.scale("smoke").but({"block_size": 24})
    scale = replace(scale, extra={**scale.extra, "gpt2": ("gpt2", "gpt2-medium")})
    without = [paired(question, scale, arm, None)[0] for arm in question.arms(scale)]
    assert all(cell.base is not None and "pretrained" not in cell.base for cell in without)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MINILM_GPT2_TOKENIZER", str(shared_data / "gpt2_files"))
    models = {}
    for name, width in (("gpt2", 8), ("gpt2-medium", 12)):
        folder = tmp_path / "hub" / f"models--{name}"
        torch.manual_seed(0)
        models[name] = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=width, vocab_size=50257, block_size=32))
        models[name].save_pretrained(folder / "snapshots" / "abc")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
    places, found = Places(tmp_path / "lab"), {}
    for arm in question.arms(scale):
        cell = paired(question, scale, arm, 1e-3 if arm.rates else None)[0]
        assert cell.data["tokenizer"] == "gpt2"
        found[arm.name] = run_cell(question, cell, places)["metrics"]
    assert not (tmp_path / "lab" / "work" / "bases").exists()  # none is trained
    for arm_name, name in (("small, as it is", "gpt2"), ("large, as it is", "gpt2-medium")):
        cropped = models[name].num_params() - (32 - 24) * models[name].config.n_embd
        assert found[arm_name]["parameters"] == cropped
        assert found[arm_name]["val_loss"] == pytest.approx(math.log(50257), abs=0.05)  # drawn, not trained
        assert found[arm_name.replace("as it is", "finetuned")]["val_loss"] < found[arm_name]["val_loss"]
    told = " ".join(threats(analyse(question, scale, places.results("small_vs_large", "smoke"))))
    assert "Starts from gpt2 and gpt2-medium," in told


def test_a_model_of_the_repository_is_a_base_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "DOMAINS", {"new style": {"style": "letter"}})
    question, places = domains.QUESTION, Places(tmp_path / "lab")
    scale = replace(question.scale("smoke"), name="laptop")  # where a base is one of models/
    scale = replace(scale, extra={**scale.extra, "alone": ("new style",)})
    arms = question.arms(scale)
    assert [arm.name for arm in arms] == ["finetuned", domains.TALES, "from scratch"]
    cells = {a.name: [*sweep(question, scale, a), *paired(question, scale, a, a.rates[2])] for a in arms}
    monkeypatch.setattr(runtime, "packaged", lambda name: None)
    with pytest.raises(MinilmError, match="tales-shakespeare is not in"):
        run_cell(question, cells["finetuned"][0], places)
    for name in (domains.TALES, "from scratch"):
        for cell in cells[name]:
            run_cell(question, cell, places)
    [made] = (tmp_path / "lab" / "work" / "bases").iterdir()
    weights = step_folders(made)[-1]
    monkeypatch.setattr(runtime, "packaged", lambda name: weights if name == "tales-shakespeare" else None)
    lines = [run_cell(question, cell, places) for cell in cells["finetuned"]]
    assert [made] == list(made.parent.iterdir())  # none was trained

    found = analyse(question, scale, places.results("domains", "laptop"))
    ours, plain = (next(r for r in found.arms if r.arm.name == name) for name in ("finetuned", domains.TALES))
    for measure in ("val_loss", "forgotten"):  # the same weights come to the same
        assert ours.values[measure] == plain.values[measure]
    assert all(line["metrics"]["curve"][0][1] > line["metrics"]["val_loss"] for line in lines)
    assert "new style, 0.02 MB +0.000 (+0.000 to +0.000)" in domains.beside(found)[0]
    assert any(threat.startswith("Starts from tales-shakespeare, with Shakespeare in") for threat in threats(found))


def test_on_a_card_the_base_has_read_local_text_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "DOMAINS", {"new style": {"style": "letter"}})
    monkeypatch.setattr(finetune, "LOCAL", [{"weight": 0.75}, {"local": "packages", "megabytes": 0.02, "weight": 0.25}])
    question, places = domains.QUESTION, Places(tmp_path / "lab")
    scale = replace(question.scale("smoke"), name="gpu")
    arm = question.arms(scale)[0]
    cells = [*sweep(question, scale, arm), *paired(question, scale, arm, 1e-3)]
    line = [run_cell(question, cell, places) for cell in cells][-1]
    [made] = (tmp_path / "lab" / "work" / "bases").iterdir()
    tales, packages = open_data(run_config(made).data).sources  # type: ignore[attr-defined]
    assert math.isfinite(line["metrics"]["forgotten"])
    assert line["metrics"]["parameters"] > 0
    tokenizer = get_tokenizer(made)
    read = tokenizer.decode(packages.document(0).tolist())
    assert read.startswith("Metadata-Version:")
    assert tales.n_documents > packages.n_documents
    told = threats(analyse(question, scale, places.results("domains", "gpu")))
    assert any("a quarter of whose tokens are installed packages" in threat for threat in told)  # labelled so


@pytest.mark.parametrize("name", FINETUNING)
def test_what_a_laptop_finetunes_is_in_the_repository_and_of_the_shape_that_is_told(name: str) -> None:
    question = load_question(name)
    scale = question.scale("laptop")
    started = [arm.base or (question.base(scale) if question.base else None) for arm in question.arms(scale)]
    bases = {base.pretrained: base for base in started if base is not None and base.pretrained}
    assert bases
    for base in bases.values():
        theirs, ours = config_of(scale, base.run, 0).model, GPT.from_pretrained(base.pretrained).config
        assert ours.block_size in (scale.run["block_size"], 512)
        for part in ("n_layer", "n_head", "n_embd", "position", "qk_norm", "attn_bias", "mlp_bias", "norm_bias"):
            assert getattr(ours, part) == getattr(theirs, part), (base.pretrained, part)
        assert get_tokenizer(base.pretrained).vocab_size == 512
        assert get_tokenizer(base.pretrained).name == "bpe"
        lines = [line for line in Places("lab").results(name, "laptop").values() if line["settings"]["base"]]
        marks = {
            line["base_weights"] for line in lines if line["settings"]["base"].get("pretrained") == base.pretrained
        }
        file = runtime.packaged(base.pretrained) / "model.safetensors"  # type: ignore[operator]
        assert marks <= {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}, (
            "results of other weights than models/ has"
        )


def test_a_search_needs_optuna_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    scale = SMOKE.but(extra={"trials": 2})
    arm = searched(scale)[1]
    first = sweep(SEARCH, scale, arm, {})
    assert len(first) == 1
    with pytest.raises(UsageError, match=r"minilm\[lab\]"):
        sweep(SEARCH, scale, arm, {first[0].address: {"metrics": {"val_loss": 1.0}}})
