"""Named strategies with the settings that were published for them. `--strategy NAME`; options given beside it win."""

from __future__ import annotations

from typing import Any, NamedTuple

from minilm.config import nearest
from minilm.errors import UsageError

ROLLING = ("reread", "shift")  # what becomes of a context that is full


class Preset(NamedTuple):
    """Fields of `Strategy` and `Method`, and where the numbers come from."""

    settings: dict[str, Any]
    source: str


PRESETS: dict[str, Preset] = {
    "sample": Preset({}, "the model's own distribution"),
    "greedy": Preset({"temperature": 0.0}, "the likeliest token, always"),
    "top_k": Preset({"top_k": 40}, "Radford 2019 (GPT-2's samples)"),
    "nucleus": Preset({"top_p": 0.95}, "Holtzman 2020: nearest to human text for GPT-2 large"),
    "min_p": Preset({"min_p": 0.1}, "Nguyen 2024: 0.05 to 0.1"),
    "typical": Preset({"typical_p": 0.95}, "Meister 2022: 0.2 and 0.95 were tried"),
    "epsilon": Preset({"epsilon": 6e-4}, "Hewitt 2022: 3e-4 to 9e-4"),
    "eta": Preset({"eta": 2e-3}, "Hewitt 2022: 3e-4 to 4e-3, smaller for larger models"),
    "mirostat": Preset({"mirostat": 3.0}, "Basu 2021: a target of 3 bits"),
    "ctrl": Preset({"temperature": 0.0, "repetition_penalty": 1.2}, "Keskar 2019: greedy with a penalty of 1.2"),
    "contrastive": Preset({"penalty_alpha": 0.6, "top_k": 4}, "Su 2022: alpha 0.6, k 4 to 8"),
}


def preset(name: str) -> dict[str, Any]:
    """A preset's settings; "" has none. Raises UsageError on an unknown one, naming the nearest."""
    if name and name not in PRESETS:
        raise UsageError(f"there is no strategy {name!r}{nearest(name, PRESETS)}: it is one of {', '.join(PRESETS)}")
    return dict(PRESETS[name].settings) if name else {}
