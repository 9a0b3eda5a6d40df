"""Filters and penalties against transformers on the same logits, brute force, and their own definitions."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minilm.config import GPTConfig
from minilm.decoding import penalties
from minilm.decoding import strategies as s
from minilm.decoding.engine import Methods, Options, Until, generate, generate_ids, stream_batch
from minilm.decoding.engine import settings as sorted_settings
from minilm.decoding.methods import Method
from minilm.decoding.penalties import History, Trie
from minilm.decoding.presets import PRESETS
from minilm.decoding.strategies import BEFORE, CUTS, STEPS, Strategy, choose, filtered
from minilm.decoding.texts import GrowingText, cut_at_stop
from minilm.errors import UsageError
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer

INF = math.inf
BYTES = get_tokenizer("bytes")
EOT = 256


def logits_of(rows: int, V: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    spread = torch.logspace(-1, 1.5, rows, dtype=dtype)[:, None]
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=dtype) * spread


def texts_of(rows: int, n: int, V: int, seed: int = 2) -> list[list[int]]:
    ids = torch.randint(V, (rows, n), generator=torch.Generator().manual_seed(seed))
    return [row.tolist() for row in ids]


def scripted(said: str | list[int], vocab_size: int = 257) -> GPT:
    """Says a fixed text after whatever it reads."""

    class Scripted(GPT):
        calls = 0

        def used_logits(self, x: Tensor) -> Tensor:
            logits = torch.zeros(len(x), self.config.vocab_size)
            logits[:, text[min(self.calls, len(text) - 1)]] = 50.0
            self.calls += 1
            return logits

    text = [*said.encode(), EOT] if isinstance(said, str) else said
    return Scripted(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=64, vocab_size=vocab_size)).eval()


def random_model(**changes: Any) -> GPT:
    torch.manual_seed(0)
    values: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 64, "vocab_size": 40}
    return GPT(GPTConfig(**{**values, "init_std": 0.4, "tie_embeddings": False, **changes})).eval()


# --- against transformers


FILTERS = [
    ("min_p", 0.1, "MinPLogitsWarper"),
    ("min_p", 1.0, "MinPLogitsWarper"),
    ("typical_p", 0.9, "TypicalLogitsWarper"),
    ("typical_p", 0.2, "TypicalLogitsWarper"),
    ("epsilon", 3e-4, "EpsilonLogitsWarper"),
    ("epsilon", 0.4, "EpsilonLogitsWarper"),
    ("eta", 2e-3, "EtaLogitsWarper"),
    ("eta", 0.3, "EtaLogitsWarper"),
]


@pytest.mark.parametrize(("name", "value", "theirs"), FILTERS)
@pytest.mark.parametrize("V", [37, 3000])
def test_filters_equal_transformers(name: str, value: float, theirs: str, V: int) -> None:
    import transformers

    logits = logits_of(24, V)
    warper: Any = getattr(transformers, theirs)(value)
    if theirs == "EtaLogitsWarper":
        warper.epsilon = warper.epsilon.double()
    ours, expected = STEPS[name].apply(logits, value, History([], 0)), warper(None, logits)
    assert torch.equal(ours == -INF, expected == -INF)
    torch.testing.assert_close(ours, expected)
    assert 0 < int((ours == -INF).sum()) < ours.numel()


def test_penalties_equal_transformers() -> None:
    from transformers import (
        LogitsProcessorList,
        MinNewTokensLengthLogitsProcessor,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
    )

    V, ends = 12, (3, 5)
    logits, prompts, new = logits_of(20, V), texts_of(20, 9, V), texts_of(20, 6, V, seed=3)
    strategy = Strategy(
        repetition_penalty=1.3, no_repeat_ngram=2, min_new_tokens=7, logit_bias={4: 1.5, 7: -2.0, 2: -INF}
    )
    history = strategy.history(prompts, V, ends=ends)
    for column in zip(*new, strict=True):
        history.add(column)
    ids = torch.tensor([p + n for p, n in zip(prompts, new, strict=True)])
    bias: Any = [[[4], 1.5], [[7], -2.0], [[2], -INF]]
    chain: Any = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor(bias),
            RepetitionPenaltyLogitsProcessor(1.3),
            NoRepeatNGramLogitsProcessor(2),
            MinNewTokensLengthLogitsProcessor(9, 7, list(ends), device="cpu"),
        ]
    )
    expected = chain(ids, logits.clone())
    ours = logits
    for name, step in BEFORE.items():
        if getattr(strategy, name) != step.neutral:
            ours = step.apply(ours, getattr(strategy, name), history)
    torch.testing.assert_close(ours, expected)
    banned = (expected == -INF).sum(dim=-1)
    assert banned.min() >= 3
    assert banned.max() > 3  # n-grams were met too
    history.add([0] * 20)
    assert not any(history.unripe(7))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=14), st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4)
)
def test_history_equals_counting_anew(prompt: list[int], new: list[int], n: int) -> None:
    history = History([prompt, [0]], 4, counts=True, seen=True, ngram=n)
    for token in new:
        history.add([token, token])
    history.keep([0], History([[1, 2]], 4, counts=True, seen=True, ngram=n))
    text = prompt + new
    assert history.counts is not None
    assert history.seen is not None
    assert history.counts.tolist() == [[new.count(v) for v in range(4)], [0] * 4]
    assert history.seen.tolist() == [[v in text for v in range(4)], [False, True, True, False]]
    tail = text[len(text) - n + 1 :]
    followers = {text[i + n - 1] for i in range(len(text) - n + 1) if text[i : i + n - 1] == tail}
    assert set(history.repeating()[0]) == (followers if len(text) >= n - 1 else set())
    assert history.n_new == [len(new), 0]


def test_presence_and_frequency() -> None:
    counts = torch.tensor([[0, 1, 3]])
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    assert penalties.presence_penalty(logits, 0.5, counts).tolist() == [[1.0, 1.5, -1.5]]
    assert penalties.frequency_penalty(logits, 0.5, counts).tolist() == [[1.0, 1.5, -2.5]]
    strategy = Strategy(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25)
    history = strategy.history([[2, 2, 2]], 3)
    for token in (1, 2, 2, 2):
        history.add([token])
    assert int(choose(torch.tensor([[1.5, 2.2, 2.7]]), strategy, history=history)) == 0  # 1.5, 1.45, 1.45
    assert int(choose(torch.tensor([[1.5, 2.3, 2.7]]), strategy, history=history)) == 1


def test_a_step_that_reads_history_needs_it() -> None:
    with pytest.raises(ValueError, match="history"):
        filtered(torch.zeros(1, 3), Strategy(repetition_penalty=2.0))


# --- every strategy leaves something


ANY = st.sampled_from([-INF, -1e30, 1e30, 0.0, 1.0, 3.4e38, -3.4e38, 1e-45]) | st.floats(-50, 50, width=32)
ROW = st.lists(ANY, min_size=1, max_size=10).filter(lambda row: max(row) > -INF)
SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([1e-30, 0.5, 1.0, 1e30]),
        "top_k": st.sampled_from([0, 1, 3, 99]),
        "top_p": st.sampled_from([1e-9, 0.5, 1.0]),
        "min_p": st.sampled_from([0.0, 0.2, 1.0]),
        "typical_p": st.sampled_from([1e-9, 0.3, 1.0]),
        "epsilon": st.sampled_from([0.0, 1e-3, 1.0]),
        "eta": st.sampled_from([0.0, 1e-3, 1.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1e9]),
        "presence_penalty": st.sampled_from([-3.0, 0.0, 1e30]),
        "frequency_penalty": st.sampled_from([-1.0, 0.0, 2.0]),
        "no_repeat_ngram": st.sampled_from([0, 1, 2]),
        "min_new_tokens": st.sampled_from([0, 9]),
        "logit_bias": st.sampled_from([{}, {0: -INF}, {0: 5.0, 1: -INF}]),
    }
)


@settings(max_examples=200, deadline=None)
@given(ROW, SETTINGS, st.sampled_from([0.0, 0.5, 1 - 2**-53]))
def test_something_is_left_and_it_is_drawn(row: list[float], values: dict[str, Any], uniform: float) -> None:
    V = len(row)
    values["logit_bias"] = {t: v for t, v in values["logit_bias"].items() if t < V}
    strategy = Strategy(**values)
    history = strategy.history([[0, V - 1]], V, ends=(0,))
    history.add([V - 1])
    kept = filtered(torch.tensor([row]), strategy, history)
    assert bool((kept > -INF).any())
    assert not bool(kept.isnan().any())
    assert abs(float(kept.softmax(-1).sum()) - 1) < 1e-5
    assert not (kept[0] > -INF)[torch.tensor(row) == -INF].any()
    token = int(choose(torch.tensor([row]), strategy, torch.tensor([uniform], dtype=torch.float64), history))
    assert kept[0, token] > -INF


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12, unique=True), st.floats(0.05, 0.95))
def test_typical_against_its_definition(row: list[float], mass: float) -> None:
    p = torch.tensor(row, dtype=torch.float64).softmax(0)
    entropy = float(-(p * p.log()).sum())
    order = sorted(range(len(row)), key=lambda i: abs(-math.log(p[i]) - entropy))
    expected: set[int] = set()
    for i in order:
        expected.add(i)
        if sum(float(p[j]) for j in expected) >= mass:
            break
    kept = s.typical_p(torch.tensor([row], dtype=torch.float64), mass)[0] > -INF
    distances = [abs(-math.log(p[i]) - entropy) for i in order]
    if min(b - a for a, b in itertools.pairwise(distances)) > 1e-9:
        assert set(kept.nonzero()[:, 0].tolist()) == expected


# --- mirostat


def test_mirostat_cuts_by_surprise_and_follows_what_was_drawn() -> None:
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    assert (s.mirostat(p.log(), torch.tensor([2.0])) > -INF).tolist() == [[True, True, False, False]]
    assert (s.mirostat(p.log(), torch.tensor([-9.0])) > -INF).tolist() == [[True, False, False, False]]
    strategy = Strategy(mirostat=1.0, mirostat_rate=0.5)
    history = strategy.history([[0]], 4)
    assert history.mu.tolist() == [2.0]
    assert int(choose(p.log(), strategy, torch.tensor([0.99], dtype=torch.float64), history)) == 1
    assert history.mu.tolist() == pytest.approx([2.0 - 0.5 * (2.0 - 1.0)])


@pytest.mark.parametrize("target", [3.5, 4.5, 6.0])
def test_mirostat_converges_to_its_target(target: float) -> None:
    """64 rows of 400 tokens of Zipf's law over 1,000 (7.5 bits, 2.9 the first): surprise of the last 300."""
    logits = -torch.arange(1, 1001).float().log().expand(64, -1)
    strategy = Strategy(mirostat=target)
    history = strategy.history([[0]] * 64, 1000)
    random = torch.Generator().manual_seed(5)
    surprises = []
    for _ in range(400):
        uniforms = torch.rand(64, dtype=torch.float64, generator=random)
        tokens = choose(logits, strategy, uniforms, history)
        surprises.append(-logits.log_softmax(-1).gather(-1, tokens[:, None]).mean() / math.log(2))
    assert float(torch.stack(surprises[100:]).mean()) == pytest.approx(target, rel=0.03)


