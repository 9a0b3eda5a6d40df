"""`minilm COMMAND`, and how every door ends: one sentence for an error, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from minilm.config import nearest
from minilm.errors import MinilmError

DOORS = {
    "train": ("minilm.train_cli", "train a model, from scratch or from weights"),
    "sample": ("minilm.sample_cli", "write text with a trained model"),
    "data": ("minilm.data_cli", "prepare data sets, train tokenizers"),
    "eval": ("minilm.eval_cli", "measure a model, or grade tales"),
    "plot": ("minilm.plot_cli", "curves of runs, to a file and into the terminal"),
    "compare": ("minilm.compare_cli", "models on one text: which is better, or is it chance"),
    "plan": ("minilm.plan_cli", "what a run takes on this machine or that card, and what to do with a budget"),
    "lab": ("minilm.lab_cli", "research questions: run them, write what was found"),
    "bench": ("minilm.bench", "this machine's limits, and what training and decoding reach"),
}


def main() -> int:
    """The console command `minilm`."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print("usage: minilm COMMAND [options]; `minilm COMMAND --help` lists them\n")
        print("\n".join(f"  {name:8}{text}" for name, (_, text) in DOORS.items()))
        return 0 if words else 2
    if words[0] not in DOORS:
        print(
            f"error: minilm has no command {words[0]!r}{nearest(words[0], DOORS)}: it has {', '.join(DOORS)}",
            file=sys.stderr,
        )
        return 2
    return run_door(words[0], words[1:])


def run_door(name: str, argv: Sequence[str] | None = None) -> int:
    """Runs a door's main(argv) and turns what it raises into an exit code: 2 misuse, 1 failure, 130 interrupted."""
    door: Callable[[Sequence[str] | None], int] = import_module(DOORS[name][0]).main
    try:
        return door(argv)
    except MinilmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is left to say, and the interpreter must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
