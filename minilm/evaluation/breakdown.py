"""Where the loss is: by how much context a token has, by how frequent it is, by how long its document is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minilm.errors import UsageError
from minilm.evaluation.perplexity import Part
from minilm.picture import panels


class Bin(NamedTuple):
    """Tokens that are alike in one respect: low to high, both included."""

    low: int
    high: int
    n_tokens: int
    nats: float
    """Mean per token."""

    @property
    def name(self) -> str:
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


class Breakdown(NamedTuple):
    """The same sum of nats, three times divided. `str()` is a table of each."""

    by_context: list[Bin]
    """Tokens before it that the model has read."""
    by_frequency: list[Bin]
    """Times that the token stands among the scored ones."""
    by_length: list[Bin]
    """Scored tokens of its document; empty where documents are not apart."""

    def __str__(self) -> str:
        lines = []
        for title, bins in zip(TITLES, self, strict=True):
            if bins:
                lines.append(f"{title:32}{'tokens':>12}{'share':>9}{'nats':>9}")
                total = sum(one.n_tokens for one in bins)
                lines += [
                    f"  {one.name:30}{one.n_tokens:12,}{100 * one.n_tokens / total:8.1f}%{one.nats:9.4f}"
                    for one in bins
                ]
        return "\n".join(lines)


TITLES = ("by tokens of context", "by frequency of the token", "by tokens of the document")


def breakdown(parts: Sequence[Part], by_document: bool) -> Breakdown:
    """What `perplexity` left in `parts`, in bins that double (of frequency: times ten). by_document: parts are told
    apart by their document. Raises UsageError on no parts."""
    if not parts:
        raise UsageError("nothing was scored, so there is nothing to divide")
    nats = np.concatenate([part.nats for part in parts]).astype(np.float64)
    targets = np.concatenate([part.targets for part in parts])
    context = np.concatenate([part.context for part in parts])
    counts = np.bincount(targets)[targets]
    by_length: list[Bin] = []
    if by_document:
        documents = np.concatenate([np.full(len(part.nats), part.document) for part in parts])
        by_length = _bins(np.bincount(documents)[documents], nats, 2)
    return Breakdown(_bins(context, nats, 2), _bins(counts, nats, 10), by_length)


def _bins(values: np.ndarray, nats: np.ndarray, base: int) -> list[Bin]:
    """Base 2: values 1, 2, 3 to 4, 5 to 8, ...; base 10: 1 to 9, 10 to 99, ... Bins without a token are left out."""
    edges = [1]
    while edges[-1] <= int(values.max()):
        edges.append(edges[-1] * base)
    lows = edges if base == 10 else [1, *(edge // 2 + 1 for edge in edges[1:])]
    bins = []
    for i, low in enumerate(lows):
        high = min((lows[i + 1] if i + 1 < len(lows) else low * base) - 1, int(values.max()))
        inside = (values >= low) & (values <= high)
        if inside.any():
            bins.append(Bin(low, high, int(inside.sum()), float(nats[inside].mean())))
    return bins


def draw(found: Mapping[str, Breakdown], file: str | Path) -> None:
    """Writes the curves of one model or several, by name, as a picture. Raises UsageError as `panels` does."""
    panels([partial(curves, found, place) for place in range(3)], file)


def curves(found: Mapping[str, Breakdown], place: int, axis: Any) -> None:
    """Draws one of the three divisions into matplotlib's axes."""
    for name, one in found.items():
        axis.plot([b.high for b in one[place]], [b.nats for b in one[place]], marker="o", label=name)
    axis.set(xscale="log", xlabel=TITLES[place].removeprefix("by "), ylabel="nats per token")
    axis.legend(fontsize=7)
