"""Everything that is measured of generated text, beside the same of real text, as one table with intervals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple, Unpack

import numpy as np

from minilm.decoding.contexts import evaluating
from minilm.decoding.engine import Options, stream_batch
from minilm.errors import MinilmError, UsageError
from minilm.evaluation import likeness
from minilm.evaluation.intervals import Estimate, bootstrap, jackknife, share
from minilm.evaluation.ngram import words
from minilm.evaluation.novelty import blocks, copied_share, longest_matches, new_ngrams
from minilm.evaluation.repetition import distinct_n, rep_r, self_bleu, seq_rep_n, zipf
from minilm.log import say
from minilm.model.gpt import GPT
from minilm.text.shards import Split
from minilm.text.tokenizer import Tokenizer

MEASURES = {
    "length": "length in words",
    "ended": "ended by end-of-text",
    **{f"seq-rep-{n}": f"seq-rep-{n}" for n in (1, 2, 3, 4)},
    "rep-r": "rep-r",
    **{f"distinct-{n}": f"distinct-{n}" for n in (1, 2, 3)},
    "zipf": "Zipf coefficient",
    "self-bleu": "self-BLEU",
    "copied-tokens": "longest copied span, tokens",
    "copied-share": "its share of the text",
    "new-4-grams": "new 4-grams",
    "judge-perplexity": "perplexity under the judge",
    "gap": "gap, nats per token",
    "mauve": "MAUVE",
    "obeyed": "label obeyed",
}
"""Names, and what the table calls them."""

SELF_BLEU_TEXTS = 100  # its cost grows with the square
MAUVE_GROUPS = 5
NOVEL_N = 4
_JUDGED = {MEASURES[name] for name in ("judge-perplexity", "gap", "mauve")}
_COPIES = tuple(MEASURES[name] for name in ("copied-tokens", "copied-share", f"new-{NOVEL_N}-grams"))


class Sample(NamedTuple):
    """One text."""

    text: str
    label: str = ""
    """Of what kind it is, or was asked to be: a control code."""
    ended: bool | None = None
    """Whether the model ended it itself, where that is known."""


class Row(NamedTuple):
    """One measure of generated texts and of real ones."""

    name: str
    generated: Estimate
    real: Estimate | None = None
    note: str = ""

    def __str__(self) -> str:
        real = str(self.real) if self.real else ""
        return f"{self.name:28}{self.generated!s:34}{real:34}{self.note}".rstrip()


def tell(model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], **options: Unpack[Options]) -> list[Sample]:
    """How a model continues prompts (an empty one: a document of its own), and whether it ended each. options:
    `generate`'s; a seed gives each prompt the same random numbers whatever the model."""
    texts, last = [""] * len(prompts), [-1] * len(prompts)
    with evaluating(model):
        for piece in stream_batch(model, tokenizer, list(prompts), **options):
            texts[piece.row] += piece.text
            last[piece.row] = piece.token
    return [Sample(text, ended=token == tokenizer.eot) for text, token in zip(texts, last, strict=True)]


