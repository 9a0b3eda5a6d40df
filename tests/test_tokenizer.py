"""Ids and text: equal to transformers' GPT-2, whole after a round trip, the same one by one, in batches, in streams."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm.errors import UsageError
from minilm.text import tokenizer_engines as engines
from minilm.text import vocabulary
from minilm.text.encode import BLANKS, measure
from minilm.text.tokenizer import Tokenizer, check_same, get_tokenizer, train_tokenizer

KINDS = ("gpt2", "bytes", "bpe", "chars", "words")
HARD = [
    "",
    " ",
    "   ",
    "\n",
    "Hello, world!  Two spaces.   Three.    Four",
    "don't can't we'll I've they're it's HE'S 'quoted' 'so' ''s x's’s Tom’s",
    "tabs\tand\t\ttabs \t mixed \t\n lines\r\nCRLF\r\n\r\n end\r",
    "trailing space ",
    " leading",
    "\n\n  indented\n\n\n    code(x, y=1)\n",
    "12345 1,000.50 0x1F ½ ² Ⅷ ٣٤ 1a2b",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 😀😀",
    "e\u0301 n\u0303 a\u0301\u0323 क्षि नमस्ते",
    "naïve café ŒUVRE straße İstanbul",
    "世界 こんにちは 안녕하세요 ไทยภาษา",
    "العربية עברית \u202eRTL\u202c \u200b\u200d\ufeff",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> <|unknown|><|endoftext|>",
    "nul \x00 and \x1c\x1d\x1e\x1f \x7f \x85 controls \x0b\x0c",
    "nbsp\xa0\xa0 em\u2003\u2003x ideographic\u3000\u3000y \u2028\u2029 z",
    "!!!??? ... --- *** === ### \\/ `code` {[(<>)]}",
    "\U0010ffff \ue000 \ufffd \uffff",
    "x" * 300,
]
EXAMPLES = settings(derandomize=True, max_examples=120, deadline=None)
spaced = st.text(st.sampled_from([*" \n\r\t\xa0\u3000\x1c'’aZséñ中न\u03011½.!-<|>😀\u200d"]))
unicode = st.one_of(st.text(), spaced, st.lists(st.sampled_from(HARD), max_size=4).map("".join))


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    """Lines in 15 languages, stories, prose: 2,000 of them."""
    lines = [line for path in sorted((shared_data / "langid/sentences").glob("*.txt")) for line in _lines(path)[:100]]
    return [*lines, *_lines(shared_data / "tinystories/tiny_stories.txt")[:500], *HARD]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path, texts: list[str]) -> dict[str, Tokenizer]:
    made = {kind: train_tokenizer(kind, texts, 2000 if kind == "bpe" else 0) for kind in ("chars", "words", "bpe")}
    return made | {"gpt2": get_tokenizer(shared_data / "gpt2_files"), "bytes": get_tokenizer("bytes")}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers[request.param]


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> Callable[[str], list[int]]:
    """transformers' GPT-2, special tokens in the text taken as text."""
    from transformers import GPT2TokenizerFast  # type: ignore[attr-defined]

    files = shared_data / "gpt2_files"
    theirs = GPT2TokenizerFast(str(files / "encoder.json"), str(files / "vocab.bpe"))
    theirs.backend_tokenizer.encode_special_tokens = True
    return lambda text: list(theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def library(tokenizers: dict[str, Tokenizer]) -> dict[str, engines.LibraryEngine]:
    """The tokenizers library on the same tokenizer.json."""
    return {kind: engines.LibraryEngine(tokenizer.spec, special=False) for kind, tokenizer in tokenizers.items()}


def test_gpt2_is_gpt2(tokenizers: dict[str, Tokenizer]) -> None:
    gpt2 = tokenizers["gpt2"]
    assert (gpt2.name, gpt2.vocab_size, gpt2.eot, gpt2.unknown) == ("gpt2", 50257, 50256, None)
    assert gpt2.encode("Hello world") == [15496, 995]  # as OpenAI's encoder.py gives it
    assert isinstance(gpt2._engine, engines.TiktokenEngine)


def test_gpt2_equals_transformers_on_real_lines(
    tokenizers: dict[str, Tokenizer], reference: Callable[[str], list[int]], texts: list[str]
) -> None:
    assert len(texts) > 1900
    for text, ids in zip(texts, tokenizers["gpt2"].encode_batch(texts), strict=True):
        assert ids == reference(text), text
    whole = "\n".join(texts)
    assert tokenizers["gpt2"].encode(whole) == reference(whole)


@EXAMPLES
@given(unicode)
def test_gpt2_equals_transformers_on_any_text(
    tokenizers: dict[str, Tokenizer], reference: Callable[[str], list[int]], text: str
) -> None:
    assert tokenizers["gpt2"].encode(text) == reference(text)


@pytest.mark.parametrize("step", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_gpt2_equals_transformers_on_code_points(
    tokenizers: dict[str, Tokenizer], reference: Callable[[str], list[int]], step: int
) -> None:
    """Letter, digit, white space or other: both regular expressions must know it of every character."""
    codes = [*range(0, 0x3100, min(step, 7)), *range(0x3100, 0xD800, step), *range(0xE000, 0x110000, step)]
    for block in range(0, len(codes), 1024):
        text = "".join(f"a{chr(c)}1{chr(c)} {chr(c)}!" for c in codes[block : block + 1024])
        assert tokenizers["gpt2"].encode(text) == reference(text), hex(codes[block])


@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(text=unicode)
def test_engine_equals_library(
    tokenizers: dict[str, Tokenizer], library: dict[str, engines.LibraryEngine], kind: str, text: str
) -> None:
    ids = tokenizers[kind].encode(text)
    assert ids == library[kind].encode(text)
    decoded = tokenizers[kind].decode(ids)
    assert decoded == library[kind].library.decode(ids, skip_special_tokens=False)
    if tokenizers[kind].count_unknown(ids) == 0:
        assert decoded == text
    assert kind in ("chars", "words") or tokenizers[kind].unknown is None
    assert not set(ids) & ({tokenizers[kind].eot})


def test_engine_equals_library_on_real_lines(
    tokenizer: Tokenizer, library: dict[str, engines.LibraryEngine], texts: list[str]
) -> None:
    ids = tokenizer.encode_batch(texts)
    assert ids == library[tokenizer.name].encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert [tokenizer.decode(i) for i in ids] == texts
    assert sum(map(tokenizer.count_unknown, ids)) == 0
    assert max(map(max, filter(None, ids))) < tokenizer.vocab_size


@EXAMPLES
@given(text=unicode.filter(bool))
@pytest.mark.parametrize("kind", ["chars", "words"])
def test_round_trip_within_the_vocabulary(kind: str, text: str) -> None:
    own = train_tokenizer(kind, [text])
    ids = own.encode(text)
    assert own.decode(ids) == text
    assert own.count_unknown(ids) == 0


def test_batches(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode_batch(iter(["", "a", ""])) == [[], tokenizer.encode("a"), []]
    special = tokenizer.encode_batch(HARD, special=True)
    assert special == [tokenizer.encode(text, special=True) for text in HARD]


def test_special_tokens_only_where_asked(tokenizer: Tokenizer) -> None:
    text = "a<|endoftext|>b"
    assert tokenizer.eot not in tokenizer.encode(text)
    assert tokenizer.encode(text, special=True) == [*tokenizer.encode("a"), tokenizer.eot, *tokenizer.encode("b")]
    assert tokenizer.encode("<|endoftext|>" * 2, special=True) == [tokenizer.eot] * 2
    assert tokenizer.decode([tokenizer.eot]) == "<|endoftext|>"


@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(seed=st.integers(0, 2**32))
def test_any_ids_decode_and_stream(
    tokenizers: dict[str, Tokenizer], library: dict[str, engines.LibraryEngine], kind: str, seed: int
) -> None:
    """Ids that no text gives, broken UTF-8 among them: as the library decodes them, and the same when streamed."""
    tokenizer = tokenizers[kind]
    high = 260 if seed % 2 else tokenizer.vocab_size  # single bytes half of the time
    ids = np.random.default_rng(seed).integers(0, min(high, tokenizer.vocab_size), 12).tolist()
    text = tokenizer.decode(ids)
    assert text == library[kind].library.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(np.array(ids)) == text
    for n in range(len(ids) + 1):
        _check_stream(tokenizer, ids[:n])


@pytest.mark.parametrize("text", HARD)
def test_stream_equals_decode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
    if tokenizer.count_unknown(ids) == 0 and "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)  # no half character was shown
    _check_stream(tokenizer, [*ids, tokenizer.eot, *ids])


def _check_stream(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream_decoder()
    told = ""
    for n, i in enumerate(ids):
        told += stream.push(i)
        assert tokenizer.decode(ids[: n + 1]).startswith(told)
    told += stream.flush()
    assert told == tokenizer.decode(ids)
    assert stream.push(ids[0]) + stream.flush() == tokenizer.decode(ids[:1]) if ids else True  # starts afresh


@pytest.mark.parametrize("text", ["a" * 10**6, "\n" * 10**6 + "a", " " * 10**6 + "a", "\r\n" * 500_000])
def test_a_million_characters_without_a_word(tokenizers: dict[str, Tokenizer], text: str) -> None:
    """Seconds at most: BPE must not be quadratic, the regular expression must not run out of stack."""
    for kind in ("gpt2", "bpe", "bytes"):
        start = time.perf_counter()
        ids = tokenizers[kind].encode(text)
        assert time.perf_counter() - start < 10
        assert tokenizers[kind].decode(ids) == text
    one_word, joined = text[0] == "a", text[0] == " "  # a space joins the word behind it
    assert len(tokenizers["words"].encode(text)) == (1 if one_word else len(text) - joined)


@EXAMPLES
@given(unicode)
def test_cutting_long_text_changes_nothing(tokenizers: dict[str, Tokenizer], text: str) -> None:
    short = tokenizers["gpt2"].encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines.TiktokenEngine, "LONG", -1)
        assert tokenizers["gpt2"].encode(text) == short


def test_cutting_goes_by_the_engine_s_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python calls U+001C white space, Unicode and the split do not: a space and it may be one token."""
    chars = vocabulary.byte_chars()
    vocab = {char: i for i, char in enumerate(chars)} | {chars[0x20] + chars[0x1C]: 256}
    joined = Tokenizer(vocabulary.bpe_spec(vocab, [f"{chars[0x20]} {chars[0x1C]}"]))
    assert isinstance(joined._engine, engines.TiktokenEngine)
    monkeypatch.setattr(engines.TiktokenEngine, "LONG", -1)
    assert joined.encode("a \x1cb") == [ord("a"), 256, ord("b")]


def test_a_full_memo_changes_nothing(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines._Memo, "LIMIT", 3)
    monkeypatch.setattr(engines._Memo, "LONGEST", 6)
    words = train_tokenizer("words", texts[-50:], 100)
    assert words.encode_batch(texts) == engines.LibraryEngine(words.spec, special=False).encode_batch(texts)


def test_words_cost_one_token_each(shared_data: Path) -> None:
    stories = (shared_data / "tinystories/tiny_stories.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    words = train_tokenizer("words", stories)
    said = sum(len(story.split()) for story in stories)
    assert sum(map(len, words.encode_batch(stories))) < 1.3 * said  # full stops and commas count
    once = ["Once", " upon", " a", " time", ",", " there", " was"]
    assert [words.decode([i]) for i in words.encode("".join(once))] == once


def test_outside_the_vocabulary() -> None:
    words = train_tokenizer("words", ["the cat sat.", "the dog"])
    ids = words.encode("the cow sat!")
    assert words.decode(ids) == "the<|unknown|> sat<|unknown|>"
    assert words.count_unknown(ids) == words.count_unknown(np.array(ids)) == 2
    chars = train_tokenizer("chars", "abc")
    assert chars.encode("cab\U0010ffff") == [2, 0, 1, chars.unknown]
    assert (chars.vocab_size, chars.unknown, chars.eot) == (5, 3, 4)


def test_frequent_words_are_kept() -> None:
    words = train_tokenizer("words", [" b b b a a c c d", "a"], vocab_size=5)
    assert [words.decode([i]) for i in range(5)] == [" b", " a", " c", "<|unknown|>", "<|endoftext|>"]
    chars = train_tokenizer("chars", ["zzyyx"], vocab_size=4)
    assert [chars.decode([i]) for i in range(2)] == ["y", "z"]
    assert train_tokenizer("words", ["x", "y"]) == train_tokenizer("words", ["y", "x"])  # equals by code point


def test_bpe_size(texts: list[str]) -> None:
    assert train_tokenizer("bpe", texts, 1000).vocab_size == 1000
    least = train_tokenizer("bpe", texts, 257)
    assert (least.vocab_size, least.eot, least.name) == (257, 256, "bpe")
    assert train_tokenizer("bpe", ["abab"], 5000).vocab_size == 258  # one pair occurs twice
    assert train_tokenizer("bpe", texts, 1000) == train_tokenizer("bpe", texts, 1000)


@pytest.mark.parametrize(
    ("kind", "texts", "size", "message"),
    [
        ("bpe", ["text"], 256, "257 or more, not 256"),
        ("bpe", ["text"], 0, "257 or more"),
        ("words", ["text"], 2, "more than 2"),
        ("chars", ["text"], -1, "more than 2"),
        ("bpe", [], 300, "no text"),
        ("words", ["", ""], 0, "no text"),
        ("chars", [], 0, "no text"),
        ("chars", ["a", "b\udc80"], 0, r"U\+DC80 at character 1"),
        ("bpe", ["a", "b\udc80"], 300, "surrogate"),
        ("gpt2", ["text"], 0, "needs no training"),
        ("word", ["text"], 0, "choose chars, words, bpe"),
    ],
)
def test_training_refuses(kind: str, texts: list[str], size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_tokenizer(kind, texts, size)


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\ud83d\ude00"])
def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer, text: str) -> None:
    for encode in (tokenizer.encode, lambda text, **how: tokenizer.encode_batch(["fine", text], **how)):
        for special in (False, True):
            with pytest.raises(UsageError, match=r"U\+D[89A-F].* at character \d+, half of a surrogate pair"):
                encode(text, special=special)


def test_not_text_is_refused(tokenizer: Tokenizer) -> None:
    wrong: Any = b"bytes"
    with pytest.raises(UsageError, match="encodes str, not bytes"):
        tokenizer.encode(wrong)


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(UsageError, match=f"token id {wrong} is outside the vocabulary of {tokenizer.name}"):
            tokenizer.decode([0, wrong])
        with pytest.raises(UsageError, match=f"token id {wrong} is outside"):
            tokenizer.stream_decoder().push(wrong)


def test_check_same(tokenizers: dict[str, Tokenizer]) -> None:
    gpt2, words = tokenizers["gpt2"], tokenizers["words"]
    check_same(gpt2, (gpt2.name, gpt2.fingerprint))
    check_same(gpt2.fingerprint, gpt2)
    for other in (words, ("words", words.fingerprint)):
        with pytest.raises(UsageError) as error:
            check_same(gpt2, other, a_is="runs/x", b_is="the shards")
        for part in ("runs/x", "the shards", "gpt2", "words", gpt2.fingerprint, words.fingerprint):
            assert part in str(error.value)


def test_fingerprints_tell_tokenizers_apart(tokenizers: dict[str, Tokenizer]) -> None:
    marks = {kind: tokenizer.fingerprint for kind, tokenizer in tokenizers.items()}
    marks |= {"chars of fewer": train_tokenizer("chars", ["abc"]).fingerprint}
    marks |= {"words of the same": train_tokenizer("words", ["a b c"]).fingerprint}
    for turn, order in enumerate(itertools.permutations("ab")):
        spec = vocabulary.listed_spec(list(order), vocabulary.CHARS_SPLIT)
        marks |= {f"order {turn}": Tokenizer(spec).fingerprint}
    marks |= {"same vocabulary, other split": Tokenizer(vocabulary.listed_spec(["a", "b"], "b")).fingerprint}
    assert len(set(marks.values())) == len(marks)
    assert marks["gpt2"] == vocabulary.GPT2_FINGERPRINT
    assert marks["bytes"] == "c2e5c29ee793e87b"  # shards on disk state it: it must never change
    assert len({*tokenizers.values(), *map(pickle.loads, map(pickle.dumps, tokenizers.values()))}) == len(KINDS)


def test_import_is_cheap() -> None:
    heavy = "{'torch', 'tokenizers', 'tiktoken', 'requests', 'transformers'}"
    code = f"import sys, minilm.text.tokenizer; sys.exit(str(heavy) if (heavy := {heavy} & set(sys.modules)) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gigatoken_gives_tiktokens_ids(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On whole real texts, and on what tokenizers trip over; `encode_flat` is `encode_batch` with or without it."""
    pytest.importorskip("gigatoken")
    from minilm.errors import MinilmError
    from minilm.text.tokenizer_engines import GigatokenEngine

    texts = [path.read_text("utf-8-sig") for path in sorted((shared_data / "gutenberg").glob("*.txt"))[:4]]
    texts += [path.read_text("utf-8")[:20_000] for path in sorted((shared_data / "langid" / "sentences").iterdir())]
    texts += [
        "",
        " ",
        "<|endoftext|>",
        "a\u0301 \U0001f600\u200d\U0001f525",
        "\x00\x07",
        "\u3000 \xa0x",
        "don't  I'LL",
        "\r\n\r\n\t",
    ]
    texts += ["x" * 10_000, " " * 10_000 + "x", "1234567890" * 100]
    fast = get_tokenizer(shared_data / "gpt2_files")
    assert isinstance(fast._engine, GigatokenEngine)
    monkeypatch.setattr("minilm.text.tokenizer.find_spec", lambda name: None)
    slow = get_tokenizer(shared_data / "gpt2_files")
    assert not isinstance(slow._engine, GigatokenEngine)
    expected = slow.encode_batch(texts)
    assert fast.encode_batch(texts) == expected
    for tokenizer in (fast, slow):
        flat, lengths = tokenizer.encode_flat(texts)
        assert lengths.tolist() == [len(ids) for ids in expected]
        assert flat.tolist() == [i for ids in expected for i in ids]
    fast.check_sample(texts[-9:])
    monkeypatch.setattr(fast._engine, "encode", lambda text: [0])
    with pytest.raises(MinilmError, match="gigatoken gives other ids than tiktoken: pip uninstall gigatoken"):
        fast.check_sample(["two words"])


@given(
    st.lists(st.text(alphabet=st.one_of(st.characters(), st.sampled_from([*BLANKS, "a", "\x00", "\x1b"]))), max_size=5)
)
@settings(max_examples=300, deadline=None)
def test_words_and_bytes_are_those_of_the_texts(texts: list[str]) -> None:
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    assert measure(texts) == (n_bytes, sum(len(text.split()) for text in texts))
