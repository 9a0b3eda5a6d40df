"""What `minilm eval --text` does: measures generated texts, beside real ones, by a judge, against the training data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.errors import UsageError
from minilm.eval_cli import loaded
from minilm.eval_tales import read_stories, read_texts
from minilm.log import plain, say

if TYPE_CHECKING:
    from minilm.evaluation.generated import Row, Sample


def measure(options: argparse.Namespace) -> int:
    """Prints the table of all that can be measured with what is given."""
    from minilm.compare_cli import check_file
    from minilm.evaluation.generated import quality
    from minilm.text.prepare import prepare
    from minilm.text.shards import open_shards
    from minilm.text.tales.grammar import grammar

    check_file("--out", options.out)
    tales = options.level is not None or any(name and _is_tales(name) for name in (options.reference, options.data))
    samples = read_samples(options.text_file, tales=tales)
    reference = read_samples(options.reference, options.split, tales) if options.reference else []
    if tales and any(one.label for one in (*samples, *reference)):  # a tale without a code is a plain one
        samples, reference = ([one._replace(label=one.label or "plain") for one in s] for s in (samples, reference))
    if options.level is not None:
        for style in sorted({one.label or "plain" for one in (*samples, *reference)}):
            grammar(options.level, style)  # one that is not known shows here
    shards = open_shards(prepare(options.data, source=options.source)) if options.data else None
    if shards and "train" not in shards.splits:
        raise UsageError(
            f"{options.data} has no train split to look for copies in: name other data, or leave out --data"
        )
    judge = tokenizer = None
    if options.model is not None:
        judge, tokenizer = loaded(options, options.model, "judge ")
    rows = quality(
        samples, reference, judge=judge, tokenizer=tokenizer, mauve_tokens=options.mauve_tokens,
        train=shards.splits["train"] if shards else None, train_tokenizer=shards.tokenizer() if shards else None,
    )  # fmt: skip
    if tales:
        try:
            rows.append(_coherent(samples, reference[: len(samples)], options.level))
        except UsageError as error:  # labels that are no styles
            say(f"without coherent tales: {error}")
    table = json.dumps([plain(row._asdict()) for row in rows], indent=1)
    if options.out:
        Path(options.out).write_text(table + "\n", encoding="utf-8")
    if options.json:
        print(table)
        return 0
    n_real = min(len(reference), len(samples))
    real = f"{n_real} real ones" if n_real else ""
    print(f"{'95 % intervals':28}{f'{len(samples)} generated texts':34}{real}".rstrip())
    print("\n".join(map(str, rows)))
    return 0


def _is_tales(name: str) -> bool:
    """Whether this is the data set tales, or a folder prepared from it."""
    from minilm.text.scripts import split_name
    from minilm.text.shards import open_shards

    path = Path(name).expanduser()
    return (open_shards(path).meta.name if (path / "meta.json").is_file() else split_name(name)[0]) == "tales"


def _coherent(samples: list[Sample], real: list[Sample], level: int | None) -> Row:
    """Share of tales that the grader passes, in the style that their control code asks for; Wilson's interval."""
    from minilm.eval_tales import grade_at
    from minilm.evaluation.generated import Row
    from minilm.evaluation.intervals import share

    def passed(side: list[Sample]) -> list[bool]:
        return [grade_at(_coded(one), level, one.label or "plain")[1].passed for one in side]

    at = "the lowest level that each passes" if level is None else f"level {level}"
    return Row(
        "coherent tales", share(passed(samples)), share(passed(real)) if real else None, f"graded at {at}, Wilson"
    )


def _coded(one: Sample) -> str:
    """The text with its control code, as the grader reads it."""
    return one.text if one.label in ("", "plain") else f"{one.label}: {one.text}"


def read_samples(name: str, split: str | None = None, tales: bool = False) -> list[Sample]:
    """Texts of a jsonl file (fields text, and where known label and ended), of a text file (parted as `minilm eval
    --grade` parts it; white space stays, but in tales), or of a split (val) of prepared data. A text's label, if it
    begins with it and a colon, is cut off; the label of tales is their control code.

    Raises UsageError where there is none or a line is no such object.
    """
    from minilm.evaluation.generated import Sample
    from minilm.text.scripts import known_datasets, split_name

    path = Path(name).expanduser()
    if (path / "meta.json").is_file() or split_name(name)[0] in known_datasets():
        return _of_data(name, split or "val")
    if path.suffix not in (".jsonl", ".ndjson"):
        return [_labelled(text) for text in (read_stories if tales else read_texts)(name)]
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} cannot be read ({error}): name a jsonl file of texts") from None
    samples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw: Any = json.loads(line)
            text, label, ended = raw["text"], raw.get("label", ""), raw.get("ended")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UsageError(f'{name}, line {number} is no object with a "text": write one on every line') from None
        if not isinstance(text, str) or not isinstance(label, str) or not isinstance(ended, bool | None):
            raise UsageError(f"{name}, line {number}: text and label are strings, ended is true or false")
        if label:
            text = text.removeprefix(f"{label}: ")
        known = _labelled(text) if tales and not label else Sample(text, label)
        samples.append(known._replace(ended=ended))
    if not any(one.text.strip() for one in samples):
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
