"""Protocols of perplexity: everything that decides the number and is not the model, as one value.

A number without these is not comparable, and most disagreements about GPT-2's are disagreements about them. Which
protocol is whose, with formulas: docs/evaluation.md. `windows` turns a protocol into what the model reads and what is
scored; the scoring itself is in `scoring.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from minilm.checks import check_each, check_fields, is_count, nearest
from minilm.errors import UsageError

Unit = Literal["token", "word", "byte", "character"]
Documents = Literal["joined", "each", "stream"]
First = Literal["unscored", "after_eot"]
LastWindow = Literal["short", "full"]
Precision = Literal["fp32", "bf16"]
Text = Literal["as_is", "rows", "wikitext", "ptb"]
Words = Literal["blanks", "pieces", "spaces"]
Counted = Literal["original", "scored"]
WHOLE = "whole"  # in place of a split, of a text that is none


@dataclass(frozen=True)
class Protocol:
    """How a perplexity is measured. Equal protocols (`source` and `name` aside) give comparable numbers."""

    name: str
    data: str = ""
    """Data set that the figures of this protocol are about. Empty: any."""
    split: str = "test"
    text: Text = "as_is"
    """What is done to the text before it is scored, a key of `TEXTS`."""
    documents: Documents = "joined"
    """joined: one text, tokenized whole. each: by itself. stream: prepared shards as they are, end-of-text between."""
    first: First = "unscored"
    """unscored: the first token of a text has no context and is left out. after_eot: it follows an end-of-text."""
    context: int = 0
    """Tokens that the model reads at most. 0: its block_size."""
    targets_inside: bool = False
    """A window's `context` tokens hold its last target, which is never read (transformers); else one more is scored."""
    stride: int = 0
    """Tokens from one window's start to the next. 0: the context, so that windows do not overlap."""
    last_window: LastWindow = "short"
    """short: begins where its turn is. full: reaches back until it has all the context."""
    random_windows: int = 0
    """Score this many windows at random places (seed 0) instead of the whole text, which gives a standard error."""
    unit: Unit = "token"
    """What the number is per: perplexity per token or word, bits per byte or character."""
    counted: Counted = "original"
    """Words, bytes and characters are those of the text before or after `text` changed it."""
    words: Words = "blanks"
    """How words are counted, a key of `WORDS`."""
    precision: Precision = "fp32"
    """Of matrix products; the sum is fp64."""
    source: str = ""
    """Where these values come from."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_each(self, ("context", "stride", "random_windows"), is_count, "be 0 or more in a protocol")
        if self.context and self.stride > self.context:
            raise UsageError(f"a stride of {self.stride} leaves out tokens of a context of {self.context}: lower it")
        if self.context == 1 and self.targets_inside:
            raise UsageError("a window of one token holds no target: use a context of 2 or more")
        if self.documents == "stream" and (self.text != "as_is" or self.first != "unscored"):
            raise UsageError("a stream is read as it is: documents = stream goes with text as_is and first unscored")
        if self.random_windows and (self.documents == "each" or self.unit != "token"):
            raise UsageError("random windows are drawn from one text and scored per token, not per document or word")
        if self.documents == "stream" and self.unit == "character":
            raise UsageError("the characters of a stream are not counted: choose another unit, or documents = joined")

    def settled(self, block_size: int) -> Protocol:
        """With the numbers that a model of this block_size makes of 0. Raises UsageError where the stride is longer."""
        context = self.context or block_size
        return replace(self, context=context, stride=self.stride or context)

    def differences(self, other: Protocol) -> dict[str, tuple[Any, Any]]:
        """The fields in which the two differ so that their numbers are not comparable."""
        names = [f.name for f in fields(self) if f.name not in ("name", "source")]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def __str__(self) -> str:
        read = "holding its targets" if self.targets_inside else "each followed by its target"
        scored = (
            f"{self.random_windows} random windows" if self.random_windows else f"stride {self.stride or 'context'}"
        )
        parts = [
            f"{self.data or 'any text'} {self.split}",
            f"text {self.text}",
            f"documents {self.documents}",
            f"first token {self.first}",
            f"context {self.context or 'block_size'} {read}",
            scored,
            f"last window {self.last_window}",
            f"per {self.unit} of the {self.counted} text (words: {self.words})",
            self.precision,
        ]
        return f"{self.name}: {', '.join(parts)}"


class Window(NamedTuple):
    """Tokens begin to end - 1 are read; those from `scored` to end are targets, each predicted from what is before."""

    begin: int
    scored: int
    end: int


def windows(protocol: Protocol, n_tokens: int) -> Iterator[Window]:
    """The windows over a text of n_tokens (end-of-text in front included), in order; every target in one of them.

    protocol: a settled one. Only where targets_inside and stride = context does each window lose its first token,
    which then has no context: transformers' loop does the same.
    """
    length = protocol.context + (not protocol.targets_inside)
    before = 1  # targets end here so far; token 0 is none
    for begin in range(0, n_tokens, protocol.stride):
        end = min(begin + length, n_tokens)
        scored = max(before, begin + 1)
        if scored < end:
            is_last = end == n_tokens
            full = max(0, end - length) if is_last and protocol.last_window == "full" else begin
            yield Window(full, scored, end)
        before = end
        if end == n_tokens:
            return


def rows_joined(text: str) -> str:
    """The text as `"\\n\\n".join(rows)` gives it for a data set whose rows are lines with their line ends, blank ones
    empty: what transformers' page on perplexity scores."""
    return "\n\n".join("" if not line.strip() else line for line in text.splitlines(keepends=True))


