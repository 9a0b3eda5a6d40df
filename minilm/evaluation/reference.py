"""Published figures (`reference.toml`), to be printed beside ours."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import NamedTuple


class Figure(NamedTuple):
    """What somebody published of a model."""

    model: str
    key: str
    """Name of a protocol, or benchmark/measure."""
    value: float
    source: str


@cache
def figures() -> tuple[Figure, ...]:
    """All of them."""
    table = tomllib.loads(resources.files(__package__).joinpath("reference.toml").read_text("utf-8"))
    return tuple(Figure(**row) for row in table["figure"])


def published(model: str, key: str) -> list[Figure]:
    """Figures of a model of that name (`gpt2`, `openai-community/gpt2`) by a protocol or on a benchmark."""
    name = model.rstrip("/").rpartition("/")[2]
    return [figure for figure in figures() if figure.model == name and figure.key == key]
