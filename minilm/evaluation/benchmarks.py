"""LAMBADA, HellaSwag and the Children's Book Test: what a model makes of a context and its ends.

Everything else is lm-evaluation-harness's business (`minilm/lm_eval.py`), whose way to split text into tokens this is:
context and end are tokenized together, so that a word is the token that it is in running text.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from minilm.config import nearest
from minilm.errors import UsageError
from minilm.evaluation.benchmark_files import benchmark_lines
from minilm.evaluation.intervals import wilson
from minilm.evaluation.scoring import BATCH_TOKENS, Request, target_scores
from minilm.model.gpt import GPT
from minilm.text.detokenize import DETOKENIZERS
from minilm.text.tokenizer import Tokenizer


class Question(NamedTuple):
    """A context and how it may go on. Of choices, `gold` is right; a single one is a word to be guessed."""

    context: str
    choices: tuple[str, ...]
    """Without the blank before them."""
    gold: int = 0


class Scores(NamedTuple):
    """Of one continuation."""

    loglikelihood: float
    n_tokens: int
    is_greedy: bool
    """The likeliest token at every place is the continuation's."""


@dataclass(frozen=True)
class Result:
    """What came of one benchmark. Shares have 95 % Wilson intervals; `str()` is the report."""

    benchmark: str
    model: str
    n_questions: int
    accuracy: float
    """Greedy continuation equals the word; of choices, the likeliest is the right one."""
    accuracy_norm: float | None
    """By log-likelihood per character of the choice (lm-eval's acc_norm); None for words to be guessed."""
    accuracy_token: float | None
    """By log-likelihood per token of the choice (nanoGPT's way)."""
    perplexity: float | None
    """exp of the mean -log p of the whole word; None for choices."""

    @property
    def measures(self) -> dict[str, float]:
        """By name, shares in per cent."""
        shares = {"accuracy": self.accuracy, "accuracy_norm": self.accuracy_norm, "accuracy_token": self.accuracy_token}
        found = {name: 100 * share for name, share in shares.items() if share is not None}
        return found if self.perplexity is None else found | {"perplexity": self.perplexity}

    def __str__(self) -> str:
        lines = [f"{self.benchmark}: {self.model}, {self.n_questions:,} questions"]
        for name, value in self.measures.items():
            interval = ""
            if name != "perplexity":
                low, high = wilson(round(value / 100 * self.n_questions), self.n_questions)
                interval = f" % ({100 * low:.2f} to {100 * high:.2f} %)"
            lines.append(f"  {name.replace('_', ', per '):22}{value:.2f}{interval}")
        return "\n".join(lines).replace("per norm", "per character")


def words_of(lines: Iterable[str]) -> Iterator[Question]:
    """LAMBADA: a passage a line, or jsonl with `text` (OpenAI's), or with `context` and `continuation`. The last word
    is to be guessed."""
    for line in lines:
        text = line.strip("\n")
        if text.startswith("{"):
            raw = json.loads(text)
            if "continuation" in raw:
                yield Question(raw["context"], (raw["continuation"],))
                continue
            text = raw["text"]
        if text.strip():
            context, _, word = text.rstrip().rpartition(" ")
            yield Question(context, (word,))


def hellaswag(lines: Iterable[str]) -> Iterator[Question]:
    """The official jsonl, prepared as lm-eval does (WikiHow's brackets taken out), or one with query, choices, gold."""
    for line in lines:
        raw = json.loads(line)
        if "query" in raw:
            yield Question(raw["query"], tuple(raw["choices"]), int(raw["gold"]))
        else:
            context = f"{raw['activity_label']}: {raw['ctx_a']} {raw['ctx_b'].capitalize()}"
            choices = tuple(_without_brackets(ending) for ending in raw["endings"])
            yield Question(_without_brackets(context), choices, int(raw["label"]))


def cbt(lines: Iterable[str]) -> Iterator[Question]:
    """The Children's Book Test: 20 sentences, then one with XXXXX for a word, of which ten are offered. A choice is the
    word and the rest of its sentence; Penn Treebank's tokens become plain text (Radford 2019, 3.2)."""
    plain = DETOKENIZERS["ptb"]
    for is_blank, block in groupby(lines, lambda line: not line.strip()):
        if is_blank:
            continue
        *before, last = (line.rstrip("\n").partition(" ")[2] for line in block)
        query, answer, _, candidates = last.split("\t")
        words = candidates.split("|")
        left, _, right = query.partition("XXXXX")
        whole = [plain(f"{left}{word}{right}") for word in words]
        start = plain(left)
        while start and not all(one.startswith(f"{start} ") for one in whole):
            start = start.rpartition(" ")[0]  # a quotation mark stands at the word without a blank
        context = " ".join([*map(plain, before), start]).strip()
        yield Question(context, tuple(one[len(start) :].strip() for one in whole), words.index(answer))


