"""Tales from several cores: the same stories in the same order as from one, each being a pure function of its seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count

from minilm.errors import UsageError
from minilm.text.parallel import in_order, n_cores
from minilm.text.tales.grammar import grammar
from minilm.text.tales.tell import first_seed, mixed_stories, one_of, until

BLOCK = 64  # seeds told in a row: handing a block over costs little beside telling it
WORTH_MEGABYTES = 5.0  # below, starting processes takes longer than they save


def parallel_stories(
    styles: str, megabytes: float, seed: int = 0, level: int = 1, split: str = "train", workers: int | None = None
) -> Iterator[str]:
    """`mixed_stories`, told by `workers` processes (one for each core).

    Raises UsageError as it does, and on no text; MinilmError where a process dies.
    """
    if not megabytes > 0:
        raise UsageError(f"megabytes of tales must be more than 0, not {megabytes}")
    workers = n_cores() if workers is None else workers
    if workers < 2 or megabytes < WORTH_MEGABYTES or not sys.executable:
        return mixed_stories(styles, megabytes, seed, level, split)
    # What is wrong with the arguments shows here, before any process starts.
    next(mixed_stories(styles, 1e-6, seed, level, split))
    argument, called = (styles, seed, level, split), "a process that tells tales"
    told = in_order("minilm.text.tales.stream:teller", argument, count(), workers, called)
    return until(megabytes, (text for _, texts in told for text in texts))


def teller(argument: tuple[str, int, int, str]) -> Callable[[int], list[str]]:
    """The work of `parallel_stories`' processes: the stories of a block."""
    styles, seed, level, split = argument
    grammars, first = [grammar(level, style.strip()) for style in styles.split(",")], first_seed(split, seed)
    return lambda block: [one_of(grammars, i, first, split) for i in range(block * BLOCK, (block + 1) * BLOCK)]