def quality(
    samples: Sequence[Sample],
    reference: Sequence[Sample] = (),
    *,
    judge: GPT | None = None,
    tokenizer: Tokenizer | None = None,
    train: Split | None = None,
    train_tokenizer: Tokenizer | None = None,
    mauve_tokens: int = 0,
    only: Collection[str] = (),
) -> list[Row]:
    """Rows of the table: what the texts alone allow; with a reference also its figures, cut to as many texts; with a
    judge and its tokenizer perplexity and, given a reference, MAUVE; with training tokens and their tokenizer what was
    copied; with labels on both sides whether they are obeyed.

    mauve_tokens: a text is cut to; 0: what nine tenths of all texts have, 256 at most. only: keys of `MEASURES`; empty:
    all, less what cannot be had, which is said. Raises UsageError on no texts, or where one of `only` cannot be had.
    """
    if not samples:
        raise UsageError("there is no generated text: give a file with one text or more")
    wanted = {MEASURES[name] for name in only or MEASURES}
    reference = list(reference)
    real = reference[: len(samples)]

    def had(name: str, measure: Callable[[], list[Row]]) -> list[Row]:
        try:
            return measure()
        except MinilmError as error:
            if only:
                raise
            say(f"without {name}: {error}")
            return []

    if only:
        _check_wanted(wanted, samples, reference, judged=judge is not None, trained=train is not None)
    rows = _of_texts(list(samples), real, wanted)
    if len(samples) > 1 and MEASURES["self-bleu"] in wanted:
        rows += had("self-BLEU", partial(_of_each_other, list(samples), real))
    if train is not None and train_tokenizer is not None and wanted & set(_COPIES):
        rows += _of_copies(list(samples), real, train, train_tokenizer)
    if judge is not None and tokenizer is not None and wanted & _JUDGED:
        texts = [s.text for s in samples], [s.text for s in reference]
        rows += had("the judge's perplexity", partial(_of_judge, *texts, judge, tokenizer))
        if reference and MEASURES["mauve"] in wanted:
            rows += had("MAUVE", partial(_of_mauve, *texts, judge, tokenizer, mauve_tokens))
    if MEASURES["obeyed"] in wanted and reference and any(sample.label for sample in samples):
        rows += had("label obeyed", partial(_of_labels, samples, reference))
    return [row for row in rows if row.name in wanted]


def _check_wanted(
    wanted: set[str], samples: Sequence[Sample], reference: Sequence[Sample], *, judged: bool, trained: bool
) -> None:
    """Raises UsageError on a measure for which something is missing."""
    labelled = any(sample.label for sample in samples)
    ended = any(sample.ended is not None for sample in samples)
    needs = {
        "ended": (ended, "texts of which it is known whether they ended themselves"),
        "self-bleu": (len(samples) > 1, "two texts or more"),
        **{name: (trained, "training tokens") for name in MEASURES if MEASURES[name] in _COPIES},
        "judge-perplexity": (judged, "a judge"),
        "gap": (judged and bool(reference), "a judge and a reference"),
        "mauve": (judged and bool(reference), "a judge and a reference"),
        "obeyed": (labelled and bool(reference), "texts with a label, and a reference"),
    }
    for name, (there, what) in needs.items():
        if MEASURES[name] in wanted and not there:
            raise UsageError(f"{name} needs {what}: give them, or leave {name} out")


def _of_texts(samples: list[Sample], real: list[Sample], wanted: set[str]) -> list[Row]:
    sides = [[words(sample.text) for sample in side] for side in (samples, real)]

    rows: list[Row] = []

    def both(name: str, measure: Callable[[list[list[str]]], Estimate], note: str = "") -> None:
        if name in wanted:
            rows.append(Row(name, measure(sides[0]), measure(sides[1]) if real else None, note))

    def mean(measure: Callable[[list[str]], float]) -> Callable[[list[list[str]]], Estimate]:
        return lambda texts: bootstrap([measure(text) for text in texts])

    def whole(measure: Callable[[list[list[str]]], float], cut: bool = False) -> Callable[[list[list[str]]], Estimate]:
        return lambda texts: jackknife(measure, texts, share=cut)

    both("length in words", mean(lambda text: float(len(text))))
    if any(sample.ended is not None for sample in samples):
        rows.append(Row("ended by end-of-text", share([one.ended for one in samples]), None, "Wilson"))
    for n in (1, 2, 3, 4):
        both(f"seq-rep-{n}", mean(partial(seq_rep_n, n=n)))
    both("rep-r", mean(rep_r))
    for n in (1, 2, 3):
        both(f"distinct-{n}", whole(partial(distinct_n, n=n), cut=True), "jackknife")
    both("Zipf coefficient", whole(zipf), "jackknife")
    return rows


def _of_each_other(samples: list[Sample], real: list[Sample]) -> list[Row]:
    few = [[sample.text for sample in side[:SELF_BLEU_TEXTS]] for side in (samples, real)]
    scores = [bootstrap(self_bleu(side)) if len(side) > 1 else None for side in few]
    return [Row("self-BLEU", scores[0] or bootstrap([]), scores[1], f"first {len(few[0])} texts")]


