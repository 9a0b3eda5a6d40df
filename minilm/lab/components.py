"""Which parts of the model: activations, norms and where they sit, positions, biases. From scratch; switched in a
pretrained model, as it then stands, and recovered by some training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minilm.lab.finetune import LEFT_ALONE, STYLES, pretrained
from minilm.lab.measures import BEFORE, COHERENT, LOSS, PARAMETERS, SPEED
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Question, Scale, grid, prose

GPT2 = {"position": "learned", "qk_norm": False, "bias": True, "init_scheme": "normal"}
PARTS: dict[str, dict[str, Any]] = {"GPT-2": {}, "exact GELU": {"activation": "gelu"}}
PARTS |= {"quick GELU": {"activation": "gelu_quick"}, "ReLU": {"activation": "relu"}}
PARTS |= {"squared ReLU": {"activation": "relu2"}, "SwiGLU": {"activation": "swiglu"}}
PARTS |= {"RMSNorm": {"norm": "rmsnorm"}, "DyT": {"norm": "dyt"}, "no norms": {"norm": "none"}}
PARTS |= {"norms after": {"norm_position": "post"}, "norms around": {"norm_position": "sandwich"}}
PARTS |= {"norm on embeddings": {"embd_norm": True}, "no biases": {"bias": False}, "rope": {"position": "rope"}}
PARTS |= {"alibi": {"position": "alibi"}, "no positions": {"position": "none"}}
PARTS |= {"norms on q and k": {"qk_norm": True}, "untied head": {"tie_embeddings": False}}
SWITCHED = tuple(name for name in PARTS if name != "SwiGLU")
"""Parts in which a pretrained model keeps what has a place there: of SwiGLU's three narrower matrices nothing would be
kept. `gelu_fast` is no part: GPT-2's own function, factored."""


def arms(scale: Scale) -> list[Arm]:
    found = [Arm(name, _run(scale, name), grid(1e-2), "from scratch") for name in PARTS]
    text, taken = {"style": STYLES, "tokenizer": scale.extra["bpe"]}, pretrained(scale, "-gpt2")
    base = replace(taken, run={**_run(scale, "GPT-2"), **taken.run}, data={**taken.data, **text})
    few = {"optimizer": "adamw", "schedule": "linear", "max_steps": scale.extra["steps"], "warmup_steps": 5}
    for name in SWITCHED:
        run = {**_run(scale, name), **few}
        found.append(Arm(name, {**run, **LEFT_ALONE}, (), "switched", text, base=base))
        found.append(Arm(name, run, grid(1e-3), "recovered", text, base=base))
    # One norm's deviation after the other becomes a constant (Heimersheim 2024), three groups a block and the last.
    every = max(few["max_steps"] // (3 * scale.run["n_layer"] + 3), 1)
    in_turn = {**_run(scale, "GPT-2"), **few, "norm": "fixed", "fix_norms_every_steps": every}
    return [*found, Arm("norms fixed in turn", in_turn, grid(1e-3), "recovered", text, base=base)]


def _run(scale: Scale, name: str) -> dict[str, Any]:
    run = {**GPT2, **PARTS[name]}
    bias = run.pop("bias")
    run |= {"attn_bias": bias, "mlp_bias": bias, "norm_bias": bias}
    if run.get("activation") == "swiglu":
        run["n_inner"] = 8 * scale.run["n_embd"] // 3  # three matrices instead of two: as many parameters
    return run


QUESTION = Question(
    **prose("components"),
    measures=(LOSS, BEFORE, COHERENT, PARAMETERS, SPEED),
    margin=0.01,
    reference="GPT-2",
    arms=arms,
    minutes=31,
    scales={
        "smoke": SMOKE.but(
            {"max_steps": 2}, n_rates=1, n_stories=0, extra={"base_steps": 4, "steps": 2, "bpe": "bpe:300"}
        ),
        "laptop": LAPTOP.but({"max_steps": 150}, n_seeds=3, extra={"base_steps": 1000, "steps": 60, "bpe": "bpe:512"}),
        "gpu": GPU.but(extra={"base_steps": 4000, "steps": 400, "bpe": "bpe:2048", "gpt2": ("gpt2", "gpt2")}),
    },
    timed=True,
)
