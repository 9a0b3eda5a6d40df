"""Decoding: filters and greedy against transformers, cached against uncached, batch against single."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minilm.config import GPTConfig
from minilm.decoding import contexts, loop, parallel
from minilm.decoding.engine import encode_prompt, generate, generate_ids, row_seeds, stream, stream_batch
from minilm.decoding.loop import Job, decode
from minilm.decoding.penalties import History
from minilm.decoding.strategies import STEPS, Strategy, choose, draw, filtered
from minilm.errors import MinilmError, UsageError
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer

INF = math.inf
BYTES = get_tokenizer("bytes")  # 257 tokens, end-of-text last


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(**changes: Any) -> GPT:
    """A random model whose distributions are far from flat, so that a wrong position or mask changes tokens."""
    torch.manual_seed(0)
    values: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 50}
    values |= {"init_std": 0.3, "tie_embeddings": False}  # tied, a random model says one word over and over
    model = GPT(GPTConfig(**values | changes))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.3)
    return model.eval()


class Scripted(GPT):
    """Says a fixed text after whatever it reads: logits depend on the last token's place in it."""

    def __init__(self, text: list[int], vocab_size: int = 257) -> None:
        super().__init__(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=vocab_size))
        self.text, self.calls = text, 0

    def used_logits(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), self.config.vocab_size)
        logits[:, self.text[self.calls]] = 50.0
        self.calls += 1
        return logits


# --- strategies: against transformers


FILTERS = [
    ("temperature", 0.7),
    ("temperature", 3.0),
    ("top_k", 5),
    ("top_k", 1),
    ("top_p", 0.9),
    ("top_p", 0.2),
    ("top_p", 1e-9),
    ("top_p", 0.999),
]


@pytest.mark.parametrize(("name", "value"), FILTERS)
@pytest.mark.parametrize("vocab_size", [37, 20_000])
def test_steps_equal_transformers(name: str, value: float, vocab_size: int) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: dict[str, Any] = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
    }
    spread = torch.tensor([[0.1], [1], [2], [4], [9], [30]])
    # float64: the two add up in opposite directions, and a token on the border of top-p must not hang on a rounding.
    logits = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * spread
    ours = STEPS[name].apply(logits, value, History([], 0))
    theirs = warpers[name](value)(None, logits)
    assert torch.equal(ours == -INF, theirs == -INF)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


def test_order_equals_transformers() -> None:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 200, generator=torch.Generator().manual_seed(2)) * 3
    chain: Any = LogitsProcessorList([TemperatureLogitsWarper(1.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)])
    theirs = chain(torch.zeros(50, 0, dtype=torch.long), logits)
    ours = filtered(logits, Strategy(temperature=1.7, top_k=20, top_p=0.8))
    assert torch.equal(ours == -INF, theirs == -INF)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


def test_steps_are_the_fields_of_a_strategy() -> None:
    neutral = Strategy()
    assert set(STEPS) | {"mirostat", "mirostat_rate"} == set(Strategy.__dataclass_fields__)
    assert all(getattr(neutral, name) == step.neutral for name, step in STEPS.items())


# --- strategies: properties


EXTREME = st.sampled_from([-INF, -1e30, 1e30, 0.0, 1.0, 1.0, -3.0, 3.4e38, -3.4e38, 1e-45]) | st.floats(
    -50, 50, width=32
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(EXTREME, min_size=1, max_size=12).filter(lambda row: max(row) > -INF),
    st.sampled_from([1e-320, 1e-30, 0.3, 1.0, 2.0, 1e30, 1e308]),
    st.integers(0, 20),
    st.sampled_from([5e-324, 1e-9, 0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 1 - 2**-53]),
)
def test_filters_keep_a_token_and_draw_a_possible_one(
    row: list[float], temperature: float, k: int, p: float, uniform: float
) -> None:
    logits = torch.tensor([row])
    kept = filtered(logits, Strategy(temperature, k, p))
    assert kept[0, logits[0].argmax()] > -INF
    assert abs(kept.softmax(-1).sum().item() - 1) < 1e-5
    assert not (kept[0] > -INF)[logits[0] == -INF].any()
    if k and k < len(row):
        tempered = filtered(logits, Strategy(temperature))[0]  # may make ties, by rounding
        assert not (kept[0] > -INF)[tempered < tempered.sort(descending=True).values[k - 1]].any()
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    token = int(choose(logits, Strategy(temperature, k, p), uniforms))
    assert kept[0, token] > -INF
    assert logits[0, int(choose(logits, Strategy(temperature=0.0)))] == max(row)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.floats(0.01, 0.99))
