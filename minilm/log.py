"""What a run says: lines on stderr, one JSON object a line in metrics.jsonl, and other loggers if asked for."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minilm.errors import UsageError


def say(text: str = "") -> None:
    """Prints a line on stderr, above a progress bar where one is shown; of torchrun's processes the first one does."""
    if is_first_rank():
        tqdm.write(text, file=sys.stderr)


def is_first_rank() -> bool:
    """Whether this process is alone, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class Metrics:
    """Appends to metrics.jsonl. Its lines, and those of samples.jsonl beside it, are of the run that counts: what
    steps wrote that will be run again, after a resume or a rollback, is dropped first.

    loggers: names of LOGGERS that get every number too. Raises UsageError where one is not installed.
    """

    def __init__(self, path: Path, keep_until_step: int | None = None, loggers: Sequence[str] = ()) -> None:
        self.path = path
        self._loggers = [LOGGERS[name](path.parent, keep_until_step or 0) for name in loggers if is_first_rank()]
        if keep_until_step is not None:
            _drop_after(path, keep_until_step or -1)  # what is measured at step 0 is measured again

    def back_to(self, step: int) -> None:
        """A rollback: later steps will be run again. The lines that say what went wrong stay."""
        _drop_after(self.path, step, keep="trouble")
        for logger in self._loggers:
            logger.back_to(step)

    def write(self, **values: Any) -> None:
        if not is_first_rank():
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        for logger in self._loggers:
            logger.log({k: float(v) for k, v in values.items() if isinstance(v, int | float)}, values["step"])

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


class TensorBoard:
    """Event files in run/tensorboard."""

    def __init__(self, run: Path, step: int) -> None:
        check_installed(["tensorboard"])
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._kind = str(run / "tensorboard"), SummaryWriter
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)

    def back_to(self, step: int) -> None:
        self._writer.close()
        self._writer = self._kind(self._folder, purge_step=step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases: project minilm, the run's folder as its name; WANDB_MODE=offline keeps everything here."""

    def __init__(self, run: Path, step: int) -> None:
        check_installed(["wandb"])
        import wandb

        self._run = wandb.init(project="minilm", name=run.name, dir=str(run))

    def back_to(self, step: int) -> None:
        """W&B takes no step twice: what was logged of these stays."""

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, int], Any]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_installed(loggers: Sequence[str]) -> None:
    """Raises UsageError where the package of a logger is missing (each has its own name)."""
    for name in loggers:
        if find_spec(name) is None:
            raise UsageError(f"--loggers {name} needs the extra `log`: pip install 'minilm[log]'")


def _drop_after(metrics: Path, step: int, keep: str = "") -> None:
    """Replaces metrics.jsonl and samples.jsonl, whole or not at all, by their lines up to a step and those that have a
    key `keep`."""
    for path in (metrics, metrics.with_name("samples.jsonl")):
        if is_first_rank() and path.exists():
            kept = [row for row in read_metrics(path) if row.get("step", math.inf) <= step or keep in row]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError where there is none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is damaged, it is no JSON ({error}): fetch or save it again") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds no object but a {type(raw).__name__}: fetch or save it again")
    return raw


def plain(value: Any) -> Any:
    """None for NaN and infinities, which JSON lacks, in dicts and lists too."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line that holds an object; a line that a kill cut short, or a broken one, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def quoted(path: object) -> str:
    """For a command that is to be pasted into a shell."""
    return shlex.quote(str(path))


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"
