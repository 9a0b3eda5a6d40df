"""Where a build stands, on disk beside the shards that it has written, so that another process can go on from there.

Documents come in the same order from the same source: a state is how many of them the shards hold, and the writers' and
counters' own. The held-out choice and the vocabulary, made before the first document is encoded, are in it too.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minilm.log import say
from minilm.text.encode import Counts
from minilm.text.folders import left_behind, read_object
from minilm.text.holdout import Holdout
from minilm.text.shard_writer import ShardWriter
from minilm.text.tokenizer import Tokenizer, get_tokenizer

STATE = "state.json"
EVERY_SECONDS = 30.0
"""At most so much encoding is done again."""


class Progress:
    """The state of a build that will be `folder`; `key` names its source and recipe. Empty where none was left."""

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.folder = next(filter(self.is_kept, left_behind(folder)), folder)  # until `replacing` gives its own
        self.found: dict[str, Any] = read_object(self.folder / STATE) if self.is_kept(self.folder) else {}
        self.n_documents = int(self.found.get("documents", 0))
        self.counts = defaultdict(Counts, {s: Counts(**c) for s, c in self.found.get("counts", {}).items()})
        self.short: Counter[str] = Counter(self.found.get("short", {}))
        self._saved = time.monotonic()
        if self.n_documents:
            say(f"going on after {self.n_documents:,} documents that an earlier run encoded")

    def holdout(self, made: Callable[[], Holdout]) -> Holdout:
        """The held-out choice of the earlier run, or a new one."""
        if "holdout" not in self.found:
            return made()
        known = self.found["holdout"]
        return Holdout(**{**known, "chosen": None if known["chosen"] is None else frozenset(known["chosen"])})

    def is_kept(self, folder: Path) -> bool:
        return read_object(folder / STATE).get("key") == self.key

    def tokenizer(self, made: Callable[[], Tokenizer]) -> Tokenizer:
        """The earlier run's, or a new one."""
        return get_tokenizer(self.folder) if self.found else made()

    def restore(self, folder: Path, tokenizer: Tokenizer, writer_of: Callable[[str], ShardWriter]) -> None:
        """Brings the writers to where the state has them; `folder` is where they write."""
        self.folder = folder
        for split, state in self.found.get("writers", {}).items():
            writer_of(split).restore(state)
        tokenizer.save(folder)

    def done(self, n: int, writers: dict[str, ShardWriter], holdout: Holdout | None, short: Counter[str]) -> None:
        """Hears that n more documents are with the writers."""
        self.n_documents += n
        if time.monotonic() - self._saved < EVERY_SECONDS:
            return
        known = asdict(holdout) if holdout else None
        if known and known["chosen"] is not None:
            known["chosen"] = sorted(known["chosen"])
        state = {
            "key": self.key,
            "documents": self.n_documents,
            "counts": {split: vars(counts) for split, counts in self.counts.items()},
            "short": short,
            "writers": {split: writer.state() for split, writer in writers.items()},
            **({"holdout": known} if known else {}),
        }
        partial = self.folder / f"{STATE}.partial"
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(self.folder / STATE)
        self._saved = time.monotonic()