def test_top_p_is_the_smallest_set_with_its_ties(row: list[int], p: float) -> None:
    logits = torch.tensor([row], dtype=torch.float32)
    kept = filtered(logits, Strategy(top_p=p))[0] > -INF
    probabilities = torch.tensor(row, dtype=torch.float64).softmax(0)
    for i in range(len(row)):
        mass_above = probabilities[torch.tensor(row) > row[i]].sum().item()
        n_ties = row.count(row[i])
        if abs(mass_above - p) > 1e-5:
            assert bool(kept[i]) == (mass_above < p), (i, mass_above, n_ties)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-INF, 0.0, 1.0, 2.5]), min_size=1, max_size=9).filter(lambda row: max(row) > -INF),
       st.floats(0, 1, exclude_max=True))  # fmt: skip
def test_draw_inverts_the_cumulative_distribution(row: list[float], uniform: float) -> None:
    weights = [math.exp(x) for x in row]
    bounds = [sum(weights[: i + 1]) / sum(weights) for i in range(len(row))]
    token = int(draw(torch.tensor([row]), torch.tensor([uniform], dtype=torch.float64)))
    assert row[token] > -INF
    assert (bounds[token - 1] if token else 0.0) - 1e-6 <= uniform <= bounds[token] + 1e-6


def test_draw_never_takes_an_impossible_token_where_sums_round() -> None:
    """A cumulative sum that rises over impossible tokens, as a GPU's may, is put right."""
    logits = torch.tensor([[-INF, 0.0, -INF]])
    assert draw(logits, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [1]
    assert draw(logits, torch.tensor([1.0], dtype=torch.float64)).tolist() == [1]  # past every sum
    assert draw(logits, torch.tensor([-1e-17], dtype=torch.float64)).tolist() == [1]  # before every sum


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": INF}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Strategy(**options)
    with pytest.raises(UsageError, match=word):
        generate_ids(tiny(), torch.zeros(1, 1, dtype=torch.long), 1, **options)


@pytest.mark.parametrize("row", [[math.nan, 1.0], [INF, 0.0], [-INF, -INF]])
def test_logits_that_are_no_numbers(row: list[float]) -> None:
    uniforms = torch.zeros(2, dtype=torch.float64)
    for strategy in (Strategy(), Strategy(temperature=0.0)):
        with pytest.raises(MinilmError, match="not numbers"):
            choose(torch.tensor([[0.0, 1.0], row]), strategy, uniforms)


# --- the model's distribution is what is sampled


def test_chi_square_of_pairs_of_tokens() -> None:
    """4,000 rows of two tokens each: 36 cells whose probabilities follow from the uncached logits."""
    model = tiny(vocab_size=7, vocab_used=6, block_size=4)
    strategy = Strategy(temperature=1.3)
    prompt = torch.tensor([[1, 2]])
    first = (model(prompt)[0, -1, :6] / 1.3).softmax(-1).double()
    follow = torch.stack([(model(torch.tensor([[1, 2, a]]))[0, -1, :6] / 1.3).softmax(-1) for a in range(6)]).double()
    expected = 4000 * first[:, None] * follow
    rows = generate_ids(model, prompt.expand(4000, 2), 2, temperature=strategy.temperature, seed=11)[:, 2:]
    observed = torch.zeros(6, 6, dtype=torch.float64)
    observed.index_put_((rows[:, 0], rows[:, 1]), torch.ones(4000, dtype=torch.float64), accumulate=True)
    cells = expected > 5
    rest = torch.tensor([(4000 - expected[cells].sum()).item()])
    statistic = ((observed - expected)[cells] ** 2 / expected[cells]).sum()
    statistic += (4000 - observed[cells].sum() - rest).square().item() / max(rest.item(), 1)
    degrees = int(cells.sum())
    # Wilson-Hilferty: the 99.9 % point of chi-square.
    limit = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    assert degrees > 10
    assert statistic < limit, (statistic, limit)


def test_unused_rows_are_never_drawn() -> None:
    model = tiny(vocab_size=50, vocab_used=3)
    ids = generate_ids(model, torch.zeros(64, 1, dtype=torch.long), 10, temperature=5.0, seed=1)
    assert set(ids.unique().tolist()) == {0, 1, 2}


def test_top_k_above_the_vocabulary_is_the_vocabulary() -> None:
    model, prompt = tiny(), torch.zeros(1, 1, dtype=torch.long)
    assert torch.equal(generate_ids(model, prompt, 12, top_k=10**9, seed=4), generate_ids(model, prompt, 12, seed=4))


# --- equalities


def test_greedy_equals_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = tiny(block_size=64, vocab_size=120, n_layer=3)
    c = model.config
    shape: dict[str, Any] = {"n_positions": 64, "n_embd": c.n_embd, "n_layer": c.n_layer, "n_head": c.n_head}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=120, **shape, eos_token_id=None, tie_word_embeddings=False)).eval()
    for key, value in model.state_dict().items():
        turned = value.t() if key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else value
        theirs.get_parameter(key if key.startswith("lm_head") else f"transformer.{key}").data = turned
    prompts = torch.randint(0, 120, (3, 9), generator=torch.Generator().manual_seed(3))
    reference = theirs.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=55, do_sample=False, pad_token_id=0
    )
    assert torch.equal(generate_ids(model, prompts, 55, temperature=0.0), reference)
    assert len(reference[:, 9:].unique()) > 10  # not one token over and over


VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "sinusoidal": {"position": "sinusoidal"},
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi"},
    "none": {"position": "none"},
    "gqa": {"n_kv_head": 2, "position": "rope", "qk_norm": True},
    "mqa window": {"n_kv_head": 1, "window": 5},
    "window alibi": {"window": 6, "position": "alibi"},
    "shared factorised": {"n_layer": 4, "n_unique_layer": 2, "n_factor": 8},
    "skips, parallel, tied": {"skip_attn": (0,), "parallel_residual": True, "tie_embeddings": True},
    "block of one": {"block_size": 1},
    "block of three": {"block_size": 3, "position": "rope"},
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_equals_uncached_and_batch_equals_single(variant: str, temperature: float) -> None:
    """50 tokens through a context of 16: every row rolls over, each at another time, and some rows end early."""
    model = tiny(**VARIANTS[variant])
    prompts = [[3], [5, 7, 11, 2], list(range(14)), list(range(16)), list(range(30, 50)), [3]]
    seeds = [9, 8, 7, 6, 5, 4]
    eot = 12

    def run(rows: list[int], use_cache: bool) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in rows]
        chosen, their_seeds = [prompts[i] for i in rows], [seeds[i] for i in rows]
        job = Job(model, chosen, their_seeds, Strategy(temperature, top_k=30), 50, (eot,), use_cache=use_cache)
        for piece in decode(job):
            out[piece.row].append(piece.token)
        return out

    together = run(list(range(6)), use_cache=True)
    assert together == run(list(range(6)), use_cache=False)
    assert together == [run([i], use_cache=True)[0] for i in range(6)]
    assert all(len(row) == 50 or row[-1] == eot for row in together)


def test_window_rule_of_a_row() -> None:
    """Without a cache and without the engine: the context grows to block_size, then to half of it and one more."""
    model = tiny(block_size=6)
    ids = generate_ids(model, torch.tensor([[1, 2]]), 20, temperature=0.0)[0].tolist()
    context = [1, 2]
    for token in ids[2:]:
        assert int(model(torch.tensor([context]))[0, -1].argmax()) == token
        context.append(token)
        if len(context) > 6:
            context = context[-3:]


