"""Where the lab keeps things: results, which are committed, and work in progress, which is not."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from minilm.errors import UsageError
from minilm.lab.question import Cell, Line, address
from minilm.log import read_metrics

FULL_BYTES = 900_000  # of a file of results; what comes then goes to the next: git and editors like small files


class Places:
    """results/<question>.jsonl in the lab's folder, once it is full <question>.2.jsonl; runs, bases, logs and locks in
    its folder `work`."""

    def __init__(self, folder: str | Path = "lab") -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{folder} is a file: name the folder of the lab")
        self.work = self.folder / "work"

    def results_file(self, question: str, n: int = 1) -> Path:
        return self.folder / "results" / (f"{question}.{n}.jsonl" if n > 1 else f"{question}.jsonl")

    def _files(self, question: str) -> list[Path]:
        return list(takewhile(Path.is_file, (self.results_file(question, n) for n in count(1))))

    def results(self, question: str, scale: str) -> dict[str, Line]:
        """Address -> line. The address is worked out anew from the recorded settings, so that a result which today's
        defaults would not give counts as not done; so does a line that a kill cut short."""
        found: dict[str, Line] = {}
        for path in self._files(question):
            try:
                found |= {address(line["settings"]): line for line in read_metrics(path) if line["scale"] == scale}
            except (KeyError, TypeError) as error:
                raise UsageError(f"a line of {path} is no result of the lab (it has no {error}): remove it") from None
        return found

    def elsewhere(self, cell: Cell) -> Line | None:
        """The line of another question that has run this very cell, which `run_for` names."""
        for name in sorted(path.stem for path in (self.folder / "results").glob("*.jsonl") if "." not in path.stem):
            if name != cell.question and (line := self.results(name, cell.scale).get(cell.address)):
                return {"run_for": name, **line}
        return None

    def append(self, question: str, line: dict[str, Any]) -> None:
        """Adds a result, whole and on disk, whoever else is writing. What a kill left of a line is closed first."""
        files = self._files(question)
        full = not files or files[-1].stat().st_size >= FULL_BYTES
        path = self.results_file(question, len(files) + full)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def lock(self, name: str, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
        """Whether this process has the lock; the system frees it when the process ends, however it ends."""
        path = self.work / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(file, how | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
