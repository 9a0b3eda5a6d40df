"""Values against annotations, and the nearest right name to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from minilm.errors import UsageError


def check_fields(config: Any) -> None:
    """Raises UsageError where a dataclass's field has a value outside its annotated type or `Literal`."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value, hint = getattr(config, f.name), hints[f.name]
        choices = get_args(hint)
        if str(hint).startswith("typing.Literal"):
            if value not in choices:
                raise UsageError(
                    f"{f.name} is {value!r}: choose {', '.join(map(str, choices))}{nearest(value, choices)}"
                )
        elif hint is float and type(value) is int:
            object.__setattr__(config, f.name, float(value))
        elif hint in (int, float, bool, str) and type(value) is not hint:
            raise UsageError(f"{f.name} takes {hint.__name__}, not {value!r}")
        elif hint in (tuple[int, ...], tuple[str, ...]):
            kind = get_args(hint)[0]
            if not isinstance(value, list | tuple) or not all(type(i) is kind for i in value):
                raise UsageError(f"{f.name} takes a list of {kind.__name__}, not {value!r}")
            object.__setattr__(config, f.name, tuple(value))


def check_each(config: Any, names: Sequence[str], holds: Callable[[Any], bool], must: str) -> None:
    """Raises UsageError where the value of one of these fields does not hold; must: the end of the sentence."""
    for name in names:
        value = getattr(config, name)
        if not holds(value):
            raise UsageError(f"{name} must {must}, not {value!r}")


def is_count(value: object, least: int = 0) -> bool:
    """Whether it is a whole number, so many or more."""
    return type(value) is int and value >= least


def nearest(name: object, known: Iterable[object], alike: float = 0.6) -> str:
    """' (did you mean x?)' for the closest of `known`, or nothing where none is so much alike, of 1."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=alike)
    return f" (did you mean {close[0]}?)" if close else ""