def test_seeds() -> None:
    model = tiny()
    prompts = torch.tensor([[1, 2]]).expand(4, 2)
    a = generate_ids(model, prompts, 10, seed=5)
    assert torch.equal(a, generate_ids(model, prompts, 10, seed=5))
    assert len({tuple(row) for row in a.tolist()}) == 4
    for i, seed in enumerate(row_seeds(5, 4)):
        assert torch.equal(a[i : i + 1], generate_ids(model, prompts[:1], 10, seed=seed))
    assert row_seeds(5, 9)[:4] == row_seeds(5, 4)
    assert row_seeds(5, 4)[0] == 5
    assert not torch.equal(a, generate_ids(model, prompts, 10, seed=6))
    assert not torch.equal(generate_ids(model, prompts, 10), generate_ids(model, prompts, 10))
    with pytest.raises(UsageError, match="2 seeds for 4 prompts"):
        generate_ids(model, prompts, 1, seed=[1, 2])
    with pytest.raises(UsageError, match="seed must be 0 or more"):
        generate_ids(model, prompts, 1, seed=-1)


@pytest.mark.parametrize("room", [1, 2, 4])
@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_that_take_the_place_of_others(room: int, use_cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 1 to 40 tokens join as rows end, longer and shorter than those that are decoded, and roll over."""
    model = tiny()
    monkeypatch.setattr(loop, "capacity", lambda *_: room)
    prompts = [[1 + (7 * i + j) % 49 for j in range(n)] for i, n in enumerate((3, 1, 16, 40, 2, 9, 1, 1, 15, 5, 30))]
    settings: dict[str, Any] = {"no_repeat_ngram": 3, "repetition_penalty": 1.1, "frequency_penalty": 0.1}

    def run(rows: list[int]) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in rows]
        job = Job(model, [prompts[i] for i in rows], rows, Strategy(**settings), 25, (3, 9, 12), use_cache=use_cache)
        for piece in decode(job):
            out[piece.row].append(piece.token)
        return out

    together = run(list(range(11)))
    assert together == [run([i])[0] for i in range(11)]
    assert len({len(row) for row in together}) > 4


def test_fresh_memory_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short row whose neighbour is followed by a longer one: what stands left of it must count for nothing."""
    model, empty = tiny(), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(math.nan))
    monkeypatch.setattr(loop, "capacity", lambda *_: 2)
    prompts = [[1], [2], list(range(15)), list(range(9))]
    out: list[list[int]] = [[] for _ in prompts]
    for piece in decode(Job(model, prompts, [1, 2, 3, 4], Strategy(), 12, tuple(range(0, 50, 4)))):
        out[piece.row].append(piece.token)
    assert all(out)


def test_capacity() -> None:
    model = tiny(block_size=64)
    per_row = 15 * 2 * 2 * 32 * 4 + 32 * 50
    assert [contexts.capacity(model, 15, n) for n in (1, 2 * per_row, 2 * per_row - 1)] == [1, 2, 1]


def test_rows_on_several_threads_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    prompts = [[1 + i % 40] * (1 + i % 5) for i in range(9)]
    seeds = list(range(9))

    def run() -> list[list[int]]:
        out: list[list[int]] = [[] for _ in prompts]
        for piece in decode(Job(model, prompts, seeds, Strategy(), 30, (12,))):
            out[piece.row].append(piece.token)
        return out

    alone = run()
    assert parallel.shares(model, 200) == 1
    monkeypatch.setattr(parallel, "ROWS_PER_THREAD", 3)
    torch.set_num_threads(3)  # the fixture puts one thread back
    assert parallel.shares(model, 9) == 3
    assert parallel.shares(model.train(), 9) == 1
    model.eval()
    assert run() == alone
    assert torch.get_num_threads() == 3


def test_a_failing_thread_ends_all_and_a_closed_stream_stops_them() -> None:
    def work(rows: Sequence[int]) -> Iterator[int]:
        yield from rows
        if 0 in rows:
            raise MinilmError("broken")
        while True:
            yield -1

    before = threading.active_count()
    with pytest.raises(MinilmError, match="broken"):
        list(parallel.spread(work, 4, 2))
    assert threading.active_count() == before
    endless = parallel.spread(lambda rows: itertools.cycle(rows), 4, 2)
    assert {next(endless) for _ in range(50)} <= {0, 1, 2, 3}
    endless.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert sorted(parallel.spread(iter, 7, 3)) == list(range(7))


