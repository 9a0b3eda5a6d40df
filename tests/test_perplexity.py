"""Perplexity against transformers' loop, lm-evaluation-harness's windows, closed forms and brute force."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import prepared, sums

from minilm.config import GPTConfig
from minilm.errors import MinilmError, UsageError
from minilm.evaluation.perplexity import Part, Perplexity, perplexity
from minilm.evaluation.protocols import PROTOCOLS, TEXTS, WORDS, Protocol, get_protocol, windows
from minilm.evaluation.scoring import Request, target_nats
from minilm.model.gpt import GPT
from minilm.text.shards import open_shards
from minilm.text.tokenizer import get_tokenizer, train_tokenizer

BYTES = get_tokenizer("bytes")
SMALL = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=257, init_std=0.3)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(SMALL).eval()


@pytest.fixture(scope="module")
def text() -> str:
    return "\n".join(sums(10, 12))


class Bigrams(GPT):
    """Knows p(next | last) by heart: a table (V, V) of probabilities."""

    def __init__(self, table: torch.Tensor, block_size: int = 16) -> None:
        super().__init__(GPTConfig(1, 1, 8, block_size=block_size, vocab_size=len(table)))
        self.table = table

    def hidden(self, ids: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        return torch.nn.functional.one_hot(ids, len(self.table)).to(self.table.dtype)

    def used_logits(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.table).log()


def brute_force(model: GPT, ids: list[int], protocol: Protocol) -> list[float]:
    """-log p of every target, each from a pass of its own over the tokens that the protocol lets it see."""
    nats, before = [], 1
    length = protocol.context + (not protocol.targets_inside)
    for begin in range(0, len(ids), protocol.stride):
        end = min(begin + length, len(ids))
        first = max(0, end - length) if end == len(ids) and protocol.last_window == "full" else begin
        for i in range(max(before, begin + 1), end):
            with torch.no_grad():
                logits = model(torch.tensor([ids[first:i]]))[0, -1].double()
            nats.append(-float(logits.log_softmax(-1)[ids[i]]))
        before = end
        if end == len(ids):
            break
    return nats


@pytest.mark.parametrize(("stride", "std"), [(8, 0.02), (16, 0.02), (8, 0.3), (32, 0.3)])
def test_transformers_documented_loop(stride: int, std: float, text: str) -> None:
    """A window of the model's length every `stride` tokens, only its new tokens labelled. transformers' page weights
    each window's mean with its labels less one: to 1e-4 the same as the exact sum where windows are alike."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=257, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=std)
    theirs = GPT2LMHeadModel(config).eval()
    ours = GPT(GPTConfig(2, 2, 32, 32, vocab_size=257))
    for name, parameter in ours.named_parameters():
        value = theirs.state_dict()[f"transformer.{name}"]
        parameter.data.copy_(value.T if "c_" in name and value.dim() == 2 else value)  # they store (in, out)
    ids = torch.tensor([BYTES.encode(TEXTS["rows"](text))])
    documented, exact, n_documented, n_exact, before = 0.0, 0.0, 0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + 32, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = theirs(ids[:, begin:end], labels=labels).loss.item()
        n_valid, n_predicted = int((labels != -100).sum()), int((labels[:, 1:] != -100).sum())
        documented, n_documented = documented + loss * (n_valid - 1), n_documented + n_valid - 1
        exact, n_exact, before = exact + loss * n_predicted, n_exact + n_predicted, end
        if end == ids.shape[1]:
            break
    found = perplexity(ours, text, "hf-stride-512", tokenizer=BYTES, context=32, stride=stride)
    assert found.n_tokens == n_exact
    assert found.token_perplexity == pytest.approx(math.exp(exact / n_exact), rel=1e-5)
    if std == 0.02 or stride == 32:
        assert found.token_perplexity == pytest.approx(math.exp(documented / n_documented), rel=1e-4)


@pytest.mark.parametrize("n", [2, 3, 31, 32, 33, 34, 64, 65, 97, 150])
def test_lm_evals_rolling_windows(n: int) -> None:
    """End-of-text and then disjoint windows of targets, the last reaching back for a whole context."""
    protocol = PROTOCOLS["lm-eval"].settled(32)
    ids = np.arange(n)
    with_eot = np.append(-1, ids)
    found = [with_eot[w.begin : w.end] for w in windows(protocol, n + 1)]
    scored = [with_eot[w.scored : w.end] for w in windows(protocol, n + 1)]
    first = min(32, n)
    expected = [with_eot[: first + 1]]
    done = first
    while done < n:
        end = min(done + 32, n)
        expected.append(with_eot[end - 32 : end + 1])
        done = end
    assert [one.tolist() for one in found] == [one.tolist() for one in expected]
    assert np.concatenate(scored).tolist() == ids.tolist()


