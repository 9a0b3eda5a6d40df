"""Named strategies with the settings that were published for them. `--strategy NAME`; options given beside it win."""

from __future__ import annotations

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Fields of `Strategy` (and of the search, where there is one), and where the numbers come from."""

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
}
