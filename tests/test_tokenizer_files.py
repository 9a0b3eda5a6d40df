"""Files: GPT-2's in every form is one tokenizer, ours are read by transformers, others' are read here."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from test_tokenizer import HARD, KINDS, _check_stream

from minilm.errors import MinilmError, UsageError
from minilm.text import tokenizer_engines as engines
from minilm.text import vocabulary
from minilm.text.tokenizer import Tokenizer, get_tokenizer, train_tokenizer
from minilm.text.vocabulary_files import download_gpt2

TEXT = ["Once upon a time, there was a little cat. It didn't like the rain.\n", *HARD]


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return get_tokenizer(shared_data / "gpt2_files")


@pytest.fixture(scope="module")
def tokenizers(gpt2: Tokenizer) -> dict[str, Tokenizer]:
    made = {
        kind: train_tokenizer(kind, TEXT[:-3] * 3, 300 if kind == "bpe" else 0) for kind in ("chars", "words", "bpe")
    }
    return made | {"gpt2": gpt2, "bytes": get_tokenizer("bytes")}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers[request.param]


def _write(folder: Path, spec: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def test_save_and_open(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "folder")
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "tokenizer.json"):
        again = get_tokenizer(str(path))
        assert again == tokenizer
        for field in ("name", "fingerprint", "vocab_size", "eot", "unknown", "end_token"):
            assert getattr(again, field) == getattr(tokenizer, field)
        assert type(again._engine) is type(tokenizer._engine)
        assert again.encode_batch(TEXT) == tokenizer.encode_batch(TEXT)


@pytest.mark.parametrize("beside_gpt2", [False, True])
def test_transformers_reads_it(tokenizer: Tokenizer, tmp_path: Path, beside_gpt2: bool) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer.save(tmp_path)
    if beside_gpt2:  # an exported checkpoint: AutoTokenizer goes by the model's type
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = [
        AutoTokenizer.from_pretrained(tmp_path),
        PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")),
    ]
    assert theirs[0].eos_token_id == tokenizer.eot
    assert (theirs[0].unk_token_id if tokenizer.unknown is not None else None) == tokenizer.unknown
    for other in theirs:
        assert len(other) == tokenizer.vocab_size
        for text in TEXT:
            ids = tokenizer.encode(text, special=True)  # transformers takes special tokens in a text for what they are
            assert other(text)["input_ids"] == ids
            assert other.decode(ids) == tokenizer.decode(ids)


def test_a_folder_that_cannot_be_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MinilmError, match=r"cannot be saved in .*file"):
        tokenizer.save(tmp_path / "file")


# GPT-2's vocabulary in all its forms


def _openai(gpt2: Tokenizer, files: Path, folder: Path) -> None:
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(files / name, folder)


def _hugging_face(gpt2: Tokenizer, files: Path, folder: Path) -> None:
    shutil.copy(files / "encoder.json", folder / "vocab.json")
    merges = (files / "vocab.bpe").read_text(encoding="utf-8").replace("\n", "\r\n")  # as Windows' git leaves it
    (folder / "merges.txt").write_text(merges, encoding="utf-8", newline="")


def _hub(gpt2: Tokenizer, files: Path, folder: Path) -> None:
    """As on the Hub since 2020: fewer fields, another post-processor, the end token marked as normalized."""
    spec = json.loads(json.dumps(gpt2.spec))
    spec["added_tokens"][0]["normalized"] = True
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    spec["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    spec["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    for key in ("type", "byte_fallback"):
        del spec["model"][key]
    _write(folder, spec)


def _library(gpt2: Tokenizer, files: Path, folder: Path) -> None:
    from tokenizers import Tokenizer as Library

    library = Library.from_str(json.dumps(gpt2.spec))
    library.enable_truncation(8)
    library.enable_padding(length=8)
    library.save(str(folder / "tokenizer.json"), pretty=True)


def _transformers(gpt2: Tokenizer, files: Path, folder: Path) -> None:
    from transformers import GPT2TokenizerFast  # type: ignore[attr-defined]

    GPT2TokenizerFast(str(files / "encoder.json"), str(files / "vocab.bpe")).save_pretrained(folder)


@pytest.mark.parametrize("form", [_openai, _hugging_face, _hub, _library, _transformers])
def test_gpt2_is_one_tokenizer_in_every_form(gpt2: Tokenizer, shared_data: Path, tmp_path: Path, form: Any) -> None:
    form(gpt2, shared_data / "gpt2_files", tmp_path)
    found = get_tokenizer(tmp_path)
    assert (found.name, found.fingerprint, found.eot) == ("gpt2", gpt2.fingerprint, 50256)
    assert isinstance(found._engine, engines.TiktokenEngine)
    assert found.encode_batch(TEXT) == gpt2.encode_batch(TEXT)
    assert found.encode_batch(TEXT, special=True) == gpt2.encode_batch(TEXT, special=True)


@pytest.fixture
def no_gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without GPT-2's files; the folder where they would lie."""
    monkeypatch.delenv("MINILM_GPT2_TOKENIZER", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path / ".cache" / "minilm" / "gpt2"


def test_gpt2_is_found_in_order(
    gpt2: Tokenizer, shared_data: Path, no_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    encoding = tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=50257,
        pat_str=engines.GPT2_SPLIT,
        mergeable_ranks=vocabulary.ranks(gpt2.spec),
        special_tokens={"<|endoftext|>": 50256},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: {"gpt2": encoding}[name])
    downloaded = get_tokenizer("gpt2")
    assert (downloaded, downloaded.spec) == (gpt2, gpt2.spec)

    monkeypatch.setattr(tiktoken, "get_encoding", None)  # from here on a download would fail
    no_gpt2.mkdir(parents=True)
    _openai(gpt2, shared_data / "gpt2_files", no_gpt2)
    assert get_tokenizer("gpt2") == gpt2

    shutil.rmtree(no_gpt2)
    monkeypatch.setenv("MINILM_GPT2_TOKENIZER", str(shared_data / "gpt2_files"))
    assert get_tokenizer("gpt2") == gpt2


FILE = '{"added_tokens": [{"id": 1, "content": "</s>", "special": true}], "model": %s}'
PUT = ("vocab.bpe and encoder.json", "merges.txt and vocab.json", "~/.cache/minilm/gpt2", "MINILM_GPT2_TOKENIZER")


def test_gpt2_without_network(no_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def fail(name: str) -> None:
        raise ConnectionError("a long story about a connection pool")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(UsageError) as error:
        get_tokenizer("gpt2")
    assert all(part in str(error.value) for part in (*PUT, "could not download it (ConnectionError)"))
    assert "connection pool" not in str(error.value)

    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: time.sleep(5))
    start = time.perf_counter()
    with pytest.raises(UsageError, match=r"no answer in 0\.1 s"):
        download_gpt2(limit_s=0.1)
    assert time.perf_counter() - start < 3


def test_gpt2_in_a_wrong_folder(
    shared_data: Path, no_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is named is the one used: nothing is downloaded behind the user's back."""
    folder = tmp_path / "named"
    monkeypatch.setenv("MINILM_GPT2_TOKENIZER", str(folder))
    with pytest.raises(UsageError, match=r"named, which MINILM_GPT2_TOKENIZER names, does not exist: put vocab\.bpe"):
        get_tokenizer("gpt2")
    folder.mkdir()
    with pytest.raises(UsageError, match=r"it needs a tokenizer\.json, or encoder\.json and vocab\.bpe"):
        get_tokenizer("gpt2")
    train_tokenizer("bpe", TEXT, 300).save(folder)
    with pytest.raises(UsageError, match=r"another vocabulary than GPT-2's: put vocab\.bpe"):
        get_tokenizer("gpt2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.json", '{"a": 0', "encoder.json is damaged, it is no JSON"),
        ("encoder.json", "[]", "holds no object but a list"),
        ("encoder.json", '{"a": 0}', "do not belong together"),
        ("vocab.bpe", "#version: 0.2\n", "do not belong together"),
        ("vocab.bpe", "#version: 0.2\n\u0120t h e\n", "do not belong together"),
        ("vocab.bpe", "#version: 0.2\nthe qqqq\n", "do not belong together"),
        ("tokenizer.json", "", "tokenizer.json is damaged, it is no JSON"),
        ("tokenizer.json", "\udcff", "tokenizer.json is damaged, it is no JSON"),
        ("tokenizer.json", "{}", "not a tokenizer.json in Hugging Face's form"),
        ("tokenizer.json", FILE % '{"type": "New", "vocab": {"a": 0}}', "not a tokenizer.json"),
        ("tokenizer.json", FILE % '{"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}', "not a tokenizer.json"),
        ("tokenizer.json", FILE % '{"type": "WordLevel", "vocab": 7}', "not a tokenizer.json"),
    ],
)
def test_damaged_files(shared_data: Path, tmp_path: Path, name: str, content: str, message: str) -> None:
    for file in ("encoder.json", "vocab.bpe"):
        shutil.copyfile(shared_data / "gpt2_files" / file, tmp_path / file)
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=message):
        get_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt3", r"no tokenizer 'gpt3' \(did you mean gpt2\?\): give gpt2, bytes, or"),
        ("words", "kind words is made from text: run `minilm data train-tokenizer`"),
        ("no/such/tokenizer.json", "no tokenizer 'no/such/tokenizer.json'"),
    ],
)
def test_no_such_tokenizer(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        get_tokenizer(name)


# Other programs' tokenizers


def _foreign(end: str | None) -> Any:
    """A Unigram-like BPE with sentence-piece spaces, as Llama's: the decoder looks around, a space is put in front."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE(unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    special = ["<unk>", *([end] if end else [])]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    library.train_from_iterator(TEXT[:6] * 3, trainer)
    return library


@pytest.mark.parametrize("end", ["</s>", "<eos>", "<|endoftext|>"])
def test_a_foreign_tokenizer(end: str, tmp_path: Path) -> None:
    library = _foreign(end)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = get_tokenizer(tmp_path)
    assert (tokenizer.name, tokenizer.eot, tokenizer.unknown) == ("bpe", library.token_to_id(end), 0)
    assert tokenizer.vocab_size == library.get_vocab_size()
    for text in TEXT:
        ids = tokenizer.encode(text)
        assert tokenizer.eot not in ids
        _check_stream(tokenizer, ids)
        assert tokenizer.encode(text, special=True) == library.encode(text).ids
    assert tokenizer.encode(f"a{end}", special=True)[-1] == tokenizer.eot
    tokenizer.save(tmp_path / "saved")
    assert get_tokenizer(tmp_path / "saved") == tokenizer


def test_a_character_in_several_tokens_is_streamed_whole(tmp_path: Path) -> None:
    """Bytes spelled as tokens, as Llama's tokenizer has them for what it does not know."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    vocab = {token: i for i, token in enumerate(["<unk>", "</s>", "a", *(f"<0x{b:02X}>" for b in range(256))])}
    library = Library(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(["</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = get_tokenizer(tmp_path)
    ids = tokenizer.encode("aéa€")
    stream = tokenizer.stream_decoder()
    assert [stream.push(i) for i in ids] == ["a", "", "é", "a", "", "", "€"]
    assert stream.push(ids[1]) + stream.flush() == "\ufffd"


def test_a_stated_end(tmp_path: Path) -> None:
    _foreign("[END]").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"no end-of-text token that is known or stated: put .*tokenizer_config\.json"):
        get_tokenizer(tmp_path)
    for usual in ("</s>", "<|endoftext|>"):  # a word like any other is no end, whatever its name
        spec = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        spec["model"]["vocab"][usual] = len(spec["model"]["vocab"])
        with pytest.raises(UsageError, match="no end-of-text"):
            get_tokenizer(_write(tmp_path / "word", spec))
    for stated in ("[END]", {"content": "[END]", "special": True}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": stated}))
        assert get_tokenizer(tmp_path).end_token == "[END]"
    get_tokenizer(tmp_path).save(tmp_path / "saved")
    assert get_tokenizer(tmp_path / "saved") == get_tokenizer(tmp_path)


def test_tiktoken_only_where_it_gives_the_same_ids(tmp_path: Path) -> None:
    """Ranks say "abc" is one token; merges make b+c first, after which nothing joins a. The merges are right."""
    vocab = {char: i for i, char in enumerate(vocabulary.byte_chars())}
    merges = ["b c", "a b", "ab c"]
    vocab |= {"bc": 256, "ab": 257, "abc": 258}
    tricky = get_tokenizer(_write(tmp_path, vocabulary.bpe_spec(vocab, merges)))
    assert vocabulary.merges_from_ranks(vocabulary.ranks(tricky.spec)) != merges
    assert isinstance(tricky._engine, engines.LibraryEngine)
    assert tricky.encode("abc") == [ord("a"), 256]

    added = vocabulary.bpe_spec(vocab, ["b c"])
    added["added_tokens"].append({**added["added_tokens"][0], "id": 260, "content": "cab", "special": False})
    assert Tokenizer(added).encode("xcab") == [ord("x"), 260]  # not special: found in plain text

    prefixed = vocabulary.bpe_spec(vocab, ["b c"])
    prefixed["pre_tokenizer"]["add_prefix_space"] = True
    assert Tokenizer(prefixed).encode("bc") == [ord(" "), 256]
    assert Tokenizer(prefixed).fingerprint != Tokenizer(vocabulary.bpe_spec(vocab, ["b c"])).fingerprint


def test_merges_and_options_are_in_the_fingerprint() -> None:
    vocab = {char: i for i, char in enumerate(vocabulary.byte_chars())} | {"ab": 256, "bc": 257}
    specs = [vocabulary.bpe_spec(vocab, merges) for merges in (["a b", "b c"], ["b c", "a b"], ["a b"])]
    for change in ({"normalizer": {"type": "NFC"}}, {"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": None}):
        specs.append({**specs[0], **change})
    specs.append(vocabulary.bpe_spec(vocab, ["a b", "b c"], end="</s>"))
    flagged = json.loads(json.dumps(specs[0]))
    flagged["added_tokens"][0]["lstrip"] = True
    specs.append(flagged)
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["</s>", 0.0], ["a", -1.0]], "byte_fallback": False}
    end = {**specs[0]["added_tokens"][0], "id": 0, "content": "</s>"}
    changes: list[dict[str, object]] = [{}, {"unk_id": None}, {"vocab": [["</s>", 0.0], ["a", -2.0]]}]
    specs += [{**specs[0], "added_tokens": [end], "model": unigram | changed} for changed in changes]
    assert len({vocabulary.fingerprint(spec, 0) for spec in specs}) == len(specs)
    assert Tokenizer({**specs[0], "version": "2", "padding": None}) == Tokenizer(specs[0])


def test_a_run_has_its_steps_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("words", ["Mia saw a red fox. The fox ran."])
    for step in ("step_000002", "step_000004"):
        tokenizer.save(tmp_path / "run" / step)
    assert get_tokenizer(tmp_path / "run").fingerprint == tokenizer.fingerprint
    (tmp_path / "empty" / "step_000002").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no tokenizer"):
        get_tokenizer(tmp_path / "empty")
