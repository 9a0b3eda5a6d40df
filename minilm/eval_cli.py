"""`minilm eval`: what a model is worth, in numbers; and the grader of tales."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minilm import runtime
from minilm.command_line import Parser, unread, whole
from minilm.errors import UsageError
from minilm.log import say

if TYPE_CHECKING:
    from minilm.model.gpt import GPT
    from minilm.text.tokenizer import Tokenizer

FORMATS = ("table", "markdown", "csv", "json")
_MODEL = ("model", "json", "device", "precision", "tokenizer")
_PROTOCOL = ("data", "source", "eval_tokens", "split", "text", "documents", "first", "unit", "context", "stride")
READ = {
    "protocols": (),
    "grade": ("json", "level", "style"),
    "text_file": (*_MODEL, "data", "source", "split", "out", "reference", "mauve_tokens", "level"),
    "benchmark": (*_MODEL, "source", "limit"),
    "coherence": (*_MODEL, "data", "level", "style", "num_stories", "seed", "temperature", "top_k", "top_p"),
    "all": (*_MODEL, *_PROTOCOL, "limit", "format"),
    "protocol": (*_MODEL, *_PROTOCOL, "breakdown", "picture", "out"),
}
"""What is measured, the first that is asked for -> options that it reads beside its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures as the command line says; returns the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    from minilm import eval_benchmark, eval_perplexity, eval_tales, eval_text

    mode = check_read(options)
    if mode == "protocols":
        from minilm.evaluation.protocols import protocol_table

        print(protocol_table())
        return 0
    if mode == "grade":
        return eval_tales.grade_file(options)
    runtime.tune_allocator()  # what follows runs models
    if mode == "text_file":
        return eval_text.measure(options)
    if options.model is None:
        raise UsageError("name the model to measure: a run, a step folder, a Hugging Face folder or a Hub name")
    if mode == "benchmark":
        return eval_benchmark.measure(options)
    if mode == "coherence":
        return eval_tales.measure_coherence(options)
    if options.json and options.breakdown:
        raise UsageError("--breakdown prints a table: leave out --json, or draw it with --picture FILE")
    options.format = "json" if options.json else options.format
    return eval_perplexity.measure(options)


def check_read(options: argparse.Namespace) -> str:
    """What is asked for, a key of READ. Raises UsageError on an option that it does not read."""
    mode = next((mode for mode in READ if getattr(options, mode) not in (None, False)), "protocol")
    read = {mode, *READ[mode]}
    if mode == "text_file":
        read -= {"source"} if options.data is None else set()
        read -= {"split"} if options.reference is None else set()
    if left := unread(options, parse([]), read):
        names = {"model": "the model", "text": "--form", "text_file": "--text"}
        listed = ", ".join(names.get(name, f"--{name}") for name in left)
        reader = "a perplexity" if mode == "protocol" else names.get(mode, f"--{mode}")
        raise UsageError(f"leave out {listed}, which {reader} does not read")
    return mode


def loaded(options: argparse.Namespace, name: str, role: str = "") -> tuple[GPT, Tokenizer]:
    """The model of that name, in fp32 where no precision is asked for, and its tokenizer; says what they are."""
    from minilm.sample_cli import load

    options.checkpoint = name
    options.precision = "fp32" if options.precision == "auto" else options.precision
    model, tokenizer, what = load(options)
    say(f"{role}{what}")
    return model, tokenizer


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises UsageError, naming the nearest option."""
    parser = Parser(prog="minilm eval", description="Measures a model, or grades a file of tales.")
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="run, step folder, Hugging Face folder, file or Hub name")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--data", metavar="X", help="prepared data, a data set's name, or text (the protocol's, else the run's own)")
    add("--source", metavar="X", help="a local copy of the data set in its original form; of --all: a folder of them")
    add("--seed", type=whole(), default=0, metavar="N", help="of whatever is drawn (%(default)s)")
    add_device(parser)
    add_protocol(parser)
    parser.add_argument("--all", action="store_true", help="every protocol and benchmark, beside published figures")
    parser.add_argument("--format", choices=FORMATS, default="table", help="of --all (%(default)s)")
    parser.add_argument("--breakdown", action="store_true", help="loss by context, frequency, length of document too")
    parser.add_argument("--picture", metavar="FILE", help="draw the breakdown as svg, png or pdf")
    parser.add_argument("--protocols", action="store_true", help="the table of all protocols, as Markdown")
    add("--out", metavar="FILE", help="write the perplexity with its protocol, or the table of --text, as JSON")
    add = parser.add_argument_group("benchmarks").add_argument
    add("--benchmark", metavar="B", help="lambada, lambada-openai, hellaswag, cbt-cn, cbt-ne; downloaded, or --source")
    add("--limit", type=whole(), default=0, metavar="N", help="ask the first N questions; 0: all")
    add = parser.add_argument_group("generated text").add_argument
    add("--text", dest="text_file", metavar="FILE", help="measure texts: jsonl with text, label, ended; or plain text")
    add("--reference", metavar="X", help="real texts beside them: such a file, or data of which --split (val) is taken")
    add("--mauve_tokens", type=whole(), default=0, metavar="N", help="MAUVE cuts texts to; 0: what nine tenths have")
    add = parser.add_argument_group("tales").add_argument
    add("--grade", metavar="FILE", help="judge a text file: a tale a line, or parted by blank lines or <|endoftext|>")
    add("--coherence", action="store_true", help="share of the model's own tales that the grader passes")
    add("--level", type=int, metavar="N", help="1 to 4 (--grade: found out; --coherence: the run's data's, else 1)")
    add("--style", metavar="S", help="plain, fable, .. (--grade: the control code's; --coherence: the data's or plain)")
    add("--num_stories", type=int, default=200, metavar="N", help="sampled for --coherence (%(default)s)")
    add("--temperature", type=float, default=1.0, metavar="T", help="(%(default)s)")
    add("--top_k", type=int, default=0, metavar="K", help="only the K likeliest tokens; 0: all (%(default)s)")
    add("--top_p", type=float, default=1.0, metavar="P", help="only the likeliest with mass P; 1: all (%(default)s)")
    return parser.parse_words(argv)


def add_device(parser: Parser) -> None:
    """Where and how a model is run."""
    add = parser.add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (the fastest there is)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="(the protocol's; else fp32)")
    add("--tokenizer", metavar="X", help="gpt2, bytes or a folder (the one beside the weights)")


def add_protocol(parser: Parser) -> None:
    """A protocol and changes to it."""
    add = parser.add_argument_group("perplexity").add_argument
    add("--protocol", default="minilm", metavar="P", help="docs/evaluation.md has the table (%(default)s)")
    add("--split", metavar="X", help="train, val, test (the protocol's, as all that follow)")
    add("--form", dest="text", metavar="X", help="what is done to the text: as_is, rows, wikitext, ptb")
    add("--documents", metavar="X", help="joined, each, stream")
    add("--first", metavar="X", help="unscored, after_eot")
    add("--unit", metavar="X", help="token, word, byte, character")
    add("--context", type=whole(), metavar="N", help="tokens read at most; 0: the model's block_size")
    add("--stride", type=whole(), metavar="N", help="tokens from window to window; 0: the context")
    add("--eval_tokens", type=whole(), default=0, metavar="N", help="of prepared data, the first N tokens; 0: all")
