"""What turns text into ids, and ids that come one by one into text.

Each engine gives the ids that the tokenizers library gives for the same `tokenizer.json`, and is there because it is
faster: docs/tokenizers.md has the figures.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Protocol

import numpy as np

from minilm.text.vocabulary import Spec

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""GPT-2's split (Radford 2019, encoder.py), possessive so that it never walks back."""


class Engine(Protocol):
    """Turns valid text into ids; special tokens in it are plain text."""

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


class Stream(Protocol):
    """Decodes ids as they come: what `push` and `flush` gave, joined, is `decode` of all ids."""

    def push(self, id: int) -> str:
        """The text that is certain with this id: "" within a character."""

    def flush(self) -> str:
        """What is left, an unfinished character as U+FFFD. The stream may be used again."""


class LibraryEngine:
    """The tokenizers library: the reference for every other engine."""

    def __init__(self, spec: Spec, special: bool) -> None:
        from tokenizers import Tokenizer as Library

        self.library = Library.from_str(json.dumps(spec))
        self.library.no_truncation()
        self.library.no_padding()
        self.library.encode_special_tokens = not special

    def encode(self, text: str) -> list[int]:
        return list(self.library.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.library.encode_batch_fast(texts, add_special_tokens=False)]


class TiktokenEngine:
    """Byte-level BPE by tiktoken, cut where its regular expression would run out of stack."""

    # A run of a million white-space characters before a word makes tiktoken panic. The run's last character begins the
    # next token anyway, so long texts are cut before it. Unicode's White_Space, as the engine's \s has it.
    WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    CUT = re.compile(f"(?<=[{WHITE}])(?=[{WHITE}][^{WHITE}])")
    LONG = 100_000

    def __init__(self, rank: dict[bytes, int]) -> None:
        import tiktoken

        self._encode = tiktoken.Encoding(
            "minilm", pat_str=GPT2_SPLIT, mergeable_ranks=rank, special_tokens={}
        ).encode_ordinary

    def encode(self, text: str) -> list[int]:
        if len(text) <= self.LONG:
            return self._encode(text)
        return list(chain.from_iterable(map(self._encode, self.CUT.split(text))))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        # tiktoken's own batches hand texts to threads one by one, which costs more than a short text itself.
        workers = min(os.cpu_count() or 1, 1 + len(texts) // 16)
        parts = [texts[i * len(texts) // workers : (i + 1) * len(texts) // workers] for i in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            return list(chain.from_iterable(pool.map(lambda part: [self.encode(text) for text in part], parts)))


class GigatokenEngine(TiktokenEngine):
    """The same by gigatoken for whole batches, several times as fast; single texts go to tiktoken. `matches` compares
    the two."""

    def __init__(self, spec: Spec, rank: dict[bytes, int]) -> None:
        import gigatoken

        super().__init__(rank)
        # Without added tokens: the text of a special token is plain text here.
        self._giga = gigatoken.Tokenizer.from_json(json.dumps({**spec, "added_tokens": []}))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return list(self._giga.encode_batch_list(texts))

    def encode_flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        import awkward

        ragged = self._giga.encode_batch(texts)
        return np.asarray(awkward.flatten(ragged), np.uint32), np.asarray(awkward.num(ragged), np.int64)

    def matches(self, texts: list[str]) -> bool:
        """Whether the ids of these texts are tiktoken's."""
        flat, _ = self.encode_flat(texts)
        return bool(np.array_equal(flat, list(chain.from_iterable(map(self.encode, texts)))))


class BytesEngine(Engine):
    def encode(self, text: str) -> list[int]:
        return list(text.encode())


class CharsEngine(Engine):
    """A table from code point to id; its last entry, the unknown id, serves all code points beyond."""

    def __init__(self, vocab: dict[str, int], unknown: int) -> None:
        ids = {ord(char): i for char, i in vocab.items() if len(char) == 1}
        self._table = np.full(max(ids, default=0) + 2, unknown, dtype=np.int64)
        self._table[list(ids)] = list(ids.values())

    def encode(self, text: str) -> list[int]:
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        ids: list[int] = self._table[np.minimum(codes, len(self._table) - 1)].tolist()
        return ids


class WordsEngine(Engine):
    """Words by memo: a space opens a token, so what stands between two spaces always has the same ids."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._first = _Memo(encode, "")
        self._later = _Memo(encode, " ")

    def encode(self, text: str) -> list[int]:
        chunks = text.split(" ")
        later = map(self._later.__getitem__, islice(chunks, 1, None))
        return [*self._first[chunks[0]], *chain.from_iterable(later)]


class _Memo(dict[str, tuple[int, ...]]):
    LIMIT = 1 << 18  # entries: some 60 MB
    LONGEST = 64  # characters

    def __init__(self, encode: Callable[[str], list[int]], before: str) -> None:
        super().__init__()
        self._encode, self._before = encode, before

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        ids = tuple(self._encode(self._before + chunk))
        if len(chunk) <= self.LONGEST:
            if len(self) >= self.LIMIT:
                self.clear()
            self[chunk] = ids
        return ids


class ByteStream:
    def __init__(self, table: list[bytes], check: Callable[[Sequence[int]], None]) -> None:
        self._table, self._check = table, check
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        self._check((id,))
        return self._decoder.decode(self._table[id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """For decoders that look around (spaces dropped at the start, bytes spelled as tokens): the new text is what the
    ids since the last whole text add to it."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._told: list[int] = []
        self._new: list[int] = []

    def push(self, id: int) -> str:
        self._new.append(int(id))
        text = self._rest()
        if text.endswith("\ufffd"):
            return ""
        self._told, self._new = self._new, []
        return text

    def flush(self) -> str:
        text = self._rest()
        self._told, self._new = [], []
        return text

    def _rest(self) -> str:
        told, whole = self._decode(self._told), self._decode(self._told + self._new)
        # Bytes that are no character can spoil those before them, which have been told: then the new ones stand alone.
        return whole[len(told) :] if whole.startswith(told) else self._decode(self._new)
