"""`minilm eval`: what a model is worth, in numbers; and the grader of tales."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from minilm.command_line import Parser
from minilm.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Measures as the command line says; returns the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    from minilm import eval_tales

    if options.grade is not None:
        if options.model is not None:
            raise UsageError("--grade judges a file and needs no model: leave out one of the two")
        return eval_tales.grade_file(options)
    if options.model is None:
        raise UsageError("name the model to measure: a run, a step folder, a Hugging Face folder or a Hub name")
    if not options.coherence:
        raise UsageError("say what to measure: --coherence (--help lists the options)")
    return eval_tales.measure_coherence(options)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises UsageError, naming the nearest option."""
    parser = Parser(prog="minilm eval", description="Measures a model, or grades a file of tales.")
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="run, step folder, Hugging Face folder, file or Hub name")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--data", metavar="X", help="prepared data, or a data set's name (the run's own)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (the fastest there is)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="fp32", help="of the weights (%(default)s)")
    add("--tokenizer", metavar="X", help="gpt2, bytes or a folder (the one beside the weights)")
    add("--seed", type=int, default=0, metavar="N", help="of whatever is drawn (%(default)s)")
    add = parser.add_argument_group("tales").add_argument
    add("--grade", metavar="FILE", help="judge a text file: a tale a line, or parted by blank lines or <|endoftext|>")
    add("--coherence", action="store_true", help="share of the model's own tales that the grader passes")
    add("--level", type=int, metavar="N", help="1 to 4 (--grade: found out; --coherence: the run's data's, else 1)")
    add(
        "--style",
        metavar="S",
        help="plain, fable, ... (--grade: the control code's; --coherence: the data's, else plain)",
    )
    add("--num_stories", type=int, default=200, metavar="N", help="sampled for --coherence (%(default)s)")
    add("--temperature", type=float, default=1.0, metavar="T", help="(%(default)s)")
    add("--top_k", type=int, default=0, metavar="K", help="only the K likeliest tokens; 0: all (%(default)s)")
    add("--top_p", type=float, default=1.0, metavar="P", help="only the likeliest with mass P; 1: all (%(default)s)")
    return parser.parse_words(argv)
