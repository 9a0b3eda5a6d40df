"""Published figures (`reference.toml`), to be printed beside ours where rules and text are theirs."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from minilm.evaluation.protocols import PROTOCOLS, WHOLE, Protocol, get_protocol

if TYPE_CHECKING:
    from minilm.evaluation.perplexity import Perplexity

GPT2_CONTEXT = 1024  # tokens; figures by protocols whose context is the model's own are of GPT-2's


class Text(NamedTuple):
    """The text of a published file, told by what is known of it."""

    name: str
    """With its form."""
    data: list[str]
    """Data sets that have it."""
    split: str
    bytes: Sequence[int] = ()
    words: int = 0
    sha256: str = ""


class Figure(NamedTuple):
    """What somebody published of a model."""

    model: str
    key: str
    """Name of a protocol, or benchmark/measure."""
    source: str
    value: float = 0.0
    nats: float = 0.0
    """Per token, where that was published; `value` is then the perplexity."""
    changes: Mapping[str, Any] = {}
    """Fields of the protocol that it was not."""

    def __str__(self) -> str:
        return f"{self.value:g} ({f'{self.nats:g} nats per token; ' if self.nats else ''}{self.source})"

    def rules(self) -> Protocol:
        """The protocol that gave it."""
        return get_protocol(self.key, **self.changes).settled(GPT2_CONTEXT)

    def text(self) -> Text:
        rules = self.rules()
        return next(text for text in texts() if rules.data in text.data and rules.split == text.split)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("reference.toml").read_text("utf-8"))


@cache
def figures() -> tuple[Figure, ...]:
    """All of them."""
    found = (Figure(**row) for row in _table()["figure"])
    return tuple(f._replace(value=round(math.exp(f.nats), 2)) if f.nats else f for f in found)


@cache
def texts() -> tuple[Text, ...]:
    """All that figures are of."""
    return tuple(Text(**row) for row in _table()["text"])


def whole(benchmark: str) -> int:
    """Questions of a benchmark's published file."""
    return int(_table()["questions"].get(benchmark, 0))


def published(model: str, key: str) -> list[Figure]:
    """Figures of a model of that name (`gpt2`, `openai-community/gpt2`) by a protocol or on a benchmark."""
    name = model.rstrip("/").rpartition("/")[2]
    return [figure for figure in figures() if figure.model == name and figure.key == key]


def text_of(data: str, documents: Sequence[str]) -> str:
    """Name of the published text that these documents together are, whole and unchanged; empty where there is none.
    data: "name, split" of a data set, which must be right where no hash is known."""
    n_bytes, n_words = sum(len(text.encode("utf-8", "surrogatepass")) for text in documents), -1
    for text in texts():
        if text.words and n_words < 0:
            n_words = sum(len(document.split()) for document in documents)
        if n_bytes not in text.bytes and not (text.words and n_words == text.words):
            continue
        if text.sha256:
            same = hashlib.sha256("".join(documents).encode("utf-8", "surrogatepass")).hexdigest() == text.sha256
        else:
            same = data in [f"{name.partition(':')[0]}, {text.split}" for name in text.data]
        if same:
            return text.name
    return ""


def beside(found: Perplexity) -> str:
    """Figures of this model by the rules of this measurement, whatever its protocol's name, on the same text; or, where
    the text is another, a sentence that says so."""
    by_rules = [f for key in PROTOCOLS for f in published(found.model, key)]
    free = {"data", "split"} if found.protocol.split == WHOLE else {"data"}
    by_rules = [f for f in by_rules if f.rules().differences(found.protocol).keys() <= free]
    if theirs := [f for f in by_rules if f.text().name == found.text]:
        return "; ".join(map(str, theirs))
    names = dict.fromkeys(f.text().name for f in by_rules)
    return f"none beside this number: they are of {' or '.join(names)}, whole, and this is another text" * bool(names)