# --- stop strings


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab", max_size=14),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), max_size=14),
)
def test_stop_strings_do_not_depend_on_where_tokens_are_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """Against reading character by character; what is shown early is never taken back."""
    expected, ended = text, False
    for end in range(1, len(text) + 1):
        if hits := [stop for stop in stops if text[:end].endswith(stop)]:
            expected, ended = text[: end - max(map(len, hits))], True
            break
    assert cut_at_stop(text, stops) == (expected, ended)

    class Pieces:
        def __init__(self) -> None:
            self.pieces = []
            rest = text
            for n in cuts:
                self.pieces.append(rest[:n])
                rest = rest[n:]
            self.pieces.append(rest)

        def push(self, token: int) -> str:
            return self.pieces[token]

        def flush(self) -> str:
            return ""

    decoder: Any = Pieces()
    growing, shown, stopped = GrowingText(decoder, stops, ()), "", False
    for i in range(len(decoder.pieces)):
        piece, stopped = growing.push(i, i == len(decoder.pieces) - 1)
        shown += piece
        if stopped:
            break
    assert (shown, stopped) == (expected, ended)


def test_stop_strings_in_a_text() -> None:
    assert generate(scripted("One. Two. Three."), BYTES, stop=[". T"]) == "One"
    assert generate(scripted("One. Two"), BYTES, "say. T", stop=["T"]) == "One. "  # the prompt's do not count
    pieces = list(stream_batch(scripted("ab\n\ncd"), BYTES, ["x"], stop=["\n\n", "q"]))
    assert [p.text for p in pieces] == ["a", "b", "", ""]
    assert [p.last for p in pieces] == [False, False, False, True]
    assert generate(scripted("ab\n"), BYTES, stop=["\n\n"]) == "ab\n"  # held back, then there was no second one
    assert generate(scripted("ab\nc"), BYTES, stop=["\n\n"], max_new_tokens=3) == "ab\n"


