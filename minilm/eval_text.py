"""What `minilm eval --text` does: measures generated texts, beside real ones, by a judge, against the training data."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.errors import UsageError
from minilm.eval_tales import read_stories
from minilm.log import say

if TYPE_CHECKING:
    from minilm.evaluation.generated import Row, Sample


def measure(options: argparse.Namespace) -> int:
    """Prints the table of all that can be measured with what is given."""
    from minilm.evaluation.generated import quality
    from minilm.sample_cli import load
    from minilm.text.prepare import prepare
    from minilm.text.shards import open_shards

    samples = read_samples(options.text_file)
    reference = read_samples(options.reference, options.split) if options.reference else []
    judge = tokenizer = None
    if options.model is not None:
        options.checkpoint = options.model
        options.precision = "fp32" if options.precision == "auto" else options.precision
        judge, tokenizer, what = load(options)
        say(f"judge {what}")
    shards = open_shards(prepare(options.data, source=options.source)) if options.data else None
    rows = quality(
        samples,
        reference,
        judge=judge,
        tokenizer=tokenizer,
        train=shards.splits["train"] if shards else None,
        train_tokenizer=shards.tokenizer() if shards else None,
        mauve_tokens=options.mauve_tokens,
    )
    if options.level is not None or any("tales" in (name or "").lower() for name in (options.reference, options.data)):
        rows.append(_coherent(samples, reference[: len(samples)], options.level))
    if options.json:
        print(json.dumps([_plain(row._asdict()) for row in rows], indent=1))
        return 0
    n_real = min(len(reference), len(samples))
    print(
        f"{'95 % intervals':28}{f'{len(samples)} generated texts':30}{f'{n_real} real ones' if n_real else ''}".rstrip()
    )
    print("\n".join(map(str, rows)))
    return 0


def _coherent(samples: list[Sample], real: list[Sample], level: int | None) -> Row:
    """Share of tales that the grader passes, in the style that their control code asks for; Wilson's interval."""
    from minilm.eval_tales import grade_at
    from minilm.evaluation.generated import Row
    from minilm.evaluation.intervals import Estimate, wilson

    def share(side: list[Sample]) -> Estimate:
        passed = sum(grade_at(one.text, level, one.label or "plain")[1].passed for one in side)
        return Estimate(passed / len(side), *wilson(passed, len(side)))

    at = "the lowest level that each passes" if level is None else f"level {level}"
    return Row("coherent tales", share(samples), share(real) if real else None, f"graded at {at}, Wilson")


def read_samples(name: str, split: str | None = None) -> list[Sample]:
    """Texts of a jsonl file (fields text, and where known label and ended), of a text file (as `minilm eval --grade`
    reads it), or of a split (val) of prepared data. A text's label, if it begins with it and a colon, is cut off; the
    label of tales is their control code.

    Raises UsageError where there is none or a line is no such object.
    """
    from minilm.evaluation.generated import Sample
    from minilm.text.scripts import known_datasets, split_name

    path = Path(name).expanduser()
    if (path / "meta.json").is_file() or split_name(name)[0] in known_datasets():
        return _of_data(name, split or "val")
    if path.suffix not in (".jsonl", ".ndjson"):
        return [_labelled(text) for text in read_stories(name)]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} cannot be read ({error}): name a jsonl file of texts") from None
    samples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw: Any = json.loads(line)
            text, label, ended = raw["text"], raw.get("label", ""), raw.get("ended")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f'{name}, line {number} is no object with a "text": write one on every line') from None
        if not isinstance(text, str) or not isinstance(label, str) or not isinstance(ended, bool | None):
            raise UsageError(f"{name}, line {number}: text and label are strings, ended is true or false")
        samples.append(Sample(text.removeprefix(f"{label}: ") if label else text, label, ended))
    if not samples:
        raise UsageError(f"{name} holds no text: write one object with a text on every line")
    return samples


def _of_data(name: str, split: str) -> list[Sample]:
    from minilm.text.prepare import prepare
    from minilm.text.shards import open_shards

    shards = open_shards(prepare(name))
    if split not in shards.splits:
        raise UsageError(f"{name} has no split {split!r}: choose another of {', '.join(shards.splits)}")
    tokens, tokenizer = shards.splits[split], shards.tokenizer()
    return [_labelled(tokenizer.decode(tokens.document(i))) for i in range(tokens.n_documents)]


def _labelled(text: str) -> Sample:
    from minilm.evaluation.generated import Sample
    from minilm.text.tales.grader import CODE

    code = CODE.match(text)
    return Sample(text[code.end() :], code[1]) if code else Sample(text)


def _plain(value: Any) -> Any:
    """Without NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
