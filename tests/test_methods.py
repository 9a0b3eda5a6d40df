"""Searches, guidance and guessing ahead: against transformers, exhaustive search, uncached formulas, chi-square."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from minilm.config import GPTConfig
from minilm.decoding.attributes import Steering
from minilm.decoding.engine import generate, stream_batch
from minilm.decoding.guidance import contrast, guide
from minilm.decoding.loop import Job, decode
from minilm.decoding.methods import Method, run
from minilm.decoding.search import beam_search
from minilm.decoding.speculative import by_lookup
from minilm.decoding.strategies import Strategy
from minilm.errors import UsageError
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def tiny(seed: int = 0, **changes: Any) -> GPT:
    torch.manual_seed(seed)
    values: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 30}
    return GPT(GPTConfig(**{**values, "init_std": 0.3, "tie_embeddings": False, **changes})).eval()


def theirs(model: GPT) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    shape: dict[str, Any] = {"n_positions": c.block_size, "n_embd": c.n_embd, "n_layer": c.n_layer, "n_head": c.n_head}
    copy = GPT2LMHeadModel(GPT2Config(vocab_size=c.vocab_size, **shape, eos_token_id=None, tie_word_embeddings=False))
    for key, value in model.state_dict().items():
        turned = value.t() if key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else value
        copy.get_parameter(key if key.startswith("lm_head") else f"transformer.{key}").data = turned
    return copy.eval()


def job(model: GPT, prompts: list[list[int]], n: int, ends: tuple[int, ...] = (), **strategy: Any) -> Job:
    seeds = strategy.pop("seeds", list(range(len(prompts))))
    return Job(model, prompts, seeds, Strategy(**strategy), n, ends)


def decoded(task: Job, method: Method | None = None, negative: list[int] | None = None) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in task.prompts]
    last = [False] * len(out)
    for piece in decode(task) if method is None else run(task, method, negative or [0]):
        assert not last[piece.row]
        out[piece.row].append(piece.token)
        last[piece.row] = piece.last
    assert all(last)
    return out


# --- beam search


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize(("n_beams", "length_penalty"), [(2, 1.0), (4, 0.0), (4, 1.5), (5, -0.5)])
def test_beam_search_equals_transformers(n_beams: int, length_penalty: float, early_stopping: bool) -> None:
    model = tiny()
    reference = theirs(model)
    prompts = [[3, 4, 5], [7, 7, 1], [2, 9, 20]]
    ours = decoded(job(model, prompts, 14, (5,)), Method(n_beams, length_penalty, early_stopping))
    for prompt, row in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        found = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=14, do_sample=False, num_beams=n_beams,
            length_penalty=length_penalty, early_stopping=early_stopping, eos_token_id=5, pad_token_id=5,
        )[0, 3:].tolist()  # fmt: skip
        assert row == found[: len(row)]
        assert set(found[len(row) :]) <= {5}


def test_beams_enough_for_every_text_find_the_best() -> None:
    model = tiny(vocab_size=4)
    [found] = decoded(job(model, [[1]], 4, (0,)), Method(n_beams=64, length_penalty=0.0))
    texts = [t for n in (1, 2, 3) for t in ((*x, 0) for x in product((1, 2, 3), repeat=n - 1))]
    texts += list(product((1, 2, 3), repeat=3)) and [(*x, y) for x in product((1, 2, 3), repeat=3) for y in range(4)]

    def score(text: tuple[int, ...]) -> float:
        log_p = model(torch.tensor([[1, *text]])).log_softmax(-1)[0]
        return sum(float(log_p[i, token]) for i, token in enumerate(text))

    assert tuple(found) == max(texts, key=score)


def test_beams_past_the_context_and_with_penalties() -> None:
    model = tiny(block_size=8)
    [row] = decoded(job(model, [[1, 2, 3]], 30, no_repeat_ngram=2), Method(n_beams=3))
    text = [1, 2, 3, *row]
    pairs = list(pairwise(text))
    assert len(row) == 30
    assert len(set(pairs)) == len(pairs)
    [greedy] = decoded(job(model, [[1, 2, 3]], 30, temperature=0.0))
    (piece, *more) = list(beam_search(job(model, [[1, 2, 3]], 30), 1))
    assert [piece.token, *(p.token for p in more)] == greedy


def test_groups_of_beams() -> None:
    """Without diversity each group is a beam search of its width; with much of it no group follows another."""
    from minilm.decoding import search

    model = tiny()
    task = job(model, [[3, 4]], 5)
    alone = search._beams(task, [3, 4], 2, 1.0, False, 1, 0.0)[0].finished
    alike = search._beams(task, [3, 4], 6, 1.0, False, 3, 0.0)
    for group in alike:
        assert [t for _, t in group.finished] == [t for _, t in alone]
        assert [s for s, _ in group.finished] == pytest.approx([s for s, _ in alone], abs=1e-4)
    apart = search._beams(task, [3, 4], 3, 1.0, False, 3, 1e6)
    for column in zip(*(group.finished[0][1] for group in apart), strict=True):
        assert len(set(column)) == 3
    for group in apart:  # what a text is worth is the model's word alone
        score, tokens = group.finished[0]
        log_p = model(torch.tensor([[3, 4, *tokens]])).log_softmax(-1)[0, 1:]
        assert score * 5 == pytest.approx(sum(float(log_p[i, t]) for i, t in enumerate(tokens)), abs=1e-3)
    [best] = decoded(task, Method(n_beams=6, n_beam_groups=3))
    assert len(best) == 5


# --- contrastive search


@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (3, 0.9), (1, 0.5)])
def test_contrastive_search_equals_its_formula(k: int, alpha: float) -> None:
    model = tiny(block_size=64)
    [ours] = decoded(job(model, [[1, 2, 3]], 20, top_k=k), Method(penalty_alpha=alpha))
    context = [1, 2, 3]
    for token in ours:
        before = model.hidden(torch.tensor([context]))[0]
        p = model.used_logits(before[-1]).softmax(-1)
        scores = {}
        for v in p.topk(k).indices.tolist():
            h = model.hidden(torch.tensor([[*context, v]]))[0, -1]
            likeness = max(float(torch.cosine_similarity(h, x, dim=0)) for x in before)
            scores[v] = (1 - alpha) * float(p[v]) - alpha * likeness
        assert token == max(scores, key=lambda v: scores[v])
        context.append(token)
    assert len(set(ours)) > 5


@pytest.mark.parametrize("block_size", [1, 2, 7])
def test_contrastive_search_past_the_context(block_size: int) -> None:
    model = tiny(block_size=block_size)
    rows = decoded(job(model, [[1], [2] * 9], 25, (4,)), Method(penalty_alpha=0.6))
    assert all(len(row) == 25 or row[-1] == 4 for row in rows)


# --- two readings


def test_guidance_equals_transformers() -> None:
    model = tiny()
    reference = theirs(model)
    ids, other = torch.tensor([[3, 4, 5]]), torch.tensor([[9, 8]])
    expected = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, guidance_scale=2.5,
        pad_token_id=0, negative_prompt_ids=other, negative_prompt_attention_mask=torch.ones_like(other),
    )[0, 3:].tolist()  # fmt: skip
    [ours] = decoded(job(model, [[3, 4, 5]], 20, temperature=0.0), Method(guidance=2.5), [9, 8])
    [plain] = decoded(job(model, [[3, 4, 5]], 20, temperature=0.0))
    assert ours == expected
    assert ours != plain


def test_contrastive_decoding_equals_its_formula() -> None:
    model, amateur = tiny(), tiny(seed=5, n_layer=1, block_size=12)
    prompts, method = [[1, 2], [5]], Method(amateur=amateur, contrast_alpha=0.2, amateur_temperature=0.5)
    ours = decoded(job(model, prompts, 10, temperature=0.0), method)
    for prompt, row in zip(prompts, ours, strict=True):
        context = list(prompt)
        for token in row:
            p = model(torch.tensor([context]))[0, -1].softmax(-1)
            q = (amateur(torch.tensor([context]))[0, -1] / 0.5).softmax(-1)
            score = {v: math.log(p[v] / q[v]) for v in range(30) if p[v] >= 0.2 * p.max()}
            assert token == max(score, key=lambda v: score[v])
            context.append(token)
    sampled = job(model, prompts * 5, 60, (3,), seeds=list(range(10)))
    together = decoded(sampled, method)
    alone = [decoded(job(model, [prompts[i % 2]], 60, (3,), seeds=[i]), method)[0] for i in range(10)]
    assert together == alone


def test_guide_and_contrast_on_logits() -> None:
    a, b = torch.randn(3, 9, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    torch.testing.assert_close(guide(a, b, 1.0).softmax(-1), a.float().softmax(-1))
    torch.testing.assert_close(guide(a, b, 0.0).softmax(-1), b.float().softmax(-1))
    a[0, 2], b[0, 2] = -math.inf, -math.inf
    assert guide(a, b, 3.0)[0, 2] == -math.inf
    assert torch.equal(contrast(a, b, 1.0, 1.0).argmax(-1), a.argmax(-1))
    assert (contrast(a, b, 0.5, 1.0) > -math.inf).any(dim=-1).all()


# --- guessing ahead


@pytest.mark.parametrize("block_size", [64, 9, 1])
@pytest.mark.parametrize("kind", ["draft", "itself", "lookup"])
@pytest.mark.parametrize("n_ahead", [1, 4])
def test_greedy_is_the_same_text(kind: str, n_ahead: int, block_size: int) -> None:
    """70 tokens through a window of 9 too, where model and draft cut their contexts at other places."""
    model = tiny(block_size=block_size)
    draft = {"draft": tiny(seed=3, n_layer=1, block_size=6), "itself": model, "lookup": None}[kind]
    prompts = [[1, 2, 3, 1, 2], [4], [7] * 12]
    task = job(model, prompts, 70, (5,), temperature=0.0)
    assert decoded(task, Method(draft=draft, lookup=3 * (draft is None), n_ahead=n_ahead)) == decoded(task)


@pytest.mark.parametrize("kind", ["draft", "lookup"])
def test_drawn_texts_have_the_same_distribution(kind: str) -> None:
    """500 texts behind a prompt that repeats: 16 cells of two tokens, against the model's own probabilities."""
    model = tiny(vocab_size=4, n_layer=1)
    prompt, n, strategy = [1, 2, 3, 1, 2], 500, Strategy(temperature=1.4, top_p=0.95)
    task = Job(model, [prompt] * n, list(range(n)), strategy, 3)
    method = Method(draft=tiny(seed=4, vocab_size=4, n_layer=1)) if kind == "draft" else Method(lookup=2)
    rows = decoded(task, method)
    from minilm.decoding.strategies import filtered

    def p(context: list[int]) -> Tensor:
        return filtered(model(torch.tensor([context]))[:, -1], strategy).softmax(-1)[0].double()

    first = p(prompt)
    expected = n * torch.stack([first[a] * p([*prompt, a]) for a in range(4)]).flatten()
    observed = torch.zeros(16, dtype=torch.float64)
    for row in rows:
        observed[4 * row[0] + row[1]] += 1
    assert observed[expected == 0].sum() == 0
    cells = expected > 5
    statistic = float(((observed - expected)[cells] ** 2 / expected[cells]).sum())
    degrees = int(cells.sum()) - 1
    assert degrees > 4
    assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


