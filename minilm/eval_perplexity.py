"""What `minilm eval` does by protocols: one perplexity, or all of them beside what others published."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.errors import MinilmError, UsageError
from minilm.eval_cli import loaded
from minilm.log import say

if TYPE_CHECKING:
    from minilm.evaluation.perplexity import Part, Perplexity
    from minilm.evaluation.protocols import Protocol
    from minilm.model.gpt import GPT
    from minilm.text.shards import ShardFolder
    from minilm.text.tokenizer import Tokenizer

FIELDS = ("split", "text", "documents", "first", "context", "stride", "unit")
"""Of a protocol, that options change."""


def measure(options: argparse.Namespace) -> int:
    """Prints a perplexity, or a table of all."""
    from minilm.compare_cli import check_file, check_picture, told
    from minilm.evaluation.breakdown import breakdown, draw
    from minilm.evaluation.protocols import PROTOCOLS
    from minilm.evaluation.reference import beside

    check_file("--out", options.out)
    check_picture(options.picture)
    protocols = _protocols(options, list(PROTOCOLS)) if options.all else {}
    protocol = protocol_of(options) if not options.all else None
    options.precision = "fp32"  # the protocol's is autocast's
    model, tokenizer = loaded(options, options.model)
    if protocol is not None:
        parts: list[Part] | None = [] if options.breakdown or options.picture else None
        found = _measured(options, model, tokenizer, protocol, data_for(options, protocol), parts)
        others = beside(found)
        text = f"{found}\n  published: {others}" if others else str(found)
        print(found.to_json() if options.json else text)
        if parts is not None:
            divided = breakdown(parts, protocol.documents == "each")
            if options.breakdown:
                print(divided)
        if options.out:
            Path(options.out).write_text(found.to_json() + "\n", encoding="utf-8")
        if parts is not None and options.picture:
            draw({options.model: divided}, options.picture)
        return 0
    notes = [f"{options.model}, {model.num_params():,} parameters"]
    print(told(_all(options, model, tokenizer, protocols), notes, options.format, keys=("rows", "notes")))
    return 0


def _protocols(options: argparse.Namespace, names: list[str]) -> dict[str, Protocol | UsageError]:
    """Each as the options change it, or why it cannot be. Raises UsageError where none can."""
    found: dict[str, Protocol | UsageError] = {}
    for name in names:
        try:
            found[name] = protocol_of(options, name)
        except UsageError as error:
            found[name] = error
    errors = [one for one in found.values() if isinstance(one, UsageError)]
    if len(errors) == len(found):
        raise errors[0]
    return found


def _all(
    options: argparse.Namespace, model: GPT, tokenizer: Tokenizer, protocols: dict[str, Protocol | UsageError]
) -> list[dict[str, Any]]:
    """A row for every protocol and benchmark: our number in its unit, the same sum in other units, what others
    published of this model; or why there is none. Raises UsageError where there is none at all."""
    from minilm.eval_benchmark import called, figures_of
    from minilm.evaluation.benchmark_files import benchmark_file
    from minilm.evaluation.benchmarks import READERS, read_questions, run
    from minilm.evaluation.reference import beside

    rows: list[dict[str, Any]] = []
    n_measured = 0

    def row(name: str, ours: str, measure: str = "", others: str = "", **more: str) -> None:
        units = dict.fromkeys(("per token", "per word", "bits per byte"), "") | more
        rows.append({"protocol": name, "ours": ours, "measure": measure, **units, "published": others})
        say(f"{name}: {ours} {measure}")

    for key, protocol in protocols.items():
        try:
            if isinstance(protocol, UsageError):
                raise protocol
            found = _measured(options, model, tokenizer, protocol, data_for(options, protocol))
        except MinilmError as error:
            row(key if isinstance(protocol, UsageError) else protocol.name, "-", f"({error})")
            continue
        n_measured += 1
        units = {"per token": f"{found.token_perplexity:.4f}"}
        units |= {"per word": f"{found.word_perplexity:.4f}"} if found.n_words else {}
        units |= {"bits per byte": f"{found.bits_per_byte:.4f}"} if found.n_bytes else {}
        spread = found.standard_error
        measure = f"{found.measure}{'' if spread is None else f' (standard error {spread:.4f} nats)'}"
        row(protocol.name, f"{found.value:.4f}", measure, beside(found), **units)
    for name in READERS:
        try:
            asked = read_questions(name, _copy_of(options, name) or benchmark_file(name), options.limit)
            answered = run(name, model, tokenizer, asked, model_name=options.model)
        except MinilmError as error:
            row(name, "-", f"({error})")
            continue
        n_measured += 1
        for measure, value in answered.measures.items():
            row(name, f"{value:.2f}", called(measure), "; ".join(map(str, figures_of(answered, measure))))
    if not n_measured:
        raise UsageError("no protocol could be measured: the reasons stand above")
    return rows


def protocol_of(options: argparse.Namespace, name: str = "") -> Protocol:
    """The protocol of that name (`--protocol`'s), changed as the options say."""
    from minilm.evaluation.protocols import get_protocol

    changes = {field: getattr(options, field) for field in FIELDS}
    precision = None if options.precision == "auto" else options.precision
    return get_protocol(name or options.protocol, precision=precision, **changes)


def _measured(
    options: argparse.Namespace,
    model: GPT,
    tokenizer: Tokenizer,
    protocol: Protocol,
    data: str,
    parts: list[Part] | None = None,
) -> Perplexity:
    from minilm.evaluation.perplexity import perplexity

    copy = _copy_of(options, data) if options.all else options.source
    source, name = read_data(data, protocol, tokenizer, copy, options.split)
    protocol = replace(protocol, data=name if isinstance(source, list) else protocol.data and source.meta.name)
    return perplexity(
        model, source, protocol, tokenizer=tokenizer, model_name=options.model, data_name=name, parts=parts,
        max_tokens=options.eval_tokens,
    )  # fmt: skip


def _copy_of(options: argparse.Namespace, name: str) -> str | None:
    """Of a data set or benchmark in the folder --source, under its name; None: download."""
    copy = Path(options.source or "", name)
    return str(copy) if options.source and copy.exists() else None


def data_for(options: argparse.Namespace, protocol: Protocol) -> str:
    """`--data`, else the protocol's own data set, else what the run was trained on. Of all protocols, those for a data
    set are measured on it, whatever `--data` says: elsewhere their figures mean nothing."""
    from minilm.eval_tales import run_data

    if options.data and not (getattr(options, "all", False) and protocol.data):
        return str(options.data)
    if protocol.data:
        return protocol.data
    folder = run_data(options.model)
    if folder is None:
        raise UsageError(f"protocol {protocol.name} is for any text: name it with --data")
    return str(folder)


def read_data(
    data: str, protocol: Protocol, tokenizer: Tokenizer, source: str | None, split: str | None = None
) -> tuple[ShardFolder | list[str], str]:
    """What a protocol scores, and for text what it is called: a prepared folder; a file or folder of text, whole; or a
    data set, prepared as bytes, which give any tokenizer its text back, or for a stream with the model's tokenizer.
    split: that was asked for, which text does not have."""
    from minilm.text.prepare import prepare
    from minilm.text.scripts import known_datasets, split_name
    from minilm.text.shards import open_shards
    from minilm.text.sources import Files
    from minilm.text.userfiles import read_documents

    path = Path(data).expanduser()
    if (path / "meta.json").is_file():
        return open_shards(path), ""
    if split_name(data)[0] not in known_datasets() and path.exists() and protocol.documents != "stream":
        if split:
            raise UsageError(f"{data} is text, which has no split {split!r}: leave out --split")
        return list(read_documents(Files.at(path))), str(data)
    if protocol.documents != "stream":
        return open_shards(prepare(data, tokenizer="bytes", source=source)), ""
    return open_shards(prepare(data, tokenizer=saved(tokenizer), source=source)), ""


def saved(tokenizer: Tokenizer) -> str:
    """What `prepare` takes for a tokenizer: its name, or a folder named by its fingerprint that it is saved in."""
    from minilm.text.folders import data_folder

    if tokenizer.name in ("gpt2", "bytes"):
        return tokenizer.name
    folder = data_folder() / "tokenizers" / tokenizer.fingerprint
    if not (folder / "tokenizer.json").is_file():
        tokenizer.save(folder)
    return str(folder)
