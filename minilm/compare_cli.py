"""`minilm compare A B ...`: models on the same text by the same protocol, with what each costs."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minilm.command_line import Parser
from minilm.errors import UsageError
from minilm.log import say

KEYS = ("models", "differences")


def main(argv: Sequence[str] | None = None) -> int:
    """Compares the models that the command line names with the first; returns the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    if len(options.models) < 2:
        raise UsageError("name two models or more, or two files that `minilm eval --out` wrote")
    stored = [name.endswith(".json") and Path(name).is_file() for name in options.models]
    if any(stored):
        if not all(stored):
            raise UsageError("stored results cannot be compared with models: name either all files or all models")
        return _stored(options)
    rows, sentences = _measured(options)
    print(told(rows, sentences, options.format, keys=KEYS))
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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (%(default)s)")
    add_device(parser)
    add_protocol(parser)
    return parser.parse_words(argv)


def _measured(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    from minilm.eval_perplexity import data_for, protocol_of, read_data
    from minilm.evaluation.compare import difference
    from minilm.evaluation.perplexity import Part, perplexity
    from minilm.sample_cli import load

    protocol = protocol_of(options)
    options.model = options.models[0]
    data = data_for(options, protocol)
    options.precision = "fp32"
    rows, measured = [], []
    for name in options.models:
        options.checkpoint = name
        model, tokenizer, what = load(options)
        say(what)
        source, data_name = read_data(data, protocol, tokenizer, options.source)
        parts: list[Part] = []
        start = time.perf_counter()
        found = perplexity(
            model, source, protocol, tokenizer=tokenizer, model_name=name, data_name=data_name, parts=parts
        )
        seconds = time.perf_counter() - start
        measured.append((found, parts))
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        rows.append(
            {
                "model": name,
                "parameters": model.num_params(),
                "weights_mb": round(weights / 1e6, 2),
                # A forward pass is a third of training's FLOPs.
                "gflops_per_token": round(model.flops_per_token(found.protocol.context) / 3e9, 4),
                "ms_per_token": round(1e3 * seconds / found.n_tokens, 4),
                found.measure: round(found.value, 4),
            }
        )
    first = measured[0]
    return rows, [str(difference(*first, *other, seed=options.seed)) for other in measured[1:]]


def _stored(options: argparse.Namespace) -> int:
    from minilm.evaluation.perplexity import Perplexity

    found = []
    for name in options.models:
        try:
            found.append(Perplexity.from_json(Path(name).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name} cannot be read ({error}): name a file that `minilm eval --out` wrote") from None
    for other in found[1:]:
        found[0].check_alike(other)
    rows = [{"model": one.model, one.measure: round(one.value, 4)} for one in found]
    note = "stored results have no scores of single documents: whether a difference is chance cannot be said"
    print(told(rows, [note], options.format, keys=KEYS))
    return 0


def told(rows: list[dict[str, Any]], sentences: list[str], how: str, *, keys: tuple[str, str]) -> str:
    """The rows and sentences as a terminal table, Markdown, CSV (rows only) or JSON, there under these keys."""
    names = list(rows[0])
    if how == "json":
        return json.dumps({keys[0]: rows, keys[1]: sentences}, indent=1)
    if how == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().rstrip("\n")
    cells = [[name.replace("_", " ") for name in names]]
    cells += [[f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in names] for row in rows]
    if how == "markdown":
        lines = [f"| {' | '.join(line)} |" for line in cells]
        lines.insert(1, "|---" * len(names) + "|")
        return "\n".join([*lines, "", *sentences])
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([*lines, *sentences])