def _without_brackets(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


READERS: dict[str, Callable[[Iterable[str]], Iterator[Question]]] = {
    "lambada": words_of,
    "lambada-openai": words_of,
    "hellaswag": hellaswag,
    "cbt-cn": cbt,
    "cbt-ne": cbt,
}
"""lambada is the original, lower-case and tokenized; lambada-openai the text that GPT-2 was tested on."""


def check_benchmark(name: str) -> None:
    """Raises UsageError on a name that is none."""
    if name not in READERS:
        raise UsageError(f"there is no benchmark {name!r}{nearest(name, READERS)}: it is one of {', '.join(READERS)}")


def read_questions(benchmark: str, file: str | Path, limit: int = 0) -> list[Question]:
    """The questions of a local file (or its archive), the first `limit` of them. Raises UsageError where it is not the
    benchmark's."""
    check_benchmark(benchmark)
    try:
        found = list(islice(READERS[benchmark](benchmark_lines(benchmark, file)), limit or None))
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is no file of {benchmark} ({type(error).__name__}: {error})") from None
    for number, (context, choices, gold) in enumerate(found, 1):
        if not isinstance(context, str) or not all(isinstance(one, str) and one for one in choices):
            raise UsageError(f"{file}, question {number}: write context and choices as text, no choice empty")
        if not 0 <= gold < len(choices):
            raise UsageError(
                f"{file}, question {number} of {len(choices)} choices: choice {gold} cannot be the right one"
            )
    if not found:
        raise UsageError(f"{file} holds no question of {benchmark}")
    return found


def continuation_scores(
    model: GPT, tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]], *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[Scores]:
    """log p of each continuation after its context, in order. Blanks at the context's end belong to the continuation;
    an empty context is an end-of-text; of one that is too long the model reads the last tokens."""
    return token_scores(model, (_encoded(tokenizer, *pair) for pair in pairs), batch_tokens=batch_tokens)


def token_scores(
    model: GPT, pairs: Iterable[tuple[list[int], list[int]]], *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[Scores]:
    """`continuation_scores` of (context, continuation) in ids, neither empty."""

    def request(context: list[int], end: list[int]) -> Request:
        kept = min(len(context) + len(end), model.config.block_size + 1)
        if not 0 < len(end) < kept:
            raise UsageError(
                f"a continuation of {len(end)} tokens does not fit the model's context of {model.config.block_size}"
            )
        return Request(np.array([*context, *end][-kept:], np.int64), kept - len(end))

    for found in target_scores(model, (request(*pair) for pair in pairs), batch_tokens=batch_tokens):
        yield Scores(-float(found.nats.sum(dtype=np.float64)), len(found.nats), bool(found.is_top.all()))


def _encoded(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    kept = context.rstrip()
    whole = context[len(kept) :] + continuation
    if not kept:
        return [tokenizer.eot], tokenizer.encode(whole)
    before = tokenizer.encode(kept)
    return before, tokenizer.encode(kept + whole)[len(before) :]


def run(
    benchmark: Literal["lambada", "lambada-openai", "hellaswag", "cbt-cn", "cbt-ne"] | str,
    model: GPT,
    tokenizer: Tokenizer,
    questions: list[Question],
    *,
    model_name: str = "model",
    batch_tokens: int = BATCH_TOKENS,
) -> Result:
    """Asks a model all questions. Raises UsageError on none, or where one does not fit its context."""
    if not questions:
        raise UsageError(f"{benchmark} has no question to ask")
    pairs = ((question.context, f" {choice}") for question in questions for choice in question.choices)
    found = continuation_scores(model, tokenizer, pairs, batch_tokens=batch_tokens)
    with tqdm(questions, unit="question", disable=not sys.stderr.isatty(), leave=False) as bar:
        asked = [(question, list(islice(found, len(question.choices)))) for question in bar]
    common: dict[str, Any] = {"benchmark": benchmark, "model": model_name, "n_questions": len(questions)}
    if all(len(question.choices) == 1 for question in questions):
        accuracy = float(np.mean([scores[0].is_greedy for _, scores in asked]))
        nats = [-scores[0].loglikelihood for _, scores in asked]
        perplexity = math.exp(min(float(np.mean(nats)), 700.0))
        return Result(**common, accuracy=accuracy, accuracy_norm=None, accuracy_token=None, perplexity=perplexity)

    def by(size: Callable[[str, Scores], float]) -> float:
        right = [
            int(np.argmax([s.loglikelihood / size(c, s) for c, s in zip(q.choices, scores, strict=True)])) == q.gold
            for q, scores in asked
        ]
        return float(np.mean(right))

    return Result(
        **common,
        accuracy=by(lambda choice, scores: 1.0),
        accuracy_norm=by(lambda choice, scores: float(len(choice))),
        accuracy_token=by(lambda choice, scores: float(scores.n_tokens)),
        perplexity=None,
    )