def _of_labels(samples: Sequence[Sample], reference: Sequence[Sample]) -> list[Row]:
    (texts, asked), (real, labels) = (
        ([s.text for s in side if s.label], [s.label for s in side if s.label]) for side in (samples, reference)
    )
    found = likeness.obedience(texts, asked, real, labels)
    note = f"classifier right on {100 * found.accuracy:.1f} % of real texts, {len(found.labels)} labels"
    n_left, n_real_left = len(samples) - len(texts), len(reference) - len(real)
    if n_left or n_real_left:
        note += f"; left out: {n_left} generated and {n_real_left} real texts without a label"
    return [Row("label obeyed", share(list(map(bool, found.obeyed))), None, f"Wilson; {note}")]


def _of_copies(samples: list[Sample], real: list[Sample], train: Split, tokenizer: Tokenizer) -> list[Row]:
    sides = [tokenizer.encode_batch([sample.text for sample in side]) for side in (samples, real)]
    ids = [*sides[0], *sides[1]]
    matches = longest_matches(ids, blocks(train, max(map(len, ids), default=0)))
    split = (matches[: len(samples)], matches[len(samples) :])
    copied = [bootstrap([copied_share(match) for match in side]) for side in split]
    longest = [bootstrap([float(match.max(initial=0)) for match in side]) for side in split]
    lacking = [[new_ngrams(match, NOVEL_N) for match in side] for side in split]
    new = [bootstrap([float(one.sum()) for one in side], [len(one) for one in side]) for side in lacking]
    note = f"against {train.n_tokens:,} training tokens"
    return [
        Row(name, one[0], one[1] if real else None, note)
        for name, one in zip(_COPIES, (longest, copied, new), strict=True)
    ]


def _of_judge(texts: list[str], reference: list[str], judge: GPT, tokenizer: Tokenizer) -> list[Row]:
    def of(side: list[str]) -> Estimate:
        nats, tokens = likeness.document_nats(judge, tokenizer, side)
        return bootstrap(nats.tolist(), tokens.tolist())

    mine, note = of(texts), "per token, each text from its beginning"
    if not reference:
        return [Row("perplexity under the judge", _exp(mine), None, note)]
    theirs = of(reference)
    # Independent samples: the intervals' half widths add in squares.
    gap = mine.value - theirs.value
    low = gap - float(np.hypot(mine.value - mine.low, theirs.high - theirs.value))
    high = gap + float(np.hypot(mine.high - mine.value, theirs.value - theirs.low))
    row = Row("perplexity under the judge", _exp(mine), _exp(theirs), note)
    return [row, Row("gap, nats per token", Estimate(gap, low, high), None, "generated less real")]


def _of_mauve(texts: list[str], reference: list[str], judge: GPT, tokenizer: Tokenizer, mauve_tokens: int) -> list[Row]:
    lengths = sorted(len(ids) for ids in tokenizer.encode_batch([*texts, *reference]))
    n_tokens = mauve_tokens or int(min(lengths[len(lengths) // 10], likeness.MAUVE_TOKENS, judge.config.block_size))
    found = likeness.mauve(judge, tokenizer, texts, reference, n_tokens=n_tokens)
    pairs = list(zip(texts, reference, strict=False))

    def again(kept: list[tuple[str, str]]) -> float:
        left, right = zip(*kept, strict=True)
        return likeness.mauve(judge, tokenizer, left, right, n_tokens=n_tokens, n_buckets=found.n_buckets).value

    try:
        spread = jackknife(again, pairs, MAUVE_GROUPS)
        half = (spread.high - spread.low) / 2
    except UsageError:  # with a group less there are fewer than two texts
        half = float("nan")
    low, high = np.clip([found.value - half, found.value + half], 0, 1)
    value = Estimate(found.value, float(low), float(high))
    return [Row("MAUVE", value, None, f"jackknife; {found}")]


def _exp(nats: Estimate) -> Estimate:
    return Estimate(*(float(np.exp(value)) for value in nats))