def test_stop_tokens_and_least_length() -> None:
    assert generate(scripted("abcd"), BYTES, stop_tokens=[ord("c")]) == "ab"
    model = random_model()
    free = generate_ids(model, torch.tensor([[1]] * 30), 12, seed=1, stop_tokens=[2, 3, 4], eot=5)[:, 1:]
    held = generate_ids(model, torch.tensor([[1]] * 30), 12, seed=1, stop_tokens=[2, 3, 4], eot=5, min_new_tokens=6)
    ends = torch.tensor([2, 3, 4, 5])
    assert torch.isin(free[:, :6], ends).any()
    assert not torch.isin(held[:, 1:7], ends).any()
    assert torch.isin(held[:, 7:], ends).any()
    for row in free.tolist():
        at = next((i for i, token in enumerate(row) if token in (2, 3, 4, 5)), None)
        assert at is None or set(row[at:]) == {row[at]}  # filled up with the token that ended it


# --- choices


def test_a_text_is_one_of_the_choices() -> None:
    model: Any = random_model(vocab_size=257, n_embd=32)
    choices = ["cat", "cats", "dog", "do", "é"]
    texts = generate(model, BYTES, ["x"] * 200, choices=choices, seed=3, temperature=3.0)
    assert set(texts) == set(choices)
    greedy = generate(model, BYTES, "x", choices=choices, temperature=0.0)
    assert greedy in choices
    one_of = generate(model, BYTES, ["x"] * 20, choices=["cat", "cats"], seed=3, stop_at_eot=False, no_repeat_ngram=1)
    assert set(one_of) <= {"cat", "cats"}


