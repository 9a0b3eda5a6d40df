"""Which parts of the model: activations, norms and where they sit, positions, biases. From scratch; switched in a
pretrained model, as it then stands, and recovered by some training."""

from __future__ import annotations

from typing import Any

from minilm.lab.finetune import LEFT_ALONE
from minilm.lab.measures import BEFORE, COHERENT, LOSS, PARAMETERS, SPEED
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Base, Claim, Question, Scale, grid

GPT2 = {"position": "learned", "qk_norm": False, "bias": True, "init_scheme": "normal"}
PARTS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "exact GELU": {"activation": "gelu"},
    "ReLU": {"activation": "relu"},
    "squared ReLU": {"activation": "relu2"},
    "SwiGLU": {"activation": "swiglu"},
    "RMSNorm": {"norm": "rmsnorm"},
    "DyT": {"norm": "dyt"},
    "no norms": {"norm": "none"},
    "norms after": {"norm_position": "post"},
    "norms around": {"norm_position": "sandwich"},
    "norm on embeddings": {"embd_norm": True},
    "no biases": {"bias": False},
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi"},
    "no positions": {"position": "none"},
    "norms on q and k": {"qk_norm": True},
    "untied head": {"tie_embeddings": False},
}
SWITCHED = ("GPT-2", "exact GELU", "ReLU", "squared ReLU", "RMSNorm", "no norms", "no biases", "rope", "untied head")
"""Parts that a pretrained model can be given: what it has of their weights is kept."""


def arms(scale: Scale) -> list[Arm]:
    found = [Arm(name, _run(scale, name), grid(1e-2), "from scratch") for name in PARTS]
    base = Base({**_run(scale, "GPT-2"), "max_steps": scale.extra["base_steps"]}, {})
    few = {"optimizer": "adamw", "schedule": "linear", "max_steps": scale.extra["steps"], "warmup_steps": 5}
    for name in SWITCHED:
        run = {**_run(scale, name), **few}
        found.append(Arm(name, {**run, **LEFT_ALONE}, (), "switched", base=base))
        found.append(Arm(name, run, grid(1e-3), "recovered", base=base))
    return found


def _run(scale: Scale, name: str) -> dict[str, Any]:
    run = {**GPT2, **PARTS[name]}
    bias = run.pop("bias")
    run |= {"attn_bias": bias, "mlp_bias": bias, "norm_bias": bias}
    if run.get("activation") == "swiglu":
        run["n_inner"] = 8 * scale.run["n_embd"] // 3  # three matrices instead of two: as many parameters
    return run


QUESTION = Question(
    name="components",
    asks="Which change of a component makes GPT-2 learn more from the same tokens?",
    varied="One component at a time, each with its own rate: from scratch, switched in a pretrained model, recovered.",
    fixed="Everything else as in GPT-2; data, order of batches, steps, schedule, optimizer; as many rates for each.",
    would_change="A component that beats GPT-2's: a candidate for the presets that train from scratch.",
    measures=(LOSS, BEFORE, COHERENT, PARAMETERS, SPEED),
    margin=0.01,
    reference="GPT-2",
    arms=arms,
    minutes=45,
    scales={
        "smoke": SMOKE.but({"max_steps": 2}, n_rates=1, n_stories=0, extra={"base_steps": 4, "steps": 2}),
        "laptop": LAPTOP.but({"max_steps": 150}, extra={"base_steps": 1000, "steps": 60}),
        "gpu": GPU.but(extra={"base_steps": 4000, "steps": 400}),
    },
    published=(
        Claim(
            "SwiGLU beats GELU at equal parameters.",
            "Shazeer 2020, arXiv:2002.05202",
            {"SwiGLU / from scratch": "better"},
        ),
        Claim(
            "Squared ReLU beats GELU.", "So 2021 (Primer), arXiv:2109.08668", {"squared ReLU / from scratch": "better"}
        ),
        Claim(
            "RMSNorm is as good as LayerNorm.",
            "Zhang & Sennrich 2019, arXiv:1910.07467",
            {"RMSNorm / from scratch": "same"},
        ),
        Claim("DyT is as good as a norm.", "Zhu 2025, arXiv:2503.10622", {"DyT / from scratch": "same"}),
        Claim("Rotary positions beat learned ones.", "Su 2021, arXiv:2104.09864", {"rope / from scratch": "better"}),
        Claim(
            "Without positions a causal model loses little.",
            "Haviv 2022, arXiv:2203.16634",
            {"no positions / from scratch": "same"},
        ),
        Claim(
            "Finetuned without norms, GPT-2 small comes to within 0.067 nats of finetuning with them on OpenWebText.",
            "Heimersheim 2024, arXiv:2409.13710, and the repository removing-layer-norm",
            {"no norms / switched": "worse", "no norms / recovered": "worse"},
        ),
        Claim("Norms on queries and keys bear higher rates.", "Wortsman 2023, arXiv:2309.14322", {}),
    ),
    threats=("A switched model has lived with GPT-2's parts: what it loses is the change's, not the part's, fault.",),
    timed=True,
)
