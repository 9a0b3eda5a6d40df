"""Perplexity by a named protocol, from exact sums and counts, kept together with the protocol that gave it."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from minilm.config import check_fields
from minilm.errors import UsageError
from minilm.evaluation.protocols import TEXTS, WHOLE, WORDS, Protocol, get_protocol, windows
from minilm.evaluation.reference import text_of
from minilm.evaluation.scoring import BATCH_TOKENS, Request, target_nats
from minilm.model.gpt import GPT
from minilm.text.mixture import head
from minilm.text.shards import ShardFolder, Split, open_shards
from minilm.text.tokenizer import Tokenizer, check_same

LN2 = math.log(2.0)


@dataclass(frozen=True)
class Perplexity:
    """One measurement: the sum, the counts and the protocol. Every normalisation follows from them."""

    protocol: Protocol
    """Settled: with the model's own context where it names none."""
    model: str
    data: str
    """What was scored, in words."""
    text_sha256: str
    """Of the original text (of the tokens, for a stream)."""
    tokenizer: str
    """Fingerprint."""
    nats: float
    """Sum of -log p over the scored tokens."""
    n_tokens: int
    """Tokens scored."""
    n_documents: int
    n_words: int
    """As the protocol counts them; 0 here and below: not counted (random windows; a stream's characters)."""
    n_bytes: int
    n_characters: int
    standard_error: float | None = None
    """Of the mean nats per token, where windows were drawn at random."""
    text: str = ""
    """Which published file's text was scored, whole, and in which form. Empty: none, or one that is not known."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens

    @property
    def token_perplexity(self) -> float:
        return _exp(self.nats / self.n_tokens)

    @property
    def word_perplexity(self) -> float:
        return _exp(self.nats / self.n_words) if self.n_words else math.nan

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.n_bytes / LN2 if self.n_bytes else math.nan

    @property
    def bits_per_character(self) -> float:
        return self.nats / self.n_characters / LN2 if self.n_characters else math.nan

    @property
    def value(self) -> float:
        """In the protocol's unit: perplexity per token or word, bits per byte or character."""
        values = {"token": self.token_perplexity, "word": self.word_perplexity, "byte": self.bits_per_byte}
        return values.get(self.protocol.unit, self.bits_per_character)

    @property
    def measure(self) -> str:
        """What `value` is."""
        unit = self.protocol.unit
        return f"perplexity per {unit}" if unit in ("token", "word") else f"bits per {unit}"

    def check_counted(self) -> None:
        """Raises UsageError where what the protocol's unit divides by is 0 or was not counted."""
        unit = self.protocol.unit
        if not {"token": self.n_tokens, "word": self.n_words, "byte": self.n_bytes}.get(unit, self.n_characters):
            raise UsageError(f"the {unit}s of {self.data} are none or were not counted: choose another unit")

    def check_alike(self, other: Perplexity) -> None:
        """Raises UsageError, naming what differs, where the two numbers are not comparable."""
        differ = self.protocol.differences(other.protocol)  # of data and split the text itself decides
        unlike = {name: f"{a!r} and {b!r}" for name, (a, b) in differ.items() if name not in ("data", "split")}
        if self.text_sha256 != other.text_sha256:
            unlike["the text"] = f"{self.data} and {other.data}"
        if self.tokenizer != other.tokenizer and self.protocol.unit == "token":
            unlike["the tokenizer (per token)"] = f"{self.tokenizer} and {other.tokenizer}"
        if unlike:
            listed = "; ".join(f"{name}: {pair}" for name, pair in unlike.items())
            how = ", and per byte (--unit byte)" if "the tokenizer (per token)" in unlike else ""
            raise UsageError(f"the two numbers were not measured alike ({listed}): measure both by one protocol{how}")

    def to_json(self) -> str:
        """`value` is null where it is too large for a number; the nats are there all the same."""
        values = {"value": self.value if math.isfinite(self.value) else None, **asdict(self)}
        return json.dumps(values, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Perplexity:
        """Raises UsageError where the text is none that `to_json` wrote, or its counts are none."""
        try:
            raw: dict[str, Any] = json.loads(text)
            raw.pop("value")
            found = cls(**raw | {"protocol": Protocol(**raw["protocol"])})
            check_fields(found)
            if found.n_tokens < 1 or min(found.n_words, found.n_bytes, found.n_characters) < 0:
                raise ValueError("its counts are none")
            if not 0 <= found.nats < math.inf:
                raise ValueError(f"nats are {found.nats}")
            return found
        except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
            raise UsageError(f"this is no stored perplexity ({error}): measure it again") from None

    def __str__(self) -> str:
        spread = ""
        if self.standard_error is not None:
            spread = f" (nats per token {self.nats_per_token:.4f}, standard error {self.standard_error:.4f})"
        lines = [
            f"{self.measure}: {self.value:.4f}{spread}",
            f"  {self.model} on {self.data}{f' ({self.text}, whole)' if self.text else ''}",
            f"  protocol {self.protocol}",
            f"  {self.n_tokens:,} tokens scored of {self.n_documents:,} documents, {self.nats:.2f} nats",
        ]
        known = [f"perplexity per token {self.token_perplexity:.4f}"]
        known += [f"per word {self.word_perplexity:.4f}"] if self.n_words else []
        known += [f"per byte {_exp(self.nats / self.n_bytes):.4f}"] if self.n_bytes else []
        known += [f"bits per byte {self.bits_per_byte:.4f}"] if self.n_bytes else []
        known += [f"per character {self.bits_per_character:.4f}"] if self.n_characters else []
        return "\n".join([*lines, f"  the same sum: {', '.join(known)}"])


class Part(NamedTuple):
    """The targets of one window."""

    document: int
    """Its number where documents are scored each by itself, else 0."""
    nats: np.ndarray
    """-log p of each target, fp32."""
    targets: np.ndarray
    """Their ids."""
    context: np.ndarray
    """Tokens that the model read before each."""


def perplexity(
    model: GPT,
    text_or_shards: str | Sequence[str] | Path | ShardFolder,
    protocol: str | Protocol = "minilm",
    *,
    tokenizer: Tokenizer | None = None,
    model_name: str = "model",
    data_name: str = "",
    batch_tokens: int = BATCH_TOKENS,
    max_tokens: int = 0,
    parts: list[Part] | None = None,
    seconds: list[float] | None = None,
    **changes: Any,
) -> Perplexity:
    """How well a model predicts a text. `str()` of it is the report.

    text_or_shards: a text, several (documents, whose order counts), or a prepared folder, of which the protocol's split
    is read. tokenizer: the model's; needed for text, compared with the shards'. protocol: a name or a value; changes:
    fields of it that shall differ. batch_tokens: read at once; it changes speed only. max_tokens: of shards, only so
    many of their first tokens (0: all), which is another text than the whole; no more random windows than have so many.
    parts: a list that each window's scores are added to, in order. seconds: a list that the time of scoring is added
    to, without tokenizing and after a first batch that is not timed.

    Raises UsageError on an empty or too short text, one without what the protocol divides by, shards of another
    tokenizer, or a context that the model cannot read.
    """
    settled = get_protocol(protocol, **changes).settled(model.config.block_size)
    if not isinstance(text_or_shards, Path | ShardFolder):
        settled = replace(settled, split=WHOLE)
    if max_tokens and settled.random_windows * settled.context > max_tokens:
        settled = replace(settled, random_windows=max(2, max_tokens // settled.context))
    source = _Source.of(text_or_shards, settled, tokenizer, data_name, max_tokens)
    counts = source.counts(settled)
    source.check_counts(settled, counts)
    how: dict[str, Any] = {"batch_tokens": batch_tokens, "precision": settled.precision}
    if seconds is not None:
        first = islice(source.requests(settled), max(1, batch_tokens // settled.context))
        list(target_nats(model, (request for _, request in first), **how))
    start = time.perf_counter()
    requests, owners = tee(source.requests(settled))
    total, count, means = 0.0, 0, list[float]()
    n_total = settled.random_windows * settled.context or source.n_tokens
    with tqdm(total=n_total, unit="tok", unit_scale=True, disable=not sys.stderr.isatty(), leave=False) as bar:
        found = target_nats(model, (r for _, r in requests), **how)
        for (document, request), part in zip(owners, found, strict=True):
            total += float(part.sum(dtype=np.float64))
            count += len(part)
            bar.update(len(part))
            if settled.random_windows:
                means.append(float(part.mean(dtype=np.float64)))
            if parts is not None:
                context = np.arange(request.scored, len(request.ids))
                parts.append(Part(document, part, request.ids[request.scored :], context))
    if seconds is not None:
        seconds.append(time.perf_counter() - start)
    if count == 0:
        raise UsageError(f"{source.name} has {source.n_tokens} tokens, too few to score one: give a longer text")
    error = float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return Perplexity(
        protocol=settled,
        model=model_name,
        data=source.name,
        text_sha256=source.sha256,
        tokenizer=source.fingerprint,
        nats=total,
        n_tokens=count,
        n_documents=source.n_documents,
        n_words=counts[0],
        n_bytes=counts[1],
        n_characters=counts[2],
        standard_error=error,
        text=text_of(source.name, source.original),
    )


@dataclass
class _Source:
    """What is scored: token sequences, and the text that they came from."""

    name: str
    fingerprint: str
    eot: int
    sha256: str
    n_documents: int
    original: list[str]
    changed: list[str]
    ids: list[np.ndarray]
    split: Split | None = None
    n_bytes: int = 0
    n_words: int = 0

    @classmethod
    def of(
        cls,
        given: str | Sequence[str] | Path | ShardFolder,
        protocol: Protocol,
        tokenizer: Tokenizer | None,
        name: str,
        max_tokens: int = 0,
    ) -> _Source:
        if isinstance(given, Path):
            given = open_shards(given)
        if isinstance(given, ShardFolder):
            return cls._of_shards(given, protocol, tokenizer, name, max_tokens)
        if tokenizer is None:
            raise UsageError("text needs the model's tokenizer: pass tokenizer=")
        if protocol.documents == "stream":
            raise UsageError(f"protocol {protocol.name} reads prepared data as it is: give a prepared folder")
        if max_tokens and not protocol.random_windows:
            raise UsageError(
                "--eval_tokens (max_tokens) counts tokens of prepared data: prepare the text, or leave it out"
            )
        return cls._of_texts([given] if isinstance(given, str) else list(given), protocol, tokenizer, name or "text")

    @classmethod
    def _of_texts(cls, texts: list[str], protocol: Protocol, tokenizer: Tokenizer, name: str) -> _Source:
        original = ["".join(texts)] if protocol.documents == "joined" else texts
        changed = [TEXTS[protocol.text](text) for text in original]
        ids = [np.array(one, np.int64) for one in tokenizer.encode_batch(changed)]
        sha256 = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
        return cls(name, tokenizer.fingerprint, tokenizer.eot, sha256, len(texts), original, changed, ids)

    @classmethod
    def _of_shards(
        cls, shards: ShardFolder, protocol: Protocol, tokenizer: Tokenizer | None, name: str, max_tokens: int
    ) -> _Source:
        if protocol.split not in shards.splits:
            raise UsageError(
                f"{shards.folder} has no split {protocol.split!r}, which protocol {protocol.name} reads: choose "
                f"another of {', '.join(shards.splits)}"
            )
        split, meta, counts = shards.splits[protocol.split], shards.meta, shards.meta.splits[protocol.split]
        name = name or f"{meta.name}, {protocol.split}"
        cut = 0 < max_tokens < split.n_tokens
        if cut:
            split, name = head(split, max_tokens), f"{name}, first {max_tokens:,} tokens"
        theirs = shards.tokenizer()
        if protocol.documents == "stream":
            if tokenizer is not None:
                check_same(tokenizer, theirs)
            sums = hashlib.sha256("".join([*(shard.sha256 for shard in counts.shards), name * cut]).encode())
            whole = split.n_tokens == sum(shard.tokens for shard in counts.shards)  # not so where data is mixed
            known = (counts.bytes, counts.words) if whole and not cut else (0, 0)
            return cls(
                name, theirs.fingerprint, theirs.eot, sums.hexdigest(), split.n_documents, [], [], [], split, *known
            )  # fmt: skip
        documents = [split.document(i) for i in range(split.n_documents)]
        texts = [theirs.decode(ids) for ids in documents]
        if theirs.unknown is not None and any(map(theirs.count_unknown, documents)):
            raise UsageError(
                f"{shards.folder} was prepared with a vocabulary that lacks some of its words, so its text cannot be "
                "had back: prepare it with another tokenizer, or give the text"
            )
        return cls._of_texts(texts, protocol, tokenizer or theirs, name)

    @property
    def n_tokens(self) -> int:
        return self.split.n_tokens if self.split else sum(map(len, self.ids))

    def requests(self, protocol: Protocol) -> Iterator[tuple[int, Request]]:
        """Each with the number of its document, or 0 where all are one text."""
        if protocol.random_windows:
            yield from ((0, request) for request in self._random(protocol))
        elif self.split is not None:
            for window in windows(protocol, self.split.n_tokens):
                ids = self.split.read(window.begin, window.end - window.begin)
                yield 0, Request(ids, window.scored - window.begin)
        else:
            for document, one in enumerate(self.ids):
                ids = np.append(self.eot, one) if protocol.first == "after_eot" else one
                for window in windows(protocol, len(ids)):
                    yield document, Request(ids[window.begin : window.end], window.scored - window.begin)

    def _random(self, protocol: Protocol) -> Iterator[Request]:
        n = protocol.context + 1
        if self.n_tokens < n:
            raise UsageError(f"{self.name} has {self.n_tokens} tokens, fewer than a window of {n}: give a longer text")
        starts = np.random.default_rng(0).integers(self.n_tokens - n + 1, size=protocol.random_windows)
        for start in starts.tolist():
            yield Request(self.split.read(start, n) if self.split else self.ids[0][start : start + n], 1)

    def counts(self, protocol: Protocol) -> tuple[int, int, int]:
        """Words, bytes and characters; 0 where they are not counted."""
        if protocol.random_windows:
            return 0, 0, 0
        if self.split is not None:
            return self.n_words, self.n_bytes, 0
        texts = self.original if protocol.counted == "original" else self.changed
        count = WORDS[protocol.words]
        return sum(map(count, texts)), sum(len(text.encode()) for text in texts), sum(map(len, texts))

    def check_counts(self, protocol: Protocol, counts: tuple[int, int, int]) -> None:
        """Raises UsageError where the number that the protocol's unit divides by is 0 or not known."""
        if protocol.unit == "token" or counts[("word", "byte", "character").index(protocol.unit)] > 0:
            return
        if self.split is not None:
            raise UsageError(
                f"the {protocol.unit}s of {self.name} are not counted, as of every part or mixture of prepared data: "
                "score all of it, choose --unit token, or read it as text by another protocol than a stream's"
            )
        raise UsageError(
            f"{self.name} has no {protocol.unit} that protocol {protocol.name} counts: give a longer text, or choose "
            "--unit token"
        )


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
