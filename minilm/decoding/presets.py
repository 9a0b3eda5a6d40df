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
    "nucleus": Preset({"top_p": 0.95}, "Holtzman 2020; best by MAUVE for GPT-2 large and xl, small 0.9 (Hewitt 2022)"),
    "min_p": Preset({"min_p": 0.1}, "Nguyen 2024: 0.05 to 0.1"),
    "typical": Preset({"typical_p": 0.9}, "Meister 2022; best by MAUVE for GPT-2 small, large 0.92 (Hewitt 2022)"),
    "epsilon": Preset({"epsilon": 6e-4}, "Hewitt 2022: GPT-2 small; medium 9e-4, large and xl 3e-4"),
    "eta": Preset({"eta": 2e-3}, "Hewitt 2022: GPT-2 small and medium; large 6e-4, xl 3e-4"),
    "mirostat": Preset({"mirostat": 3.0, "mirostat_rate": 1.0}, "Basu 2021, as the authors' code has it"),
    "ctrl": Preset({"temperature": 0.0, "repetition_penalty": 1.2}, "Keskar 2019: greedy with a penalty of about 1.2"),
    "contrastive": Preset({"penalty_alpha": 0.6, "top_k": 4}, "Su 2022: alpha 0.6, k 3 to 8"),
}


def preset(name: str) -> dict[str, Any]:
    """A preset's settings; "" has none. Raises UsageError on an unknown one, naming the nearest."""
    if name and name not in PRESETS:
        raise UsageError(f"there is no strategy {name!r}{nearest(name, PRESETS)}: it is one of {', '.join(PRESETS)}")
    return dict(PRESETS[name].settings) if name else {}
