"""Text to token ids and back: GPT-2's own vocabulary, bytes, characters, words, a BPE trained here, anyone's file.

    tokenizer = get_tokenizer("gpt2")
    tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"

Each is one `tokenizer.json` (`vocabulary.py`) that Hugging Face's libraries read with equal ids; what differs here is
the engine behind it: tiktoken for byte-level BPE, a memo of words, a table of characters, the tokenizers library for
the rest. Special tokens come from text only where asked: `<|endoftext|>` in somebody's document is seven tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np

from minilm import runtime
from minilm.config import nearest
from minilm.errors import MinilmError, UsageError
from minilm.text import tokenizer_engines as engines
from minilm.text import vocabulary
from minilm.text.train_vocabulary import check_text, train_spec
from minilm.text.vocabulary import Spec
from minilm.text.vocabulary_files import download_gpt2, gpt2_folder, read, what_to_put


class Tokenizer:
    """Ids of a text. Equal where the fingerprints are equal.

    name: gpt2, bytes, chars, words, bpe, or the type of another program's model
    vocab_size: highest id + 1
    eot: id of the end-of-text token; `end_token` is its text
    unknown: id for what is outside the vocabulary, None where nothing is
    fingerprint: 16 hexadecimal digits over what decides ids, not over a file's formatting
    """

    def __init__(self, spec: Spec, stated_end: str | None = None) -> None:
        self.spec = spec
        self._ids = vocabulary.token_ids(spec)
        self.end_token = vocabulary.end_token(spec, stated_end)
        self.eot = self._ids[self.end_token]
        self.vocab_size = max(self._ids.values()) + 1
        self.fingerprint = vocabulary.fingerprint(spec, self.eot)
        self.name = vocabulary.kind(spec, self.fingerprint)
        unknown = spec["model"].get("unk_token")
        self.unknown = None if vocabulary.splits_like_gpt2(spec) else self._ids.get(unknown)
        self._bytes = self._token_bytes()
        self._engine = self._make_engine()

    def with_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """The same with more special tokens, whose ids follow; those it has already stay. Ids of text do not change."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        new = [token for token in tokens if token not in self._ids]
        added = [{"id": self.vocab_size + i, "content": token, **flags, "special": True} for i, token in enumerate(new)]
        spec = {**self.spec, "added_tokens": [*(self.spec.get("added_tokens") or []), *added]}
        return Tokenizer(spec, self.end_token)

    def extends(self, other: Tokenizer) -> bool:
        """Whether this is `other` with further special tokens."""
        return other.with_tokens([token for token in self._ids if token not in other._ids]) == self

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`. `special`: the text of a special token becomes its id, not the ids of its characters."""
        check_text(text)
        return self._reader.encode(text) if special else self._engine.encode(text)

    def encode_batch(self, texts: Iterable[str], special: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores where the engine can."""
        texts = list(texts)
        for text in texts:
            check_text(text)
        return self._reader.encode_batch(texts) if special else self._engine.encode_batch(texts)

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`encode_batch` as one array of all ids and the length of each text's: without Python's integers in between,
        which cost more than the encoding where gigatoken does it."""
        for text in texts:
            check_text(text)
        if isinstance(self._engine, engines.GigatokenEngine):
            return self._engine.encode_flat(list(texts))
        all_ids = self._engine.encode_batch(list(texts))
        lengths = np.fromiter(map(len, all_ids), np.int64, len(all_ids))
        return np.fromiter(chain.from_iterable(all_ids), np.int64, int(lengths.sum())), lengths

    def check_sample(self, texts: Sequence[str]) -> None:
        """Compares the fast engine with the slow one. Raises MinilmError where an id differs."""
        if isinstance(self._engine, engines.GigatokenEngine) and not self._engine.matches(list(texts)):
            raise MinilmError("gigatoken gives other ids than tiktoken: pip uninstall gigatoken, and tiktoken does it")

    def decode(self, ids: Iterable[int]) -> str:
        """Text of a list, array or tensor (T,) of ids, special tokens included; broken UTF-8 becomes U+FFFD."""
        flat: list[int] = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        self._check_ids(flat)
        if self._bytes is None:
            return str(self._reader.library.decode(flat, skip_special_tokens=False))
        return b"".join([self._bytes[i] for i in flat]).decode(errors="replace")

    def stream_decoder(self) -> engines.Stream:
        """A decoder for ids that come one at a time."""
        if self._bytes is None:
            return engines.WindowStream(self.decode)
        return engines.ByteStream(self._bytes, self._check_ids)

    def count_unknown(self, ids: Iterable[int]) -> int:
        """How many of `ids` stand for something outside the vocabulary."""
        return 0 if self.unknown is None else sum(i == self.unknown for i in ids)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, and `tokenizer_config.json`, without which transformers takes any tokenizer beside a
        GPT-2 model for GPT-2's. Raises MinilmError where the folder cannot be written."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= {"bos_token": self.end_token, "eos_token": self.end_token}
        if self.unknown is not None:
            config["unk_token"] = next(t for t, i in self._ids.items() if i == self.unknown)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for name, value in (("tokenizer_config.json", config), ("tokenizer.json", self.spec)):
                path = Path(folder) / name
                partial = path.with_name(f"{name}.{os.getpid()}.tmp")
                partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
                partial.replace(path)
        except OSError as error:
            raise MinilmError(f"the tokenizer cannot be saved in {folder}: {error.strerror}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"<Tokenizer {self.name} {self.fingerprint}, {self.vocab_size:,} tokens>"

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Spec, str]]:
        return Tokenizer, (self.spec, self.end_token)  # engines do not pickle; data workers need the tokenizer

    @cached_property
    def _reader(self) -> engines.LibraryEngine:
        return engines.LibraryEngine(self.spec, special=True)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise UsageError(f"token id {wrong} is outside the vocabulary of {self.name} (0 to {self.vocab_size - 1})")

    def _token_bytes(self) -> list[bytes] | None:
        """UTF-8 of each id where a text is the tokens' bytes in a row; None where decoding needs the library."""
        table = [b""] * self.vocab_size
        kind = (self.spec.get("decoder") or {}).get("type")
        if kind not in ("ByteLevel", "Fuse"):
            return None
        byte = {char: i for i, char in enumerate(vocabulary.byte_chars())} if kind == "ByteLevel" else {}
        for token, i in self._ids.items():
            table[i] = bytes(map(byte.__getitem__, token)) if byte.keys() >= set(token) else token.encode()
        return table

    def _make_engine(self) -> engines.Engine:
        if self.name == "bytes":
            return engines.BytesEngine()
        if self.name == "chars":
            return engines.CharsEngine(self.spec["model"]["vocab"], self._ids[vocabulary.UNKNOWN])
        rank = self._ranks()
        if rank is not None:
            return engines.GigatokenEngine(self.spec, rank) if find_spec("gigatoken") else engines.TiktokenEngine(rank)
        library = engines.LibraryEngine(self.spec, special=False)
        return engines.WordsEngine(library.encode) if self.name == "words" else library

    def _ranks(self) -> dict[bytes, int] | None:
        """tiktoken's form of this vocabulary, where it gives the same ids."""
        if not vocabulary.splits_like_gpt2(self.spec):
            return None
        try:
            rank = vocabulary.ranks(self.spec)
        except KeyError:
            return None
        same = self.name == "gpt2" or vocabulary.merges_from_ranks(rank) == vocabulary.merge_list(self.spec)
        return rank if same else None


def get_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer called gpt2 or bytes, or the one in a `tokenizer.json`, in a folder with one or with GPT-2's two
    files, in a run, or of a model in models/.

    Raises UsageError where there is none, naming the files to put and their places.
    """
    if name_or_path == "gpt2":
        return _gpt2()
    if name_or_path == "bytes":
        return Tokenizer(vocabulary.bytes_spec())
    path = Path(name_or_path).expanduser()
    if not path.exists() and (packaged := runtime.packaged(str(name_or_path))) is not None:
        path = packaged
    if path.is_dir() and not (path / "tokenizer.json").exists():  # all steps of a run have the same
        path = next(iter(path.glob("step_*/tokenizer.json")), path)
    if path.exists():
        return _open(path)
    if name_or_path in ("chars", "words", "bpe"):
        raise UsageError(
            f"a tokenizer of kind {name_or_path} is made from text: run `minilm data train-tokenizer`, or give the "
            "folder where its tokenizer.json lies"
        )
    raise UsageError(
        f"there is no tokenizer {str(name_or_path)!r}{nearest(name_or_path, ('gpt2', 'bytes'))}: give gpt2, bytes, or "
        "the path of a tokenizer.json or of its folder"
    )


def _gpt2() -> Tokenizer:
    folder = gpt2_folder()
    if folder is None:
        return Tokenizer(download_gpt2())
    tokenizer = _open(folder)
    if tokenizer.name != "gpt2":
        raise UsageError(f"{folder} holds another vocabulary than GPT-2's: {what_to_put()}")
    return tokenizer


def _open(path: Path) -> Tokenizer:
    spec, stated_end = read(path)
    try:
        return Tokenizer(spec, stated_end)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UsageError(f"{path} is not a tokenizer.json in Hugging Face's form ({str(error)[:200]!r})") from None


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int = 0) -> Tokenizer:
    """A tokenizer made from `texts`.

    kind: chars (their alphabet), words (with punctuation and white space), bpe (byte-level, GPT-2's split)
    vocab_size: all rows, special tokens included; 0 keeps every character or word. A BPE needs 257 or more, and stays
        smaller than asked where the texts have no more pairs that occur twice.
    Raises UsageError for another kind, a size too small, or no text.
    """
    return Tokenizer(train_spec(kind, texts, vocab_size))


Identity = Tokenizer | tuple[str, str] | str
"""A tokenizer, its (name, fingerprint), or its fingerprint alone."""


def check_same(a: Identity, b: Identity, *, a_is: str = "the model", b_is: str = "the data") -> None:
    """Raises UsageError, naming both, where two tokenizers give different ids."""

    def name_and_mark(one: Identity) -> tuple[str, str]:
        if isinstance(one, Tokenizer):
            return one.name, one.fingerprint
        return ("unnamed", one) if isinstance(one, str) else one

    (name_a, mark_a), (name_b, mark_b) = name_and_mark(a), name_and_mark(b)
    if mark_a != mark_b:
        raise UsageError(
            f"{a_is} and {b_is} have different tokenizers: {name_a} (fingerprint {mark_a}) and {name_b} (fingerprint "
            f"{mark_b}); prepare the data with the model's tokenizer.json, or start a model with the data's"
        )
