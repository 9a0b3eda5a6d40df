"""The text of a cell: tales by their options, several kinds of them as sources, or text that every Python brings along;
as it is, or changed.

| vocabulary | "base": the tokenizer of the base's data; megabytes or options: that of such tales; so losses compare |
| parts | options on top of the others, of one source each; `weight`: its share of the batches, by size without |
| in_turn | the sources one after the other, as one text |
| noise | share of training tokens that are drawn anew from all tokens of the text, once |
| codes | False: without the control code that a story of a style begins with |
| local | `manual` (of Python), `code` (of its library), `packages` (what they say of themselves), instead of tales |
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from minilm.lab.places import Places
from minilm.text.folders import data_folder, replacing
from minilm.text.prepare import prepare
from minilm.text.scripts import load_dataset
from minilm.text.shard_format import SplitMeta, write_meta
from minilm.text.shard_writer import ShardWriter
from minilm.text.shards import ShardFolder, open_shards
from minilm.text.tales.grammar import grammar
from minilm.text.tokenizer import Tokenizer

OWN = ("tokenizer", "vocabulary", "fingerprint", "parts", "in_turn", "noise", "codes")
STYLES = ("plain", "fable", "news", "letter", "diary", "dialogue")
Options = tuple[tuple[str, Any], ...]


def sources_of(data: Mapping[str, Any]) -> list[Options]:
    """The options of each source."""
    whole = {name: value for name, value in data.items() if name not in OWN}
    return [tuple(sorted({**whole, **part}.items() - {("weight", part.get("weight"))})) for part in _parts(data)]


def _parts(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(data.get("parts") or [{}])


@cache
def fingerprint(options: Options) -> str:
    """Tells this text from what another version of minilm, or of Python, would have."""
    given = dict(options)
    if "local" in given:
        return hashlib.sha256("\0".join(local(given["local"])).encode()).hexdigest()
    tales = load_dataset("tales")
    assert tales.made is not None
    return tales.made(**tales.check_options(given)).fingerprint


def prepared(data: Mapping[str, Any], base_data: ShardFolder | None, places: Places) -> str:
    """What `open_data` takes: the folder of a cell's shards, or several with their weights."""
    tokenizer, vocabulary = data["tokenizer"], data.get("vocabulary")
    if vocabulary == "base":
        assert base_data is not None
        tokenizer = str(base_data.folder)
    with places.lock("data"):
        work, at = str(places.work), os.environ.get("MINILM_DATA", "")
        if isinstance(vocabulary, float | Mapping):
            more = vocabulary if isinstance(vocabulary, Mapping) else {"megabytes": vocabulary}
            tokenizer = str(_prepare(tokenizer, sources_of({**data, **more, "parts": None})[0], work, at))
        folders = [_prepare(tokenizer, options, work, at) for options in sources_of(data)]
        changes = {name: data[name] for name in ("in_turn", "noise", "codes") if name in data}
        if data.get("in_turn"):
            return str(_changed(folders, changes))
        folders = [_changed([folder], changes) for folder in folders] if changes else folders
        weights = [f":{part['weight']:g}" if "weight" in part else "" for part in _parts(data)]
        return ",".join(f"{folder}{weight}" for folder, weight in zip(folders, weights, strict=True))


@cache
def _prepare(tokenizer: str, options: Options, work: str, data_folder: str) -> Path:
    given = dict(options)
    if "local" not in given:
        return prepare("tales", tokenizer=tokenizer, **given)
    folder = Path(work) / "texts" / f"{given['local']}-{given['megabytes']:g}"
    folder.mkdir(parents=True, exist_ok=True)
    left = 1e6 * given["megabytes"]
    for i, text in enumerate(local(given["local"])):
        if left > 0:
            (folder / f"{i:04}.txt").write_text(text[: int(left)], encoding="utf-8")
        left -= len(text)
    return prepare(folder, tokenizer=tokenizer)


@cache
def local(name: str) -> tuple[str, ...]:
    """Documents of a text that every Python brings along, always in the same order."""
    if name == "manual":
        from pydoc_data.topics import topics

        return tuple(text for _, text in sorted(topics.items()))
    if name == "packages":
        return tuple(sorted({text for made in distributions() if (text := made.read_text("METADATA"))}))
    return tuple(path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py")))


def _changed(folders: list[Path], changes: dict[str, Any]) -> Path:
    """A prepared folder of these folders' documents in turn, changed."""
    key = hashlib.sha256(f"{[str(f) for f in folders]} {sorted(changes.items())}".encode()).hexdigest()[:16]
    folder = data_folder() / f"lab-{key}"
    if (folder / "meta.json").is_file():
        return folder
    sources = [open_shards(one) for one in folders]
    tokenizer = sources[0].tokenizer()
    with replacing(folder) as temporary:
        splits = {split: _write(temporary, split, sources, tokenizer, changes) for split in sources[0].splits}
        tokenizer.save(temporary)
        write_meta(temporary, replace(sources[0].meta, splits=splits))
    return folder


def _write(
    folder: Path, split: str, sources: list[ShardFolder], tokenizer: Tokenizer, changes: dict[str, Any]
) -> SplitMeta:
    writer, rng, n_bytes, n_words = ShardWriter(folder, split, tokenizer=tokenizer), np.random.default_rng(0), 0, 0
    noise = changes.get("noise", 0.0) if split == "train" else 0.0
    for source in sources:
        text = source.splits[split]
        drawn = np.concatenate([text.document(i) for i in range(text.n_documents)]) if noise else None
        for i in range(text.n_documents):
            ids = text.document(i)
            if not changes.get("codes", True):
                story = tokenizer.decode(ids.tolist())
                code = story.removesuffix(without_code(story)).rstrip()
                ids = ids[len(tokenizer.encode(code)) :]  # the blank behind it stays: " Long" is in the vocabulary
            if drawn is not None:
                ids = np.where(rng.random(len(ids)) < noise, rng.choice(drawn, len(ids)), ids)
            told = tokenizer.decode(ids.tolist())
            n_bytes, n_words = n_bytes + len(told.encode()), n_words + len(told.split())
            writer.add(ids)
    return writer.close(n_bytes=n_bytes, n_words=n_words)


def without_code(text: str) -> str:
    """A story without the code of its style."""
    codes = [code for style in STYLES[1:] if (code := grammar(1, style).code) and text.startswith(code)]
    return text.removeprefix(codes[0]) if codes else text
