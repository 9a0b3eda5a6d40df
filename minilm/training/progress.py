"""What a run shows while it goes: clock, progress bar, and the ear for Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

from minilm.config import TrainConfig
from minilm.log import duration, say
from minilm.model.gpt import GPT
from minilm.text.batches import Batches
from minilm.training.feed import Curriculum
from minilm.training.setup import Setup


class Clock:
    """Wall seconds of a run, with validation and saving timed apart from steps."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._start = time.perf_counter() - seconds_before
        self._apart: dict[str, list[float]] = {"eval": [], "save": []}
        self._steps: deque[float] = deque(maxlen=51)  # ends of recent steps, in seconds spent on steps alone

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def step_ended(self) -> None:
        self._steps.append(self.seconds() - sum(map(sum, self._apart.values())))

    def step_seconds(self) -> float | None:
        """Mean of up to fifty recent steps; None before the second, since the first one compiles."""
        if len(self._steps) < 2:
            return None
        return (self._steps[-1] - self._steps[0]) / (len(self._steps) - 1)

    @contextmanager
    def apart(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._apart[kind].append(time.perf_counter() - began)

    def eta(self, config: TrainConfig, step: int) -> float | None:
        """Seconds to the end: steps, validations and saves that are left, at the pace seen; None while unknown."""
        pace = self.step_seconds()
        if pace is None:
            return None
        left = (config.max_steps - step) * pace
        for kind, every in (("eval", config.eval_every_steps), ("save", config.save_every_steps)):
            if self._apart[kind] and every:
                left += (config.max_steps // every - step // every) * self._apart[kind][-1]
        return left


class Bar:
    """A progress bar on a terminal; elsewhere a line now and then. Reading a loss back waits for the device."""

    def __init__(self, max_steps: int, first: int) -> None:
        form = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix} [{elapsed}]"
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=max_steps, initial=first, bar_format=form, disable=not self._on_terminal, leave=False)
        self._began = self._shown = time.perf_counter()
        self._seconds_between = 0.5 if self._on_terminal else 30.0
        self._said_first = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def due(self) -> bool:
        """Whether it is time to show something."""
        return time.perf_counter() - self._shown > self._seconds_between

    def micro(self, done: int, n_micro: int) -> None:
        """Progress inside a step that takes long."""
        if n_micro == 1:
            return
        if not self._said_first:
            self._said_first = True
            say(f"first of {n_micro} micro-batches of a step done after {duration(time.perf_counter() - self._began)}")
        if done < n_micro and self._on_terminal and self.due():
            self._bar.set_description_str(f"micro-batch {done}/{n_micro}")
            self._shown = time.perf_counter()

    def show(self, step: int, text: str, as_line: bool) -> None:
        """The newest figures; as_line: as a line that stays, also on a terminal."""
        if as_line or not self._on_terminal:
            say(f"step {step}/{self._bar.total}: {text}")
        self._bar.set_description_str("")
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.n = step
        self._bar.refresh()
        self._shown = time.perf_counter()


def progress_text(loss: float, val_loss: float | None, tokens_per_second: float, mfu: float, eta: float | None) -> str:
    """loss 1.234, val 1.301, 31,000 tok/s, MFU 24 %, ETA 2 min 5 s."""
    val = "" if val_loss is None else f", val {val_loss:.3f}"
    speed = f", {tokens_per_second:,.0f} tok/s, MFU {mfu:.0%}" if tokens_per_second else ""
    return f"loss {loss:.3f}{val}{speed}, ETA {'…' if eta is None else duration(eta)}"


def announce(
    config: TrainConfig, setup: Setup, precision: str, model: GPT, batches: Batches | Curriculum, step: int
) -> None:
    """Says what is about to be trained, and how."""
    tokens_per_step = config.batch_size * config.model.block_size
    epochs = config.max_steps * config.batch_size / batches.windows_per_epoch
    n_micro = -(-config.batch_size // setup.micro_batch_size)
    how = "compiled (the first step takes longer)" if setup.compile else "eager"
    say(
        f"{model.num_params():,} parameters on {setup.device_type}, {precision}, {how}; "
        f"{config.optimizer}, lr {config.lr:g}"
    )
    say(
        f"{tokens_per_step:,} tokens a step ({n_micro} x {setup.micro_batch_size} sequences of "
        f"{config.model.block_size}), {config.max_steps:,} steps, {epochs:.2f} epochs of "
        f"{batches.windows_per_epoch:,} sequences"
    )
    if step:
        say(f"resuming {config.out_dir} after step {step}")


class Interrupt:
    """Hears the first Ctrl-C or SIGTERM and lets the micro-batch end; a second one stops at once."""

    def __init__(self) -> None:
        self.heard = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.heard:
            raise KeyboardInterrupt
        self.heard = True
        say("stopping: the last whole step is being saved (once more: stop at once)")