# Regular expressions and what replaces them, in order: what Megatron-LM does to WikiText and, after it,
# lm-evaluation-harness. Their figures can be had only with exactly these, right or wrong.
_WIKITEXT = [
    (r"s '", "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    *((rf"\{a}\s*([^\{b}]*?)\s*\{b}", rf"{a}\1{b}") for a, b in ("()", "[]", "{}")),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
]
_PTB = [(r" '", "'"), (r" \n", "\n"), (r"\n ", "\n"), (r" n't", "n't"), (r" N ", "1 "), (r"\$ 1", "$1"), (r"# 1", "#1")]


def _replacing(table: list[tuple[str, str]]) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), said) for pattern, said in table]

    def replaced(text: str) -> str:
        for pattern, said in compiled:
            text = pattern.sub(said, text)
        return text

    return replaced


TEXTS: dict[str, Callable[[str], str]] = {
    "as_is": str,
    "rows": rows_joined,
    "wikitext": _replacing(_WIKITEXT),
    "ptb": _replacing(_PTB),
}

WORDS: dict[str, Callable[[str], int]] = {
    "blanks": lambda text: len(text.split()),
    "pieces": lambda text: len(re.split(r"\s+", text)),  # lm-eval's: blanks at an end make one more, an empty one
    "spaces": lambda text: len(text.strip().split(" ")) - 1,  # Megatron-LM's: the first is not predicted
}

_PAPER = "Radford et al. 2019, table 3; detokenizer, context and stride are not stated there and chosen here"
_HF = "transformers documentation, Perplexity of fixed-length models"
_LM_EVAL = "EleutherAI lm-evaluation-harness, task wikitext (the raw form): rolling log-likelihood"
_MEGATRON = (
    "NVIDIA Megatron-LM, zero-shot evaluation with overlapping-eval 32; its scripts read wiki.test.tokens, with <unk> "
    "(--data wikitext103:form=tokenized), in fp16, which is fp32 here"
)
_NANOGPT = "nanoGPT's config/eval_gpt2.py: eval_iters 500 of batch_size 8, random windows; it prints nats per token"

_HF_LOOP = Protocol("", data="wikitext2", text="rows", context=1024, targets_inside=True, source=_HF)
_EACH = Protocol("", documents="each", first="after_eot")
_ROLLING = replace(_EACH, data="wikitext2", text="wikitext", last_window="full", words="pieces", source=_LM_EVAL)
_BY_WORD = Protocol("", data="wikitext103", text="wikitext", unit="word")
_STREAM = Protocol("", split="val", documents="stream")
_ALL = (
    replace(_EACH, name="minilm", split="val", source="this library's own"),
    replace(_STREAM, name="training", source="validation of this library's runs, the whole split"),
    Protocol("gpt2-paper-wikitext2", data="wikitext2", text="wikitext", source=_PAPER),
    replace(_BY_WORD, name="gpt2-paper-wikitext103", source=_PAPER),
    Protocol("gpt2-paper-ptb", data="ptb", text="ptb", unit="word", source=_PAPER),
    replace(_EACH, name="gpt2-paper-lm1b", data="lm1b", unit="word", source=_PAPER),
    Protocol("gpt2-paper-enwik8", data="enwik8", unit="byte", source=_PAPER),
    Protocol("gpt2-paper-text8", data="text8", unit="character", source=_PAPER),
    replace(_HF_LOOP, name="hf-stride-512", stride=512),
    replace(_HF_LOOP, name="hf-stride-1024", stride=1024),
    replace(_ROLLING, name="lm-eval", unit="word"),
    replace(_ROLLING, name="lm-eval-byte", unit="byte"),
    replace(_BY_WORD, name="megatron", context=1024, stride=32, words="spaces", source=_MEGATRON),
    replace(_STREAM, name="nanogpt", data="openwebtext", random_windows=4000, precision="bf16", source=_NANOGPT),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""Named ones. docs/evaluation.md has them as a table."""


def get_protocol(name: str | Protocol, **changes: Any) -> Protocol:
    """The protocol of that name, with fields changed (it is then called name*). UsageError: no such name or field."""
    if isinstance(name, str):
        if name not in PROTOCOLS:
            raise UsageError(f"there is no protocol {name!r}{nearest(name, PROTOCOLS)}: name {', '.join(PROTOCOLS)}")
        name = PROTOCOLS[name]
    changes = {key: value for key, value in changes.items() if value is not None}
    known = [f.name for f in fields(Protocol)]
    for key in changes:
        if key not in known:
            raise UsageError(f"a protocol has no field {key!r}{nearest(key, known)}: it has {', '.join(known)}")
    changed = {key: value for key, value in changes.items() if getattr(name, key) != value}
    return replace(name, **{"name": f"{name.name}*", **changed}) if changed else name


def protocol_table() -> str:
    """All named protocols as a Markdown table, each with every value that it fixes."""
    names = [f.name for f in fields(Protocol) if f.name not in ("name", "source")]
    defaults = {"context": "block size", "stride": "context", "random_windows": "", "data": "any"}

    def cell(name: str, value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value or defaults.get(name, ""))

    lines = [f"| protocol | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for protocol in PROTOCOLS.values():
        cells = [cell(name, getattr(protocol, name)) for name in names]
        lines.append(f"| `{protocol.name}` | {' | '.join(cells)} |")
    sources = [f"- `{protocol.name}`: {protocol.source}." for protocol in PROTOCOLS.values()]
    return "\n".join([*lines, "", *sources])