def test_probabilities_of_choices() -> None:
    """4,000 draws of 'a' or 'bb' or 'bc': chi-square against the product of renormalised steps."""
    model: Any = random_model(vocab_size=257, n_embd=32)
    texts = generate(model, BYTES, ["x"] * 4000, choices=["a", "bb", "bc"], seed=7)
    with torch.no_grad():
        first = model(torch.tensor([[ord("x")]]))[0, -1, [97, 98]].softmax(-1)
        second = model(torch.tensor([[ord("x"), 98]]))[0, -1, [98, 99]].softmax(-1)
    expected = 4000 * torch.stack((first[0], first[1] * second[0], first[1] * second[1]))
    observed = torch.tensor([float(texts.count(c)) for c in ("a", "bb", "bc")])
    assert expected.min() > 20
    assert float(((observed - expected) ** 2 / expected).sum()) < 13.8  # 99.9 % of two degrees


def test_allowed_tokens_of_a_trie() -> None:
    trie = Trie()
    trie.add([1, 2])
    trie.add([1])
    history = History([[0]], 9, ends=(7,), choices=trie)
    assert history.allowed() == [[1]]
    history.add([1])
    assert history.allowed() == [[2, 7]]
    assert not history.finished(0)
    history.add([2])
    assert history.finished(0)
    assert history.allowed() == [[7]]
    history.add([7])
    assert history.allowed() == [None]


# --- settings


