"""`minilm compare A B ...`: models on the same text by the same protocol, with what each costs."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.command_line import Parser, whole
from minilm.errors import UsageError
from minilm.eval_cli import loaded
from minilm.log import plain, say
from minilm.picture import NEEDS_MATPLOTLIB

if TYPE_CHECKING:
    import numpy as np

    from minilm.evaluation.compare import Difference
    from minilm.evaluation.compare_picture import Compared
    from minilm.evaluation.paired_texts import TextDifference
    from minilm.evaluation.protocols import Protocol
    from minilm.model.gpt import GPT
    from minilm.text.tokenizer import Tokenizer

PROMPT_WORDS = 8
WIDEST = 9  # columns

KEYS = ("models", "notes")


def main(argv: Sequence[str] | None = None) -> int:
    """Compares the models that the command line names with the first; returns the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    if len(options.models) < 2:
        raise UsageError("name two models or more, or two files that `minilm eval --out` wrote")
    stored = [_is_stored(name) for name in options.models]
    if any(stored):
        if not all(stored):
            raise UsageError("stored results cannot be compared with models: name either all files or all models")
        return _stored(options)
    check_picture(options.picture)
    found = _measured(options)
    differences: list[Difference | TextDifference] = [*found.differences, *found.texts]
    print(told(found.costs, [*map(str, differences)], options.format, keys=KEYS, differences=differences))
    if options.picture:
        from minilm.evaluation.compare_picture import draw

        draw(found, options.picture)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises UsageError, naming the nearest option."""
    from minilm.eval_cli import FORMATS, add_device, add_protocol

    parser = Parser(
        prog="minilm compare", description="Compares models on one text, paired; the first is the baseline."
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="runs, folders, Hub names; or files of eval --out")
    parser.add_argument("--data", metavar="X", help="prepared data, a data set's name, or text (the first run's own)")
    parser.add_argument("--source", metavar="X", help="a local copy of the data set in its original form")
    parser.add_argument("--format", choices=FORMATS, default="table", help="(%(default)s)")
    parser.add_argument("--seed", type=whole(), default=0, metavar="N", help="of what is drawn (%(default)s)")
    add = parser.add_argument
    add("--unlike", action="store_true", help="stored results of unlike protocols too, with what differs")
    add("--contexts", type=whole(1), nargs="+", default=[], metavar="N", help="perplexity with each context too")
    add("--picture", metavar="FILE", help="draw all of it as svg, png or pdf")
    add = parser.add_argument_group("generated text, paired by prompt").add_argument
    add("--prompts", metavar="X", help="a file of prompts, or N: the first words of N documents of the text")
    add("--judge", metavar="MODEL", help="a model whose nats per token are measured too")
    add("--max_new_tokens", type=int, default=100, metavar="N", help="of each text at most (%(default)s)")
    add("--temperature", type=float, default=1.0, metavar="T", help="(%(default)s)")
    add("--top_k", type=int, default=0, metavar="K", help="only the K likeliest tokens; 0: all (%(default)s)")
    add("--top_p", type=float, default=1.0, metavar="P", help="only the likeliest with mass P; 1: all (%(default)s)")
    add_device(parser)
    add_protocol(parser)
    return parser.parse_words(argv)


def _is_stored(name: str) -> bool:
    """Whether it is called or begins as what `minilm eval --out` writes."""
    if name.endswith(".json") or not Path(name).is_file():
        return name.endswith(".json")
    try:
        with Path(name).open("rb") as file:
            return re.match(rb'\s*\{\s*"value"', file.read(99)) is not None
    except OSError:
        return False


def check_file(option: str, file: str | None) -> None:
    """Raises UsageError where a file that is written last could not be: before anything is measured."""
    if not file:
        return
    path = Path(file)
    if path.is_dir() or not path.parent.is_dir():
        why = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise UsageError(f"{option} {file} cannot be written (it {why}): name another file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option} {file} cannot be written (no permission): name another file")


def check_picture(file: str | None) -> None:
    """Raises UsageError where a picture could not be written, its kind is none that matplotlib draws, or there is no
    matplotlib."""
    if not file:
        return
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise UsageError(NEEDS_MATPLOTLIB) from None
    suffix = Path(file).suffix[1:].lower()
    if suffix and suffix not in FigureCanvasBase.get_supported_filetypes():
        raise UsageError(f"--picture {file} cannot be drawn (not as .{suffix}): name a .svg, .png or .pdf file")
    check_file("--picture", file)


def _measured(options: argparse.Namespace) -> Compared:
    from minilm.eval_perplexity import data_for, protocol_of, read_data
    from minilm.evaluation.breakdown import breakdown
    from minilm.evaluation.compare import difference
    from minilm.evaluation.compare_picture import Compared
    from minilm.evaluation.cost import peak_bytes, weight_bytes
    from minilm.evaluation.intervals import bootstrap
    from minilm.evaluation.paired_texts import text_differences
    from minilm.evaluation.perplexity import Part, Perplexity, perplexity
    from minilm.model.weights import read_config

    protocol = protocol_of(options)
    options.model = options.models[0]
    data = data_for(options, protocol)
    options.precision = "fp32"
    prompts = _prompts(options, data, protocol)
    if options.prompts is not None and len(prompts) < 2:
        raise UsageError("--prompts gives fewer than two, which cannot tell chance from difference: give two or more")
    if not protocol.context:
        blocks = [read_config(name).block_size for name in options.models]
        if len(set(blocks)) > 1:
            protocol = replace(protocol, context=min(blocks))
            say(f"compared with the shortest context, of {min(blocks)} tokens; --context sets another")
    write = _writer(options, prompts)
    rows, texts, breakdowns, grid = [], [], [], {}
    measured: list[tuple[Perplexity, list[Part]]] = []
    for name in options.models:
        model, tokenizer = loaded(options, name)
        source, data_name = read_data(data, protocol, tokenizer, options.source, options.split)
        protocol = replace(protocol, data=data_name or protocol.data)
        about = {"tokenizer": tokenizer, "model_name": name, "data_name": data_name, "max_tokens": options.eval_tokens}
        parts: list[Part] = []
        seconds: list[float] = []
        found = perplexity(model, source, protocol, parts=parts, seconds=seconds, **about)
        if measured:
            measured[0][0].check_alike(found)
        measured.append((found, parts))
        breakdowns.append(breakdown(parts, found.protocol.documents == "each"))
        longest = max(int(part.context[-1]) for part in parts)  # tokens that a window really read
        row = {
            "model": name,
            "parameters": model.num_params(),
            "weights_mb": round(weight_bytes(model) / 1e6, 2),
            "peak_mb": round(peak_bytes(model, longest) / 1e6, 2),
            # A forward pass is a third of training's FLOPs.
            "gflops_per_token": float(f"{model.flops_per_token(longest) / 3e9:.4g}"),
            "ms_per_token": round(1e3 * seconds[0] / found.n_tokens, 4),
            "nats_per_token": round(found.nats_per_token, 4),
            found.measure: round(found.value, 4),
        }
        for context in options.contexts:
            if context <= model.wpe.max_tokens:
                stride = {"stride": min(protocol.stride, context)}
                grid[name, context] = perplexity(model, source, protocol, context=context, **stride, **about).value
            row[f"context {context}"] = round(grid[name, context], 4) if (name, context) in grid else None
        if prompts:
            texts.append(write(model, tokenizer))
            of_texts = {measure: bootstrap(each.tolist()).value for measure, each in texts[-1].items()}
            row |= {measure: round(mean, 4) if math.isfinite(mean) else None for measure, mean in of_texts.items()}
        rows.append(row)
    first, seed = measured[0], options.seed
    differences = [difference(*first, *other, seed=seed) for other in measured[1:]]
    pairs = list(zip(options.models[1:], texts[1:], strict=False))
    told_apart = [d for name, b in pairs for d in text_differences(options.models[0], texts[0], name, b, seed=seed)]
    values = [found.value for found, _ in measured]
    return Compared(first[0].measure, options.models, values, rows, differences, breakdowns, grid, told_apart)


def _prompts(options: argparse.Namespace, data: str, protocol: Protocol) -> list[str]:
    """Of a file (a prompt a line, or jsonl as `sample.py --prompts` reads it), or the first words of so many documents
    of the text."""
    from minilm.eval_perplexity import read_data
    from minilm.evaluation.protocols import get_protocol
    from minilm.sample_prompts import read_prompts
    from minilm.text.shards import ShardFolder
    from minilm.text.tokenizer import get_tokenizer

    named = options.prompts
    if named is None:
        return []
    if named.isdecimal():
        plain = get_protocol("minilm", split=protocol.split)  # takes text as it is
        source, _ = read_data(data, plain, get_tokenizer("bytes"), options.source)
        if isinstance(source, ShardFolder):
            if protocol.split not in source.splits:
                raise UsageError(f"{data} has no split {protocol.split!r}: choose of {', '.join(source.splits)}")
            split, theirs = source.splits[protocol.split], source.tokenizer()
            source = [theirs.decode(split.document(i)) for i in range(min(int(named), split.n_documents))]
        return [" ".join(text.split()[:PROMPT_WORDS]) for text in source[: int(named)]]
    if not named.endswith((".jsonl", ".ndjson")):
        try:
            return [line for line in Path(named).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompts {named} cannot be read ({error}): name a text file, a prompt a line") from None
    lines, wrong = read_prompts(Path(named))
    if wrong:
        raise UsageError(f"{named}, {wrong[0]}: write a text, or an object with a prompt, on every line")
    return [line.prompt for line in lines]


def _writer(options: argparse.Namespace, prompts: list[str]) -> Callable[[GPT, Tokenizer], dict[str, np.ndarray]]:
    """What measures a model's continuations of the prompts, by the same random numbers for every model."""
    from minilm.evaluation.generated import tell
    from minilm.evaluation.paired_texts import text_scores

    judge = judge_tokenizer = None
    if options.judge:
        judge, judge_tokenizer = loaded(options, options.judge, "judge ")

    def write(model: GPT, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        samples = tell(
            model, tokenizer, prompts, max_new_tokens=options.max_new_tokens, seed=options.seed,
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        )  # fmt: skip
        return text_scores(samples, judge=judge, judge_tokenizer=judge_tokenizer)

    return write


def _stored(options: argparse.Namespace) -> int:
    from minilm.evaluation.perplexity import Perplexity

    found = []
    for name in options.models:
        try:
            found.append(Perplexity.from_json(Path(name).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name} cannot be read ({error}): name a file that `minilm eval --out` wrote") from None
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    notes = ["stored results have no scores of single documents: whether a difference is chance cannot be said"]
    for other in found[1:]:
        try:
            found[0].check_alike(other)
        except UsageError as error:
            if not options.unlike:
                raise UsageError(f"{error}, or pass --unlike to see them side by side all the same") from None
            notes.append(f"{found[0].model} and {other.model}: {error}")
    for one in found:
        one.check_counted()
    rows = [{"model": one.model, "value": round(one.value, 4), "measure": one.measure,
             "nats_per_token": round(one.nats_per_token, 4), "protocol": str(one.protocol)}
            for one in found]  # fmt: skip
    print(told(rows, notes, options.format, keys=KEYS))
    return 0


def told(
    rows: list[dict[str, Any]],
    sentences: list[str],
    how: str,
    *,
    keys: tuple[str, str],
    differences: Sequence[Difference | TextDifference] = (),
) -> str:
    """The rows and sentences as a terminal table, Markdown, CSV (rows only) or JSON, there under these keys.

    differences: of which the sentences are; CSV and JSON have their numbers instead."""
    names = list(rows[0])
    apart = [_numbers(one) for one in differences]
    if how == "json":
        said = {"differences": apart} if apart else {keys[1]: sentences}
        return json.dumps({keys[0]: plain(rows), **said}, indent=1, allow_nan=False)
    if how == "csv":
        if apart:
            rows = [*({"kind": "model"} | row for row in rows), *({"kind": "difference"} | one for one in apart)]
            names = list(dict.fromkeys(name for row in rows for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().rstrip("\n")
    cells = [[name.replace("_", " ") for name in names]]
    shown = {int: "{:,}".format, float: "{:,.6g}".format, type(None): lambda _: "-"}
    cells += [[shown.get(type(row[name]), str)(row[name]) for name in names] for row in rows]
    if len(names) > WIDEST:
        cells = [list(line) for line in zip(*cells, strict=True)]  # a model is then a column
    if how == "markdown":
        lines = [f"| {' | '.join(line)} |" for line in cells]
        lines.insert(1, "|---" * len(cells[0]) + "|")
        return "\n".join([*lines, "", *sentences])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    form = "  ".join(f"{{:{'>' if i else '<'}{width}}}" for i, width in enumerate(widths))
    return "\n".join([*(form.format(*line) for line in cells), *sentences])


def _numbers(one: Difference | TextDifference) -> dict[str, Any]:
    """A difference for programs: B less A with its 95 % interval, p, and how many of what were drawn."""
    n, drawn = (one.n_prompts, "prompts") if hasattr(one, "n_prompts") else (one.n_units, one.drawn)
    value = one.value._asdict()
    return {"measure": one.measure, "a": one.a, "b": one.b, **value, "p": one.p, "n": n, "drawn": drawn,
            "sentence": str(one)}  # fmt: skip