def test_a_draft_that_is_right_saves_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(block_size=64)
    passes: list[int] = []
    hidden = model.hidden

    def counted(ids: Tensor, *rest: Any, **options: Any) -> Tensor:
        passes.append(ids.shape[1])
        return hidden(ids, *rest, **options)

    monkeypatch.setattr(model, "hidden", counted)
    draft = tiny(block_size=64)  # the same weights
    decoded(job(model, [[1, 2]], 24, temperature=0.0), Method(draft=draft, n_ahead=5))
    assert passes == [7, 6, 6, 6]  # six tokens a pass


def test_lookup_guesses_what_followed_last_time() -> None:
    guess = by_lookup(3)([])
    assert guess([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3], 2, lambda: 0.0) == ([8, 1], None)
    assert guess([5, 3, 9, 4, 3], 5, lambda: 0.0) == ([9, 4, 3], None)
    assert guess([1, 2], 5, lambda: 0.0) == ([], None)


# --- text in, text out


def test_methods_by_their_options() -> None:
    model, small = tiny(vocab_size=257), tiny(seed=2, vocab_size=257)
    for options in ({"n_beams": 3}, {"penalty_alpha": 0.5}, {"guidance": 1.5, "negative_prompt": "no"},
                    {"amateur": small}, {"draft": small}, {"lookup": 2}, {"strategy": "contrastive"}):  # fmt: skip
        texts: Any = generate(model, BYTES, ["ab", ""], max_new_tokens=8, seed=1, **options)
        assert [len(t) > 0 for t in texts] == [True, True], options
        pieces = list(stream_batch(model, BYTES, ["ab"], max_new_tokens=8, seed=1, **options))
        assert "".join(p.text for p in pieces) == texts[0]
    cut: Any = generate(model, BYTES, "ab", max_new_tokens=8, n_beams=2)
    assert generate(model, BYTES, "ab", max_new_tokens=8, n_beams=2, stop=[cut[3]]) == cut[: cut.index(cut[3])]