def test_presets_are_strategies() -> None:
    for name, preset in PRESETS.items():
        assert preset.source
        sorted_settings({"strategy": name})
    assert sorted_settings({"strategy": "nucleus", "temperature": 0.7})[0] == Strategy(top_p=0.95, temperature=0.7)
    assert sorted_settings({"strategy": "contrastive"})[2] == Method(penalty_alpha=0.6)
    known = {"strategy", *(f.name for kind in (Strategy, Until, Method) for f in fields(kind))}
    assert set(Options.__annotations__) == known
    assert set(Methods.__annotations__) == {f.name for f in fields(Method)}
    model, prompt = random_model(), torch.tensor([[1]])
    assert torch.equal(
        generate_ids(model, prompt, 20, seed=1, strategy="top_k", top_k=3),
        generate_ids(model, prompt, 20, seed=1, top_k=3),
    )


def test_bias_by_text() -> None:
    model: Any = random_model(vocab_size=257)
    assert generate(model, BYTES, "x", logit_bias={"z": 1e9}, max_new_tokens=3) == "zzz"
    assert "z" not in generate(model, BYTES, "x", logit_bias={"z": 1e9, ord("z"): -INF}, max_new_tokens=20, seed=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "nucleas"}, "no strategy 'nucleas' (did you mean nucleus?)"),
        ({"topp": 0.9}, "no option 'topp' (did you mean top_p?)"),
        ({"min_p": 1.5}, "min_p must lie in [0, 1]"),
        ({"typical_p": 0}, "typical_p must lie in (0, 1]"),
        ({"epsilon": -0.1}, "epsilon must lie in"),
        ({"eta": math.nan}, "eta must lie in"),
        ({"mirostat": -1}, "mirostat must be 0 (off)"),
        ({"mirostat": 3.0, "top_p": 0.9, "top_k": 5}, "leave out top_k, top_p"),
        ({"mirostat": 3.0, "temperature": 0.0}, "leave out temperature 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"presence_penalty": INF}, "presence_penalty must be a number"),
        ({"no_repeat_ngram": 1.5}, "no_repeat_ngram must be a whole number"),
        ({"min_new_tokens": -1}, "min_new_tokens must be a whole number"),
        ({"logit_bias": {3: INF}}, "logit_bias maps token ids"),
        ({"logit_bias": {"ab": 1.0}}, "'ab' is 2 tokens of this tokenizer"),
        ({"logit_bias": {999: 1.0}}, "token 999 is outside"),
        ({"stop_tokens": [999]}, "token 999 is outside"),
        ({"stop": "end"}, "stop must be a list of texts"),
        ({"stop": [""]}, "stop must be a list of texts"),
        ({"choices": ["abc"], "max_new_tokens": 2}, "needs 3 tokens: raise max_new_tokens"),
        ({"alternatives": -1}, "alternatives must be a whole number"),
    ],
)
def test_misuse(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        generate(scripted("a"), BYTES, "x", **options)
    assert said in str(error.value)


# --- log-probabilities


def test_log_probabilities_are_the_models_own() -> None:
    model: Any = random_model(vocab_size=257)
    pieces = list(
        stream_batch(model, BYTES, ["ab"], max_new_tokens=5, seed=1, temperature=0.5, top_k=9, alternatives=3)
    )
    ids = [97, 98]
    for piece in pieces:
        log_p = model(torch.tensor([ids]))[0, -1].detach().log_softmax(-1)
        assert piece.logprob == pytest.approx(float(log_p[piece.token]), abs=1e-4)
        best = log_p.topk(3)
        assert [token for token, _ in piece.alternatives] == best.indices.tolist()
        assert [p for _, p in piece.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)
        ids.append(piece.token)
    assert all(p.logprob is None for p in stream_batch(model, BYTES, ["ab"], max_new_tokens=2))


def test_order_of_steps_is_stated() -> None:
    assert list(STEPS) == [*BEFORE, "temperature", *CUTS]


def test_page_states_every_option_and_preset() -> None:
    from minilm.sample_cli import FILTERS, LISTS, METHODS

    page = (Path(__file__).resolve().parent.parent / "docs" / "generation.md").read_text(encoding="utf-8")
    for name in [*(name for name, *_ in FILTERS), *(name for name, *_ in (*LISTS, *METHODS))]:
        assert f"--{name}" in page, name
    for name, preset in PRESETS.items():
        chosen = ", ".join(f"`{key} {value:g}`" for key, value in preset.settings.items()) or "none"
        assert f"| `{name}` | {chosen} | {preset.source} |" in page, name
