"""Every term against its formula written out in float64, gradients too; any with any; chunks against the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import close, tiny, tokens
from torch import Tensor
from training_helpers import sums, tiny_config

from minilm.config import OBJECTIVES, TrainConfig
from minilm.errors import UsageError
from minilm.log import read_metrics
from minilm.model import losses
from minilm.model.gpt import GPT
from minilm.model.losses import IGNORE
from minilm.text.prepare import prepare
from minilm.text.prompts import in_prompt
from minilm.text.tokenizer import get_tokenizer
from minilm.training import loop, objective
from minilm.training.loop import Result, train
from minilm.training.objective import Objective, greedy

ON: dict[str, dict[str, Any]] = {
    "likelihood": {"likelihood": 0.7},
    "smoothing": {"likelihood": 1.0, "label_smoothing": 0.2},
    "z_loss": {"z_loss": 0.3},
    "unlikelihood": {"unlikelihood": 0.4},
    "sequence": {"sequence_unlikelihood": 0.5},
    "contrastive": {"contrastive": 0.6, "contrastive_margin": 0.8},
    "distill": {"distill": 0.9, "distill_temperature": 1.7, "teacher": "x"},
}


@pytest.fixture(autouse=True, scope="module")
def short_ngrams() -> Iterator[None]:
    """Continuations of eight tokens repeat bigrams, hardly 4-grams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "NGRAM", 2)
        yield


def settings(*names: str) -> TrainConfig:
    values: dict[str, Any] = {"likelihood": 0.0}
    for name in names:
        values |= ON[name]
    return TrainConfig(**values)


