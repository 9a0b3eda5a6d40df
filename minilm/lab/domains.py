"""What finetunes how fast: near and far, known and special text, little and much; against training it from scratch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minilm.lab.finetune import FORGOTTEN, UNSEEN, base, finetuning, forgetting
from minilm.lab.measures import BITS, LOSS, STEPS_TO_REFERENCE
from minilm.lab.question import Arm, Question, Scale, grid, prose
from minilm.lab.statistics import paired_effect
from minilm.lab.trial import Trained

DOMAINS: dict[str, dict[str, Any]] = {"known style": {"style": "fable"}, "new style": {"style": UNSEEN}}
DOMAINS |= {"harder tales": {"style": "plain", "level": 3}, "manual": {"local": "manual"}, "code": {"local": "code"}}
TALES = "of tales alone"  # finetuned from a base that has not read the laptop's Shakespeare
LAPTOP = {"megabytes": (0.03, 0.3), "alone": ("new style", "manual", "code")}


def arms(scale: Scale) -> list[Arm]:
    found, run = [], scale.extra["finetune"]
    alone = replace(base(scale), pretrained="")
    scratch = replace(alone, weights=False)
    for domain, options in DOMAINS.items():
        for megabytes in scale.extra["megabytes"]:
            data = {**options, "megabytes": megabytes, "vocabulary": "base"}
            group, measure = f"{domain}, {megabytes:g} MB", {"documents": scale.extra["documents"]}
            found.append(Arm("finetuned", run, grid(1e-3), group, data, measure, x=1e6 * megabytes))
            if domain in scale.extra.get("alone", ()):
                found.append(Arm(TALES, run, grid(1e-3), group, data, measure, alone, x=1e6 * megabytes))
            found.append(Arm("from scratch", run, grid(1e-2), group, data, {}, scratch, x=1e6 * megabytes))
    return found


def forgotten(trained: Trained) -> dict[str, float]:
    return {} if trained.cell.arm.startswith("from scratch") else forgetting(trained)


def beside(analysis: Any) -> list[str]:
    """What the base that has read Shakespeare too comes to beside the one that has not."""
    found = {r.arm.label: r.values["val_loss"] for r in analysis.arms}
    pairs = [(r.arm, f"finetuned / {r.arm.group}") for r in analysis.arms if r.arm.name == TALES]
    effects = {arm.group: paired_effect(found[other], found[arm.label]) for arm, other in pairs if other in found}
    each = ", ".join(f"{group} {e.mean:+.3f} ({e.interval(3)})" for group, e in effects.items())
    return [f"With Shakespeare in a quarter of what the base has read, nats per token more: {each}."] if each else []


def gains(analysis: Any) -> str:
    """What finetuning takes off the base's own loss, with the most text, and whether it is most where text is far."""
    amount, found = f", {max(analysis.scale.extra['megabytes']):g} MB", dict[str, list[float]]()
    for line in analysis.lines:
        if line["kind"] == "paired" and line["arm"].startswith("finetuned") and line["arm"].endswith(amount):
            m, domain = line["metrics"], line["arm"].removeprefix("finetuned / ").removesuffix(amount)
            gain = (m["curve"][0][1] - m["val_loss"]) * m["bits_per_byte"] / m["val_loss"]
            found.setdefault(domain, []).append(gain)
    effects = {domain: paired_effect(of, [0.0] * len(of)) for domain, of in found.items()}
    each = ", ".join(f"{domain} {e.mean:.3f} ({e.interval(3)})" for domain, e in effects.items())
    far, near = ([e for d, e in effects.items() if ("local" in DOMAINS[d]) == there] for there in (True, False))
    ordered = min(e.low for e in far) > max(e.high for e in near) and min(e.low for e in near) > 0
    return f"bits per byte that finetuning takes off: {each}: {'agrees' if ordered else 'not all in that order'}"


QUESTION = Question(
    **prose("domains"),
    measures=(LOSS, STEPS_TO_REFERENCE, BITS, FORGOTTEN),
    margin=0.02,
    reference="from scratch",
    arms=arms,
    scales=finetuning({"megabytes": (0.02,)}, LAPTOP, {"megabytes": (0.03, 0.4)}, n_seeds=3, n_stories=0),
    minutes=20,
    base=base,
    measure=forgotten,
    tells=beside,
    judges={"Gururangan 2020": gains},
)
