"""Several data sets as one: `wikitext103:0.7,imdb:0.3`, by weight; without weights by size or a power of it.

The weight stands behind the last colon, so options keep theirs: `tales:level=2,style=fable:0.5,imdb:0.5`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minilm.errors import UsageError
from minilm.text.shards import Shard, ShardFolder, Split, open_shards
from minilm.text.tokenizer import check_same

PART = re.compile(r"(?P<name>.*?)(?::(?P<weight>\d+(?:\.\d*)?|\.\d+))?", re.DOTALL)
VAL_SHARE_TOKENS = 1 << 20  # of each source's validation text, its weight's share of this


@dataclass(frozen=True)
class Part:
    """One data set of a mixture. weight None: by its size."""

    name: str
    weight: float | None

    def __str__(self) -> str:
        return self.name if self.weight is None else f"{self.name}:{self.weight:g}"


@dataclass(frozen=True)
class MixedFolder(ShardFolder):
    """Prepared folders read as one. `splits` joins theirs, the validation texts in proportion to the weights;
    `sources` are the training splits, of `weights`."""

    sources: tuple[Split, ...] = ()
    weights: tuple[float, ...] = ()


def parse_mixture(data: str) -> list[Part]:
    """The parts of what `--data` names; one for a single data set or an existing path. Raises UsageError for a weight
    of zero and for weights on some parts only."""
    if Path(data).expanduser().exists():
        return [Part(data, None)]
    parts = []
    for text in re.split(r",(?!\w+=)", data):
        found = PART.fullmatch(text.strip())
        assert found is not None  # the pattern takes anything
        weight = float(found["weight"]) if found["weight"] else None
        if weight == 0 or not found["name"]:
            raise UsageError(f"{text!r} in --data {data} is no name with a weight above 0: write a:0.7,b:0.3")
        parts.append(Part(found["name"], weight))
    if len({part.weight is None for part in parts}) > 1:
        raise UsageError(f"--data {data} gives some weights and not others: give all of them, or none for by size")
    if len(parts) == 1 and parts[0].weight is not None:
        raise UsageError(f"--data {data} mixes one data set: leave out its weight, or add others behind a comma")
    return parts


def prepare_mixture(data: str, tokenizer: str | None = None, **settings: Any) -> str:
    """Prepares every part with one tokenizer (where none is given, that of the first) and returns what `open_data`
    takes: the folders, with their weights. Raises as `prepare` does, and UsageError for a source of several parts."""
    from minilm.text.folders import is_prepared
    from minilm.text.prepare import prepare

    parts = parse_mixture(data)
    if len(parts) > 1 and settings.get("source"):
        raise UsageError("--source is of one data set: prepare each part first, and name the folders in --data")
    prepared: list[Part] = []
    settings["tokens"] = code_tokens(parts, settings.get("control_codes", "off")) if len(parts) > 1 else ()
    for part in parts:
        its_own = len(parts) > 1 and is_prepared(part.name)
        folder = prepare(part.name, tokenizer=None if its_own else tokenizer, **settings)
        tokenizer = tokenizer if tokenizer or len(parts) == 1 else str(folder)
        prepared.append(Part(os.path.relpath(folder), part.weight))
    return ",".join(map(str, prepared))


def code_tokens(parts: Sequence[Part], control_codes: str) -> tuple[str, ...]:
    """The tokens that the control codes of all parts need, so that every part gains the same."""
    from minilm.text.folders import slug
    from minilm.text.jobs import code_token
    from minilm.text.scripts import known_datasets, load_dataset, split_name

    codes: set[str] = set()
    for part in parts:
        name, _ = split_name(part.name)
        if control_codes == "source_tokens":
            codes.add(name if name in known_datasets() else slug(Path(name).expanduser().absolute().stem))
        elif control_codes == "label_tokens" and name in known_datasets():
            codes.update(load_dataset(name).labels)
    return tuple(sorted(map(code_token, codes)))


def open_data(data: str, temperature: float = 1.0) -> ShardFolder:
    """The prepared folder, or a MixedFolder of several. `temperature`: of weights that are not given, size ** (1 /
    temperature); 1 is by size, infinity would be equal shares. Raises UsageError where tokenizers differ."""
    parts = parse_mixture(data)
    if len(parts) == 1:
        return open_shards(parts[0].name)
    folders = [open_shards(part.name) for part in parts]
    first = folders[0]
    for folder in folders[1:]:
        a, b = ((one.meta.tokenizer, one.meta.fingerprint) for one in (first, folder))
        check_same(a, b, a_is=str(first.folder), b_is=str(folder.folder))
    trains = tuple(folder.splits["train"] for folder in folders)
    given = [part.weight for part in parts if part.weight is not None]
    weights = given or [split.n_tokens ** (1 / temperature) for split in trains]
    shares = tuple(weight / sum(weights) for weight in weights)
    vals = [
        head(folder.splits["val"], max(2, int(share * VAL_SHARE_TOKENS)))
        for folder, share in zip(folders, shares, strict=True)
        if "val" in folder.splits
    ]
    whole = Split([shard for train in trains for shard in train.shards], trains[0].vocab_size)
    splits = {"train": whole} | ({"val": interleaved(vals)} if vals else {})
    return MixedFolder(first.folder, first.meta, splits, trains, shares)


class Window(Shard):
    """Part of a shard, as a shard of its own."""

    def __init__(self, shard: Shard, start: int, n_tokens: int) -> None:
        self._shard, self._start = shard, start  # which keeps the file open
        self.path, self.dtype, self.n_tokens = shard.path, shard.dtype, n_tokens
        self.vocab_size, self.eot = shard.vocab_size, shard.eot
        self.n_documents = len(self.starts)

    def read(self, start: int, n: int) -> np.ndarray:
        return self._shard.read(self._start + start, n)

    @property
    def starts(self) -> np.ndarray:
        inside = np.asarray(self._shard.starts, np.int64) - self._start
        return inside[(inside >= 0) & (inside < self.n_tokens)]


def head(split: Split, n_tokens: int) -> Split:
    """The first n_tokens of a split."""
    shards: list[Shard] = []
    for shard in split.shards:
        if (left := n_tokens - sum(one.n_tokens for one in shards)) > 0:
            shards.append(Window(shard, 0, min(left, shard.n_tokens)))
    return Split(shards, split.vocab_size)


def interleaved(splits: Sequence[Split], n_turns: int = 64) -> Split:
    """The splits in turns, each turn with an equal share of every split, so that the first tokens hold all of them."""
    shards: list[Shard] = []
    for turn in range(n_turns):
        for split in splits:
            base = 0
            begin, end = (split.n_tokens * k // n_turns for k in (turn, turn + 1))
            for shard in split.shards:
                low, high = max(begin - base, 0), min(end - base, shard.n_tokens)
                if low < high:
                    shards.append(Window(shard, low, high - low))
                base += shard.n_tokens
    return Split(shards, splits[0].vocab_size)