protocols = st.builds(
    lambda context, stride, inside, last: Protocol(
        "t", context=context, stride=min(stride, context), targets_inside=inside, last_window=last
    ),
    st.integers(2, 20),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from(["short", "full"]),
)


@given(protocols, st.integers(0, 90))
def test_windows_score_every_target_once(protocol: Protocol, n: int) -> None:
    told = list(windows(protocol, n))
    scored = [i for w in told for i in range(w.scored, w.end)]
    if protocol.targets_inside and protocol.stride == protocol.context:
        assert scored == [i for i in range(n) if i % protocol.context]
    else:
        assert scored == list(range(1, n))
    for w in told:
        assert w.begin < w.scored < w.end
        assert w.end - w.begin <= protocol.context + (not protocol.targets_inside)
    if told and protocol.last_window == "full" and n > protocol.context:
        assert told[-1].end - told[-1].begin == protocol.context + (not protocol.targets_inside)


@settings(max_examples=12, deadline=None)
@given(protocol=protocols, n=st.integers(2, 60), seed=st.integers(0, 99), batch_tokens=st.sampled_from([1, 40, 9999]))
def test_every_target_sees_what_the_protocol_says(protocol: Protocol, n: int, seed: int, batch_tokens: int) -> None:
    torch.manual_seed(0)
    model = GPT(replace(SMALL, n_embd=8, position="rope", vocab_size=11)).eval()
    ids = np.random.default_rng(seed).integers(11, size=n)
    requests = [Request(ids[w.begin : w.end], w.scored - w.begin) for w in windows(protocol, n)]
    nats = np.concatenate([*target_nats(model, requests, batch_tokens=batch_tokens), np.zeros(0)])
    assert nats.tolist() == pytest.approx(brute_force(model, ids.tolist(), protocol), abs=2e-5)


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if PROTOCOLS[name].documents != "stream"])
def test_a_uniform_model_gives_the_vocabulary(name: str, text: str) -> None:
    uniform = Bigrams(torch.full((257, 257), 1 / 257))
    stride = min(PROTOCOLS[name].stride, 16)
    found = perplexity(uniform, [text, text[:50]], name, tokenizer=BYTES, context=16, stride=stride)
    assert found.token_perplexity == pytest.approx(257, rel=1e-6)
    assert found.nats == pytest.approx(found.n_tokens * math.log(257))


def test_a_model_with_known_probabilities_is_matched(text: str) -> None:
    """Every normalisation, from the counted bigrams of the text alone."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(257, 257, generator=generator, dtype=torch.float64) + 0.01
    table /= table.sum(1, keepdim=True)
    documents = [text[:200], text[200:777], "ünïcödé 7"]
    raw = [document.encode() for document in documents]
    pairs = Counter(pair for one in raw for pair in zip([256, *one[:-1]], one, strict=True))
    nats = -sum(n * math.log(table[a, b].item()) for (a, b), n in pairs.items())
    found = perplexity(Bigrams(table), documents, "minilm", tokenizer=BYTES)
    n_bytes, n_words, n_characters = (
        sum(map(f, documents)) for f in (lambda d: len(d.encode()), lambda d: len(d.split()), len)
    )
    assert (found.n_bytes, found.n_words, found.n_characters, found.n_tokens) == (
        n_bytes,
        n_words,
        n_characters,
        n_bytes,
    )
    assert found.n_documents == 3
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert found.token_perplexity == pytest.approx(math.exp(nats / n_bytes), rel=1e-6)
    assert found.word_perplexity == pytest.approx(math.exp(nats / n_words), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / n_bytes / math.log(2), rel=1e-6)
    assert found.bits_per_character == pytest.approx(nats / n_characters / math.log(2), rel=1e-6)
    for unit, value in (
        ("token", found.token_perplexity),
        ("word", found.word_perplexity),
        ("byte", found.bits_per_byte),
    ):
        assert perplexity(Bigrams(table), documents, "minilm", tokenizer=BYTES, unit=unit).value == value
    joined = perplexity(Bigrams(table), documents, "minilm", tokenizer=BYTES, documents="joined", first="unscored")
    whole = "".join(documents).encode()
    expected = -sum(math.log(table[a, b].item()) for a, b in pairwise(whole))
    assert joined.nats == pytest.approx(expected, rel=1e-6)
    assert joined.n_documents == 3


def test_counts_are_of_the_text_that_the_protocol_names() -> None:
    page = " \n = Title = \n \n It was , he said , 1 @,@ 000 ( or so ) . \n"
    assert TEXTS["wikitext"](page) == "\n= Title =\n\nIt was, he said, 1,000 (or so).\n"
    uniform = Bigrams(torch.full((257, 257), 1 / 257))
    for counted, counted_text in (("original", page), ("scored", TEXTS["wikitext"](page))):
        for words, n in (("blanks", len(counted_text.split())), ("pieces", len(counted_text.split()) + 2)):
            found = perplexity(uniform, page, "lm-eval", tokenizer=BYTES, counted=counted, words=words)
            assert (found.n_words, found.n_bytes) == (n, len(counted_text))
    assert WORDS["spaces"](" a b c \n") == 2
    assert TEXTS["rows"](" \n a \n b \n") == "\n\n a \n\n\n b \n"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_position": "sandwich", "activation": "swiglu"},
        {"norm_position": "post", "final_norm": False},
        {"parallel_residual": True},
        {"n_unique_layer": 1},
        {"skip_mlp": (1,), "position": "rope"},
        {"skip_attn": (1,), "vocab_used": 200, "logit_softcap": 5.0},
    ],
)
def test_what_is_left_out_is_not_needed(changes: dict) -> None:
    """The last feed-forward and the head run where something is scored: what they say there is the whole model's."""
    torch.manual_seed(3)
    model = GPT(replace(SMALL, n_layer=2, init_std=0.3, **changes)).eval()
    random = np.random.default_rng(0)
    requests = [Request(random.integers(200, size=n), scored) for n, scored in ((33, 1), (20, 13), (2, 1), (33, 32))]
    for request, found in zip(requests, target_nats(model, requests), strict=True):
        logits = model(torch.from_numpy(request.ids[None, :-1]))[0].double().log_softmax(-1)
        expected = -logits[torch.arange(len(request.ids) - 1), torch.from_numpy(request.ids[1:])]
        assert found == pytest.approx(expected[request.scored - 1 :].detach().numpy(), abs=2e-5)


