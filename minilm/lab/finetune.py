"""Finetuning as several questions do it: from one base, on text that it has not seen, in one way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minilm.lab.question import GPU, LAPTOP, SMOKE, Base, Measure, Scale
from minilm.lab.stories import story_loss, validation_stories
from minilm.lab.trial import Trained
from minilm.model.hub import cached
from minilm.model.weights import load_pretrained

STYLES = "plain,fable,news"  # what the base reads
UNSEEN = "letter"  # the style that the base has not read
LEFT_ALONE: dict[str, Any] = {"max_steps": 1, "lr": 0.0}  # an arm that is the base as it stands
LARGE: dict[str, Any] = {"n_layer": 4, "n_embd": 192, "n_head": 3}  # beside width 96: some five times the compute
LOCAL = [{"weight": 0.75}, {"local": "packages", "megabytes": 2.0, "weight": 0.25}]  # beside a card's tales
FORGOTTEN = Measure("forgotten", "loss on the base's own text, more than the base had", "nats per token", digits=4)


def base(scale: Scale, styles: str = STYLES, name: str = "") -> Base:
    """What is finetuned, four times as long in training as other laptop runs; shared by all questions. On a laptop one
    of models/, a quarter of whose tokens were Shakespeare's; on a card a quarter is what installed packages say of
    themselves; for tests it is tales alone."""
    taken = f"tales-shakespeare{name}" if scale.name == "laptop" else ""
    mixed = {"vocabulary": {"style": styles}, "parts": LOCAL} if scale.name == "gpu" else {}
    return Base({"max_steps": scale.extra["base_steps"]}, {"style": styles, **mixed}, pretrained=taken)


def pretrained(scale: Scale, name: str = "") -> Base:
    """The same, or GPT-2 where the scale asks for it: for questions that ask nothing of what a base has read."""
    if size := gpt2(scale)[0]:
        return Base({"max_steps": scale.extra["base_steps"]}, {"style": STYLES}, pretrained=size)
    return base(scale, name=name)


def gpt2(scale: Scale) -> tuple[str, str]:
    """Names of the scale's two sizes of GPT-2; empty where not both are at hand, since losses in tokens of two kinds
    cannot be compared."""
    small, larger = scale.extra.get("gpt2", ("", ""))
    return (small, larger) if small and cached(small) and cached(larger) else ("", "")


def large(scale: Scale) -> tuple[dict[str, Any], Base]:
    """Fields of an arm with the large model, and its base."""
    shape = scale.extra.get("large", LARGE)
    found = pretrained(scale, "-large")
    return shape, replace(found, run={**found.run, **shape}, pretrained=gpt2(scale)[1] or found.pretrained)


def finetuning(
    smoke: Mapping[str, Any], laptop: Mapping[str, Any], gpu: Mapping[str, Any], **changes: Any
) -> dict[str, Scale]:
    """The three scales, with what each question needs beside what it takes to finetune. changes: of the laptop's."""
    return {
        "smoke": _scale(SMOKE.but(n_rates=1, n_stories=1), "bpe:300", 2, 1, 4, smoke),
        "laptop": _scale(LAPTOP.but({"block_size": 192}, **changes), "bpe:512", 60, 5, 1000, laptop),
        "gpu": _scale(GPU.but({"block_size": 512}), "bpe:2048", 1000, 100, 8000, gpu),
    }


def _scale(scale: Scale, bpe: str, steps: int, warmup: int, base_steps: int, extra: Mapping[str, Any]) -> Scale:
    finetune = {"optimizer": "adamw", "schedule": "linear", "beta2": 0.999, "max_steps": steps, "warmup_steps": warmup}
    every = max(steps // 6, 2)
    finetune |= {"weight_decay": 0.01, "eval_every_steps": every, "save_every_steps": every}
    biases = {"attn_bias": True, "mlp_bias": True, "norm_bias": True}
    documents = {"smoke": 2, "laptop": 100, "gpu": 500}[scale.name]
    more = {"finetune": finetune, "documents": documents, "base_steps": base_steps, **extra}
    if scale.name == "smoke":
        more["large"] = {"n_layer": 1, "n_embd": 24, "n_head": 2}
    if scale.name == "gpu":
        more["large"] = {"n_layer": 24, "n_embd": 1024, "n_head": 16}
        more["gpt2"] = ("gpt2", "gpt2-medium")
    return scale.but(biases, {"tokenizer": bpe}, extra=more)


def unseen(megabytes: float, **options: Any) -> dict[str, Any]:
    """So much text of the style that the base has not read, in the base's tokens."""
    return {"style": UNSEEN, "megabytes": megabytes, "vocabulary": "base", **options}


def forgetting(trained: Trained) -> dict[str, float]:
    """How much worse the base's own validation stories are predicted than before finetuning; nothing of GPT-2, whose
    own text is not here."""
    if trained.cell.data["tokenizer"] == "gpt2":
        return {}
    assert trained.base_data is not None
    assert trained.base_checkpoint is not None
    texts = validation_stories(trained.base_data, trained.tokenizer, trained.cell.measure["documents"])
    before = load_pretrained(trained.base_checkpoint)[0].to(trained.model.device).eval()
    now, then = (story_loss(model, trained.tokenizer, texts) for model in (trained.model, before))
    return {"forgotten": now - then}