def test_leaves_the_world_as_it_was() -> None:
    """Dropout is off inside; modes, torch's generator and the weights are as before; ids can be trained on."""
    model = tiny(embd_dropout=0.5, attn_dropout=0.5, resid_dropout=0.5)
    prompt = torch.tensor([[1, 2, 3]])
    quiet = generate_ids(model, prompt, 8, temperature=0.0)
    model.train()
    model.h[0].eval()
    modes = [m.training for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    ids = generate_ids(model, prompt, 8, temperature=0.0)
    generate_ids(model, prompt, 8, seed=1)
    assert torch.equal(ids, quiet)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    model.loss(ids[:, :-1], ids[:, 1:]).backward()


def test_each_token_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill reads the prompt, every pass one token, the last token is not read; the head sees one position."""
    model = tiny(block_size=32)
    read: list[torch.Size] = []
    headed: list[torch.Size] = []
    hidden, head = model.hidden, model.used_logits

    def counted_hidden(ids: Tensor, *rest: Any, **options: Any) -> Tensor:
        read.append(ids.shape)
        return hidden(ids, *rest, **options)

    def counted_head(x: Tensor) -> Tensor:
        headed.append(x.shape)
        return head(x)

    monkeypatch.setattr(model, "hidden", counted_hidden)
    monkeypatch.setattr(model, "used_logits", counted_head)
    generate_ids(model, torch.zeros(2, 7, dtype=torch.long), 5, seed=1)
    assert read == [(2, 7), (2, 1), (2, 1), (2, 1), (2, 1)]
    assert headed == [(2, 32)] * 5


# --- ids in, ids out


def test_end_of_text_ends_a_row() -> None:
    model = tiny(vocab_size=6, block_size=64)
    ids = generate_ids(model, torch.tensor([[1], [2], [3], [4]]), 60, seed=2, eot=0)
    for row in ids.tolist():
        ends = [i for i, token in enumerate(row) if token == 0]
        assert not ends or set(row[ends[0] :]) == {0}
    n = max((row.index(0) if 0 in row else 60) for row in ids.tolist())
    assert ids.shape == (4, n + 1)  # no column that nobody needed
    assert generate_ids(model, torch.tensor([[1]]), 60, seed=2).shape == (1, 61)


def test_no_new_tokens_give_the_prompt() -> None:
    ids = torch.tensor([[1, 2]])
    assert torch.equal(generate_ids(tiny(), ids, 0), ids)
    assert generate(tiny(vocab_size=257), BYTES, ["ab", "c"], max_new_tokens=0) == ["", ""]


@pytest.mark.parametrize(
    ("ids", "word"),
    [
        (torch.tensor([1, 2]), r"\(B, T\)"),
        (torch.zeros(1, 0, dtype=torch.long), "end-of-text"),
        (torch.zeros(1, 2), "integers"),
        (torch.tensor([[1, 50]]), "token 50 is outside"),
        (torch.tensor([[-1, 2]]), "token -1 is outside"),
    ],
)
def test_bad_ids(ids: Tensor, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        generate_ids(tiny(), ids, 1)


@pytest.mark.parametrize("n", [-1, 2.5, "many"])
def test_bad_counts(n: Any) -> None:
    with pytest.raises(UsageError, match="max_new_tokens"):
        generate_ids(tiny(), torch.tensor([[1]]), n)
    with pytest.raises(UsageError, match="max_new_tokens"):
        stream(tiny(vocab_size=257), BYTES, max_new_tokens=n)


# --- text in, text out


def test_text_is_the_new_text_alone_and_stops_before_end_of_text() -> None:
    said = [*"é Ω!".encode(), 256, *b"never"]
    assert generate(Scripted(said), BYTES, "Say ") == "é Ω!"
    assert list(stream(Scripted(said), BYTES, "Say ")) == ["é", " ", "Ω", "!"]
    assert generate(Scripted(said), BYTES, "Say ", max_new_tokens=4, temperature=0.0) == "é �"
    unstopped = generate(Scripted(said), BYTES, "", max_new_tokens=len(said), stop_at_eot=False)
    assert unstopped == "é Ω!<|endoftext|>never"
    assert generate(Scripted(said), BYTES, ["a", "bcd"]) == ["é Ω!", "é Ω!"]
    assert generate(Scripted(said), BYTES, []) == []


def test_rows_of_a_batch_end_once() -> None:
    model = tiny(vocab_size=257, block_size=32)
    prompts = ["", "a", "bcd"]
    pieces = list(stream_batch(model, BYTES, prompts, max_new_tokens=9, seed=3))
    assert sorted(p.row for p in pieces if p.last) == [0, 1, 2]
    texts = ["".join(p.text for p in pieces if p.row == row) for row in range(3)]
    assert texts == generate(model, BYTES, prompts, max_new_tokens=9, seed=3)
    for i, seed in enumerate(row_seeds(3, 3)):
        alone = generate(model, BYTES, prompts[i], max_new_tokens=9, seed=seed)
        assert alone == texts[i]


def test_empty_prompt_starts_from_end_of_text() -> None:
    model = tiny(vocab_size=257)
    ids = generate_ids(model, torch.tensor([[256]]), 8, seed=2, eot=256)[0, 1:].tolist()
    assert generate(model, BYTES, max_new_tokens=8, seed=2) == BYTES.decode([i for i in ids if i < 256])


def test_a_prompt_that_begins_a_document() -> None:
    model = tiny(vocab_size=257)
    for prompt in ("ab", ""):
        ids = generate_ids(model, torch.tensor([[256, *prompt.encode()]]), 8, seed=2, eot=256)[0, 1 + len(prompt) :]
        text: str = generate(model, BYTES, prompt, max_new_tokens=8, seed=2, begin_document=True)
        assert text == BYTES.decode([i for i in ids.tolist() if i < 256])
    within, begun = (generate(model, BYTES, "ab", max_new_tokens=8, seed=2, begin_document=b) for b in (False, True))
    assert within != begun


def test_tokens_that_the_tokenizer_lacks_are_never_drawn() -> None:
    model: Any = tiny(vocab_size=400)
    text = generate(model, BYTES, [""] * 20, max_new_tokens=20, temperature=9.0, seed=1)
    assert len(text) == 20  # a larger id would have been an error in `push`


def test_tokenizer_larger_than_the_model() -> None:
    with pytest.raises(UsageError, match="257 tokens and the model only 50"):
        generate(tiny(), BYTES, "a")
    with pytest.raises(UsageError, match="257 tokens and the model only 40"):
        generate(tiny(vocab_size=300, vocab_used=40), BYTES, "a")


def test_prompt_longer_than_the_context_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny(vocab_size=257)
    with caplog.at_level(logging.WARNING, "minilm"):
        long = generate(model, BYTES, "x" * 40 + "the last sixteen", max_new_tokens=40, seed=1)
    assert "the prompt has 56 tokens and the model's context 16: only the last 16 are read" in caplog.text
    caplog.clear()
    assert long == generate(model, BYTES, "the last sixteen", max_new_tokens=40, seed=1)
    assert not caplog.text


def test_a_million_tokens(caplog: pytest.LogCaptureFixture) -> None:
    text = "ab" * 500_000
    model: Any = tiny(vocab_size=257, block_size=16)
    found = generate(model, BYTES, text, max_new_tokens=3, seed=1)
    assert found == generate(model, BYTES, text[-16:], max_new_tokens=3, seed=1)
    assert "1000000 tokens and the model's context 16" in caplog.text
    long: Any = tiny(vocab_size=257, block_size=1_000_000, position="rope")
    with pytest.raises(UsageError, match=r"a prompt of 1,000,000 tokens needs about 1,0\d\d\.\d GB and .* are free"):
        generate(long, BYTES, text, max_new_tokens=3)


def test_special_tokens_that_are_not_there() -> None:
    model: Any = tiny(vocab_size=257)
    with pytest.raises(UsageError, match="'<|mask|>' is 8 tokens of this tokenizer".replace("|", r"\|")):
        generate(model, BYTES, "a", logit_bias={"<|mask|>": 1.0})
    with pytest.raises(UsageError, match="outside the model's vocabulary"):
        generate(model, BYTES, "a", stop_tokens=[50256])


def test_control_codes_are_tokens_where_a_document_begins() -> None:
    tokenizer = BYTES.with_tokens(["<|sports|>"])
    code = tokenizer.encode("<|sports|>", special=True)
    assert len(code) == 1
    assert encode_prompt("<|sports|>a", tokenizer, begin_document=True) == [tokenizer.eot, *code, ord("a")]
    assert len(encode_prompt("<|sports|>a", tokenizer)) == 11