def test_the_batch_size_changes_nothing(model: GPT, text: str) -> None:
    for name in ("minilm", "hf-stride-512"):
        found = [
            perplexity(
                model, [text, "a", text[:90], ""], name, tokenizer=BYTES, batch_tokens=n, context=32, stride=9
            ).nats
            for n in (1, 100, 4096)
        ]
        assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_documents_are_seen_apart(model: GPT, text: str) -> None:
    """Each document's sum is what it has alone, with the end-of-text before it."""
    documents = [text[:70], text[100:133], text[200:240]]
    whole = perplexity(model, documents, "minilm", tokenizer=BYTES)
    alone = [perplexity(model, one, "minilm", tokenizer=BYTES).nats for one in documents]
    assert whole.nats == pytest.approx(sum(alone), rel=1e-6)
    ids = [BYTES.eot, *BYTES.encode(documents[1])]
    expected = brute_force(model, ids, PROTOCOLS["minilm"].settled(32))
    parts: list[Part] = []
    perplexity(model, documents, "minilm", tokenizer=BYTES, parts=parts)
    of_second = np.concatenate([part.nats for part in parts if part.document == 1])
    assert of_second.tolist() == pytest.approx(expected, abs=2e-5)


def test_shards_as_a_stream_and_as_documents(model: GPT, tmp_path: Path) -> None:
    from minilm.training.loop import evaluate
    from minilm.training.setup import Setup

    folder = prepared(tmp_path / "sums")
    shards = open_shards(folder)
    found = perplexity(model, folder, "training")
    setup = Setup("cpu", "fp32", False, 4, 1e9)
    assert found.nats_per_token == pytest.approx(evaluate(model, setup, shards.splits["val"], 10**9), rel=1e-6)
    assert found.n_tokens == shards.splits["val"].n_tokens - 1
    meta = shards.meta.splits["val"]
    assert (found.n_bytes, found.n_words, found.n_documents) == (meta.bytes, meta.words, meta.documents)
    model.eval()
    texts = sums(100, 12)
    from_shards, from_texts = perplexity(model, shards, "minilm"), perplexity(model, texts, "minilm", tokenizer=BYTES)
    assert from_shards.nats == from_texts.nats
    assert from_shards.text_sha256 == from_texts.text_sha256
    assert from_shards.data == "sums, val"
    assert perplexity(model, shards, "minilm", split="train").n_documents == 30


def test_random_windows_have_their_error(tmp_path: Path, model: GPT) -> None:
    folder = prepared(tmp_path / "sums")
    found = perplexity(model, folder, "nanogpt", random_windows=400, precision="fp32")
    assert found.n_tokens == 400 * 32
    stream = perplexity(model, folder, "training", context=32, stride=1)
    assert found.standard_error is not None
    assert 0 < found.standard_error < 0.1
    # Every token of a window has less to see than with a stride of 1, which only lowers certainty for a random model.
    whole = perplexity(model, folder, "training")
    assert abs(found.nats_per_token - whole.nats_per_token) < 5 * found.standard_error
    assert stream.n_tokens == whole.n_tokens
    assert math.isnan(found.word_perplexity)
    assert f"standard error {found.standard_error:.4f}" in str(found)