METHODS: list[dict[str, Any]] = [{"lookup": 2}, {"penalty_alpha": 0.5}, {"draft": "itself"}]
METHODS += [{"steering": Steering(bags=((3,),))}]


@pytest.mark.parametrize("method", [*METHODS, {"n_beams": 2}], ids=lambda method: next(iter(method)))
def test_no_new_tokens_are_none(method: dict[str, Any]) -> None:
    model = tiny(vocab_size=257)
    options: Any = {name: model if value == "itself" else value for name, value in method.items()}
    assert generate(model, BYTES, "ab", max_new_tokens=0, **options) == ""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: next(iter(method)))
def test_a_prompt_beyond_memory_is_said(method: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(vocab_size=257)
    options: Any = {name: model if value == "itself" else value for name, value in method.items()}
    monkeypatch.setattr("minilm.decoding.contexts.free_bytes", lambda device: 1000)
    with pytest.raises(UsageError, match=r"free: shorten it"):
        generate(model, BYTES, "ab", max_new_tokens=4, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_beams": 0}, "n_beams must be a whole number"),
        ({"n_beams": 4, "n_beam_groups": 3}, "n_beam_groups (3) must divide n_beams (4)"),
        ({"n_beams": 4, "top_p": 0.9}, "n_beams draws nothing: leave out top_p"),
        ({"n_beams": 4, "temperature": 0.7}, "leave out temperature"),
        ({"n_beams": 4, "penalty_alpha": 0.6}, "n_beams and penalty_alpha exclude each other"),
        ({"penalty_alpha": 1.5}, "penalty_alpha must lie in [0, 1]"),
        ({"n_beams": 2, "alternatives": 1}, "leave out alternatives"),
        ({"lookup": 2, "repetition_penalty": 1.1, "choices": ["a"]}, "leave out repetition_penalty, choices"),
        ({"lookup": -1}, "lookup must be a whole number"),
        ({"negative_prompt": "x"}, "negative_prompt does nothing at guidance 1"),
        ({"guidance": math.inf}, "guidance must be a number"),
        ({"contrast_alpha": 0}, "contrast_alpha must lie in (0, 1]"),
        ({"amateur_temperature": 0}, "amateur_temperature must be above 0"),
        ({"amateur_temperature": 0.5}, "amateur_temperature does nothing without amateur"),
        ({"contrast_alpha": 0.2}, "contrast_alpha does nothing without amateur"),
        ({"length_penalty": 0.6}, "length_penalty does nothing without n_beams"),
        ({"early_stopping": True}, "early_stopping does nothing without n_beams"),
        ({"n_beams": 2, "diversity": 1.0}, "diversity does nothing without n_beam_groups"),
        ({"n_ahead": 2}, "n_ahead does nothing without draft or lookup"),
        ({"draft": "small"}, "the draft model has 30 tokens, not 257"),
        ({"amateur": "small"}, "the amateur model has 30 tokens"),
        ({"n_beams": 2, "length_penalty": 1e308}, "length_penalty lies between -10 and 10"),
        ({"guidance": 1e308}, "guidance and diversity between"),
        ({"min_new_tokens": 10, "max_new_tokens": 4}, "min_new_tokens (10) is more than max_new_tokens (4)"),
    ],
)
def test_misuse(options: dict[str, Any], said: str) -> None:
    options = {name: tiny() if value == "small" else value for name, value in options.items()}
    with pytest.raises(UsageError) as error:
        generate(tiny(vocab_size=257), BYTES, "ab", **options)
    assert said in str(error.value)