def batch(B: int = 3, T: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """ids, targets with some not scored, documents."""
    whole = tokens(B, T + 1, 6)  # few tokens, so that contexts repeat
    ids, targets = whole[:, :-1], whole[:, 1:].clone()
    targets[0, 7:] = IGNORE
    targets[2, 3] = IGNORE
    documents = torch.zeros_like(ids)
    documents[1, 4:] += 1
    documents[1, 9:] += 1
    return ids, targets, documents


def written_out(
    model: GPT,
    teacher: GPT | None,
    config: TrainConfig,
    ids: Tensor,
    targets: Tensor,
    weights: Tensor,
    documents: Tensor | None,
) -> dict[str, Tensor]:
    """The formulas of docs/objectives.md, place by place."""
    hidden = model.hidden(ids, documents)
    logits = model.head(hidden)[..., : model.config.vocab_used or model.config.vocab_size]
    told = None if teacher is None else teacher(ids, documents)[..., : logits.shape[-1]].detach()
    B, T, V = logits.shape
    same = documents if documents is not None else torch.zeros_like(ids)
    found = {name: torch.zeros((), dtype=torch.float64) for name in OBJECTIVES}
    for b in range(B):
        for t in range(T):
            y, w = int(targets[b, t]), weights[b, t]
            if y == IGNORE:
                continue
            p = logits[b, t].exp() / logits[b, t].exp().sum()
            s = config.label_smoothing
            found["likelihood"] += -w * ((1 - s) * p[y].log() + s * p.log().sum() / V)
            found["z_loss"] += w * logits[b, t].exp().sum().log() ** 2
            seen = {int(ids[b, j]) for j in range(t + 1) if same[b, j] == same[b, t]} - {y}
            for c in seen:
                found["unlikelihood"] += -w * (1 - p[c]).log()
            if told is not None:
                tau = config.distill_temperature
                q = (told[b, t] / tau).exp() / (told[b, t] / tau).exp().sum()
                r = (logits[b, t] / tau).exp() / (logits[b, t] / tau).exp().sum()
                found["distill"] += w * tau**2 * (q * (q / r).log()).sum()
            others = [j for j in range(T) if j != t and targets[b, j] != IGNORE and same[b, j] == same[b, t]]
            for j in others:
                h, k = hidden[b, t], hidden[b, j]
                cosine = (h * k).sum() / (h.square().sum().sqrt() * k.square().sum().sqrt())
                found["contrastive"] += (config.contrastive_margin - 1 + cosine).clamp(min=0) / len(others)
    found["sequence_unlikelihood"] = continuations_written_out(model, ids, targets, weights)
    return found


def continuations_written_out(model: GPT, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    n_prefix = ids.shape[1] // 3
    for b, row in enumerate(ids.tolist()):
        text = row[:n_prefix]
        while len(text) < len(row):
            with torch.no_grad():
                text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        probabilities = model(torch.tensor([text]))[0].softmax(-1)
        new = text[n_prefix:]
        marked = set()
        n = objective.NGRAM
        for i in range(len(new) - n + 1):
            if tuple(new[i : i + n]) in {tuple(new[j : j + n]) for j in range(i)}:
                marked |= set(range(i, i + n))
        share = sum(float(w) for w, y in zip(weights[b], targets[b], strict=True) if y != IGNORE) / len(new)
        for i in marked:
            total = total - share * (1 - probabilities[n_prefix + i - 1, new[i]]).clamp(min=losses.LEAST).log()
    return total


def gradients(model: GPT) -> dict[str, Tensor]:
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def check(config: TrainConfig, with_documents: bool, **changes: Any) -> None:
    model, teacher = tiny(**changes), tiny(seed=5, n_layer=1) if config.distill else None
    ids, targets, documents = batch()
    weights = torch.rand(ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    told = documents if with_documents else None
    made = Objective(model, config, teacher, greedy)
    total = made(ids, targets, weights, told)
    total.backward()
    mine = gradients(model)
    expected = written_out(model, teacher, config, ids, targets, weights, told)
    whole = torch.stack([getattr(config, name) * expected[name] for name in OBJECTIVES]).sum()
    whole.backward()
    assert close(total.detach(), whole.detach())
    reference = gradients(model)
    scale = max(g.abs().max() for g in reference.values())
    for name, gradient in mine.items():
        assert (gradient - reference[name]).abs().max() <= 1e-9 * scale, name
    assert set(made.terms) == {name for name in OBJECTIVES if getattr(config, name)}
    for name, term in made.terms.items():
        assert close(term.double(), expected[name].detach()), name


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("name", ON)
def test_a_term_and_its_gradient_are_its_formula(name: str, with_documents: bool) -> None:
    check(settings(name), with_documents and name != "sequence")


@pytest.mark.parametrize("pair", list(combinations(ON, 2)), ids="+".join)
def test_any_with_any(pair: tuple[str, str]) -> None:
    check(settings(*pair), with_documents=False)


def test_all_at_once_on_another_model() -> None:
    check(settings(*ON), False, tie_embeddings=False, logit_softcap=3.0, norm="rmsnorm", position="rope")


def test_the_sequence_term_has_something_to_push_down() -> None:
    model = tiny()
    ids, targets, _ = batch()
    assert continuations_written_out(model, ids, targets, torch.ones_like(ids)) > 0


@given(st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(1, 10))
def test_repeated_ngrams(rows: list[list[int]], n: int) -> None:
    expected = [[False] * 9 for _ in rows]
    for row, marks in zip(rows, expected, strict=True):
        seen: set[tuple[int, ...]] = set()
        for i in range(9 - n + 1):
            if tuple(row[i : i + n]) in seen:
                marks[i : i + n] = [True] * n
            seen.add(tuple(row[i : i + n]))
    assert losses.repeated(torch.tensor(rows), n).tolist() == expected


# --- chunks


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks of a few rows; the list collects how many rows' logits were held at once."""
    rows: list[int] = []
    monkeypatch.setattr(losses, "PLAIN_BYTES", 0)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 29 * 4)
    before = GPT.finish_logits

    def finish(model: GPT, logits: Tensor) -> Tensor:
        rows.append(logits.numel() // logits.shape[-1])
        return before(model, logits)

    monkeypatch.setattr(GPT, "finish_logits", finish)
    return rows


@pytest.mark.parametrize("waiting_bytes", [1, 1 << 20])
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_columns_and_waiting_gradients_change_nothing(
    wanted: tuple[bool, bool], cap: float, waiting_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "WAITING_BYTES", waiting_bytes)
    torch.manual_seed(0)
    x, weight = (
        torch.randn(n, 6, dtype=torch.float64).requires_grad_(w) for n, w in zip((12, 29), wanted, strict=True)
    )
    targets = torch.randint(29, (12,))

    def loss(logits: Tensor, rows: slice) -> Tensor:
        logits = logits[:, :29]
        logits = cap * torch.tanh(logits / cap) if cap else logits
        return losses.cross_entropy(logits, targets[rows], "sum")[None]

    by = torch.ones(1, dtype=torch.float64)
    found = losses._Chunked.apply(x, weight, loss, by, 5, 35, wanted)[0]
    plain = loss(x @ weight.t(), slice(0, 12)).sum()
    assert torch.allclose(found, plain)
    if any(wanted):
        inputs = [t for t, w in zip((x, weight), wanted, strict=True) if w]
        for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(plain, inputs), strict=True):
            assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("vocabulary", [257, 50257])
@pytest.mark.parametrize("n_rows", [1, 7, 2048, 4096, 12 * 1024, 32 * 1024, 10_007])
def test_chunks_of_a_card_are_alike_where_they_can_be(n_rows: int, vocabulary: int, compiled: bool) -> None:
    n_bytes = losses.COMPILED_CHUNK_BYTES if compiled else losses.CARD_CHUNK_BYTES
    n = losses.chunk_rows(n_rows, vocabulary, True, compiled)
    assert 1 <= n <= n_rows
    assert n == 1 or 4 * vocabulary * n <= n_bytes
    fewest = -(-n_rows // max(n_bytes // (4 * vocabulary), 1))
    assert -(-n_rows // n) < 2 * fewest + 1
    if any(n_rows % k == 0 for k in range(fewest, 2 * fewest)):
        assert n_rows % n == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False},
        {"n_factor": 6},
        {"vocab_used": 23, "vocab_multiple": 16},
        {"logit_softcap": 2.0, "tie_embeddings": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_chunks_give_the_loss_and_gradients_of_the_whole(
    small_chunks: list[int], changes: dict[str, Any], reduction: str
) -> None:
    model = tiny(**changes)
    ids, targets, _ = batch()
    loss = model.loss(ids, targets, reduction=reduction)
    loss.backward()
    mine = gradients(model)
    assert max(small_chunks) <= 4
    assert sum(small_chunks) == ids.numel()
    whole = losses.cross_entropy(model.used_logits(model.hidden(ids)), targets, reduction)
    whole.backward()
    assert close(loss.detach(), whole.detach())
    for name, gradient in gradients(model).items():
        assert close(mine[name], gradient), name
    with torch.no_grad():
        assert close(model.loss(ids, targets, reduction=reduction), whole.detach())


@pytest.mark.parametrize("frozen", ["wte.weight", "all below"])
def test_chunks_with_frozen_parts(small_chunks: list[int], frozen: str) -> None:
    model = tiny(tie_embeddings=False)
    for name, p in model.named_parameters():
        p.requires_grad_(name == "lm_head.weight" if frozen == "all below" else name != "lm_head.weight")
    ids, targets, _ = batch()
    (3.0 * model.loss(ids, targets)).backward()
    mine = gradients(model)
    (3.0 * losses.cross_entropy(model.used_logits(model.hidden(ids)), targets)).backward()
    for name, gradient in gradients(model).items():
        assert close(mine[name], gradient), name
    assert any(g.abs().sum() > 0 for g in mine.values())


@pytest.mark.parametrize("name", ON)
def test_every_term_in_chunks(small_chunks: list[int], name: str) -> None:
    check(settings(name), with_documents=False)
    assert max(small_chunks[: len(small_chunks) // 2]) <= 33


def test_chunks_under_autocast(small_chunks: list[int]) -> None:
    """bf16 products, loss in fp32: as far from the truth as the whole in bf16 is, at most twice."""
    model = tiny().float()
    ids, targets, _ = batch()
    errors = []
    model.loss(ids, targets).backward()
    truth = gradients(model)["wte.weight"]
    for whole in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if whole:
                loss = losses.cross_entropy(model.used_logits(model.hidden(ids)), targets)
            else:
                loss = model.loss(ids, targets)
        assert loss.dtype == torch.float32
        loss.backward()
        errors.append((gradients(model)["wte.weight"] - truth).norm().item())
    assert 0 < errors[0] < 2 * errors[1]


@pytest.mark.slow
def test_chunks_inside_a_compiled_function(small_chunks: list[int]) -> None:
    """As on a GPU, where the whole loss is compiled: the chunks break the graph, and the result stays."""
    model = tiny().float()
    ids, targets, _ = batch()
    expected = model.loss(ids, targets)
    expected.backward()
    reference = gradients(model)
    loss = torch.compile(lambda i, t: model.loss(i, t), dynamic=False)(ids, targets)
    loss.backward()
    assert close(loss.detach(), expected.detach(), 1e-5)
    for name, gradient in gradients(model).items():
        assert close(gradient, reference[name], 1e-4), name


# --- in the loop


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(tiny_config(data, tmp_path_factory.mktemp("teacher") / "run", max_steps=5))


def everything(teacher: Result) -> dict[str, Any]:
    changes: dict[str, Any] = {"prompt_end": "make", "prompt_weight": 0.25}
    for values in ON.values():
        changes |= values
    return changes | {"teacher": str(teacher.checkpoint)}


def test_micro_batches_add_up(data: Path, teacher: Result, tmp_path: Path) -> None:
    changes = {"max_steps": 3, **everything(teacher)}
    one = train(tiny_config(data, tmp_path / "one", micro_batch_size=8, **changes))
    many = train(tiny_config(data, tmp_path / "many", micro_batch_size=2, **changes))
    assert many.losses == pytest.approx(one.losses, rel=1e-4)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "many")]
    rows = [[row for row in some if "loss" in row] for some in rows]
    for a, b in zip(*rows, strict=True):
        for name in OBJECTIVES:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name
    logged = rows[0][0]
    total = sum(getattr(tiny_config(data, tmp_path, **changes), name) * logged[name] for name in OBJECTIVES)
    assert logged["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ON), "everything"])
def test_resume_is_bit_exact(data: Path, teacher: Result, tmp_path: Path, name: str) -> None:
    changes = everything(teacher) if name == "everything" else ON[name]
    changes = {"max_steps": 6, "save_every_steps": 3, "resid_dropout": 0.1, "micro_batch_size": 4, **changes}
    if "teacher" in changes:
        changes["teacher"] = str(teacher.checkpoint)
    config = tiny_config(data, tmp_path / "whole", **changes)
    whole = train(config)
    broken = replace(config, out_dir=str(tmp_path / "broken"))
    evaluate = loop.evaluate

    def stop(*args: Any) -> float:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", stop)  # after the fifth step; the third is saved
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    assert loop.evaluate is evaluate
    resumed = train(replace(broken, existing="resume"))
    assert resumed.losses == whole.losses[3:]
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.losses[-1] < whole.losses[0]


def test_cross_entropy_alone_logs_no_terms(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path / "run", max_steps=2))
    assert not any(set(OBJECTIVES) & row.keys() for row in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_a_student_of_itself_has_nothing_to_learn(data: Path, teacher: Result) -> None:
    config = settings("distill")
    made = Objective(teacher.model, config, GPT.from_pretrained(teacher.checkpoint))
    ids, targets, _ = batch()
    made(ids, targets).backward()
    assert made.terms["distill"].abs() < 1e-4
    assert all(g.abs().max() < 1e-3 for g in gradients(teacher.model).values())


def test_teachers_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="the teacher has 31 tokens, the student 29"):
        Objective(tiny(), settings("distill"), tiny(vocab_size=31))
    with pytest.raises(UsageError, match="set --block_size 5 or less"):
        Objective(tiny(), settings("distill"), tiny(block_size=5))


def test_another_tokenizer_of_the_teacher_is_refused(data: Path, teacher: Result, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(sums(10, 60)), encoding="utf-8")
    chars = prepare(str(tmp_path / "book.txt"), tokenizer="chars")
    other = tiny_config(chars, tmp_path / "other", max_steps=1)
    with pytest.raises(UsageError, match="was trained with tokenizer"):
        train(replace(other, teacher=str(teacher.checkpoint), distill=1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood": 0.0}, "nothing would be minimised"),
        ({"distill": 1.0}, "--teacher"),
        ({"teacher": "gpt2"}, "--distill"),
        ({"prompt_weight": 0.0}, "--prompt_end"),
        ({"prompt_end": "x"}, "--prompt_weight"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie in"),
        ({"z_loss": -1.0}, "z_loss must be 0 or more"),
        ({"distill": 1.0, "teacher": "x", "distill_temperature": 0.0}, "distill_temperature must be above 0"),
    ],
)
def test_misuse_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**changes)


# --- completion-only loss


def prompts_written_out(row: list[int], separator: list[int], eot: int) -> list[bool]:
    """Document by document, in plain Python."""
    inside: list[bool] = []
    at = 0
    while at < len(row):
        after = next((i for i in range(at + 1, len(row)) if row[i] == eot), len(row))
        document = row[at:after]
        n = len(separator)
        found = next((i for i in range(len(document) - n + 1) if document[i : i + n] == separator), None)
        if found is not None:
            marks = [i < found + n for i in range(len(document))]
        else:
            marks = [document[0] == eot and after == len(row)] * len(document)
        if document[0] == eot:
            marks[0] = False
        inside += marks
        at = after
    return inside


@given(st.lists(st.integers(0, 3), min_size=2, max_size=14), st.lists(st.integers(1, 3), min_size=1, max_size=2))
def test_prompts(row: list[int], separator: list[int]) -> None:
    array = np.array([row])
    found = in_prompt(array[:, :-1], array[:, 1:], np.array(separator), eot=0)
    assert found[0].tolist() == prompts_written_out(row, separator, 0)[1:]


def test_completions_alone_are_learnt(data: Path, tmp_path: Path) -> None:
    """prompt_weight 0 gives the mean over targets behind each document's first "make", and no gradient of others."""
    config = tiny_config(data, tmp_path / "run", max_steps=1, prompt_end="make", prompt_weight=0.0)
    result = train(config)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        before = loop.train_step

        def kept(run: Any, batch: Any, *args: Any) -> Any:
            seen.append((batch, [p.detach().clone() for p in run.model.parameters()]))
            return before(run, batch, *args)

        patch.setattr(loop, "train_step", kept)
        again = train(replace(config, out_dir=str(tmp_path / "again")))
    ((batch, weights),) = seen
    model = GPT(again.model.config)
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(w)
        logits = model(torch.from_numpy(batch.ids)).double()
    make, eot = get_tokenizer("bytes").encode("make"), get_tokenizer("bytes").eot
    nats = []
    for b, row in enumerate(batch.ids.tolist()):
        whole = [*row, int(batch.targets[b, -1])]
        inside = prompts_written_out(whole, [int(i) for i in make], eot)[1:]
        for t, y in enumerate(batch.targets[b]):
            if not inside[t]:
                nats.append(-logits[b, t].log_softmax(-1)[y].item())
    assert 0 < len(nats) < batch.targets.size
    assert result.losses[0] == pytest.approx(math.fsum(nats) / len(nats), rel=1e-5)


def test_a_separator_that_is_nowhere_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no document of the first batch holds 'Answer:' as the tokens"):
        train(tiny_config(data, tmp_path / "run", prompt_end="Answer:", prompt_weight=0.0))


def test_prefix_and_continuation_fill_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def sampler(model: GPT, ids: Tensor, n: int) -> Tensor:
        asked.append((ids.shape[1], n, model.training, torch.is_grad_enabled()))
        return greedy(model, ids, n)

    model = tiny().train()
    ids, targets, _ = batch()
    monkeypatch.setattr(objective, "CONTINUATION", 5)
    Objective(model, settings("sequence"), None, sampler)(ids, targets)
    assert asked == [(3, 5, False, False)]
    assert model.training