def test_unlike_numbers_are_not_compared(model: GPT, text: str) -> None:
    a = perplexity(model, text, "minilm", tokenizer=BYTES)
    a.check_alike(perplexity(model, text, "minilm", tokenizer=BYTES, model_name="another"))
    for other, message in (
        (perplexity(model, text, "minilm", tokenizer=BYTES, stride=4), "stride: 32 and 4"),
        (perplexity(model, text[1:], "minilm", tokenizer=BYTES), "the text: text and text"),
        (replace(a, tokenizer="0" * 16), "the tokenizer"),
    ):
        with pytest.raises(UsageError, match=message):
            a.check_alike(other)
    b = perplexity(model, text, "minilm", tokenizer=BYTES, unit="byte")
    b.check_alike(replace(b, tokenizer="0" * 16))  # per byte, tokenizers may differ
    assert Perplexity.from_json(a.to_json()) == a
    for broken in ("", "{}", "[]", a.to_json().replace('"nats"', '"gnats"')):
        with pytest.raises(UsageError, match="no stored perplexity"):
            Perplexity.from_json(broken)


def test_a_text_without_words_has_no_number_per_word(model: GPT) -> None:
    with pytest.raises(UsageError, match=r"text has no word that protocol minilm\* counts: give a longer text"):
        perplexity(model, "   ", tokenizer=BYTES, unit="word")
    with pytest.raises(UsageError, match="text has no word"):
        perplexity(model, "one", "megatron", tokenizer=BYTES, context=8, stride=4)


def test_the_report_names_everything(model: GPT, text: str) -> None:
    report = str(perplexity(model, text, "minilm", tokenizer=BYTES, stride=16, model_name="runs/x"))
    for part in (
        "minilm*",
        "runs/x on text",
        "context 32",
        "stride 16",
        "first token after_eot",
        "fp32",
        "1 documents",
    ):
        assert part in report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strid": 3}, "no field 'strid' .did you mean stride"),
        ({"context": 64}, "reads 64 tokens and the model's position table has 32"),
        ({"stride": 33}, "a stride of 33 leaves out tokens of a context of 32"),
        ({"unit": "line"}, "unit is 'line': choose token, word"),
        ({"documents": "stream"}, "a stream is read as it is"),
        ({"context": -1}, "must be 0 or more"),
        ({"random_windows": 5}, "random windows are drawn from one text"),
    ],
)
def test_fields_out_of_range(changes: dict, message: str, model: GPT, text: str) -> None:
    with pytest.raises(UsageError, match=message):
        perplexity(model, text, "minilm", tokenizer=BYTES, **changes)


def test_mistakes(model: GPT, text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no protocol 'hf-strid-512' .did you mean hf-stride-512"):
        get_protocol("hf-strid-512")
    with pytest.raises(UsageError, match="pass tokenizer="):
        perplexity(model, text)
    for empty in ("", [], ["", ""]):
        with pytest.raises(UsageError, match="too few to score one"):
            perplexity(model, empty, tokenizer=BYTES)
    with pytest.raises(UsageError, match="too few"):
        perplexity(model, "a", "hf-stride-512", tokenizer=BYTES, context=32, stride=8)
    with pytest.raises(UsageError, match="outside the model's vocabulary"):
        perplexity(GPT(replace(SMALL, vocab_size=300, vocab_used=100)), text, tokenizer=BYTES)
    with pytest.raises(UsageError, match="reads prepared data as it is"):
        perplexity(model, text, "training", tokenizer=BYTES)
    folder = prepared(tmp_path / "sums")
    with pytest.raises(UsageError, match=r"has no split 'test'.*another of train, val"):
        perplexity(model, folder, "hf-stride-512")
    with pytest.raises(UsageError, match="different tokenizers"):
        perplexity(model, folder, "training", tokenizer=train_tokenizer("chars", [text]))
    broken = GPT(SMALL)
    with torch.no_grad():
        broken.wte.weight[ord("a")] = math.nan
    with pytest.raises(MinilmError, match="no numbers at target"):
        perplexity(broken, text, tokenizer=BYTES)


def test_names_and_fields_of_protocols() -> None:
    assert all(protocol.name == name and protocol.source for name, protocol in PROTOCOLS.items())
    hints = get_type_hints(Protocol)
    assert get_args(hints["text"]) == tuple(TEXTS)
    assert get_args(hints["words"]) == tuple(WORDS)
    assert get_protocol("minilm", stride=None) is PROTOCOLS["minilm"]
    assert get_protocol("minilm", unit="byte").name == "minilm*"
    assert get_protocol("minilm", unit="token").name == "minilm"
