"""Which parts of the model: activations, norms and where they sit, positions, biases. From scratch."""

from __future__ import annotations

from typing import Any

from minilm.lab.measures import BEFORE, COHERENT, LOSS, PARAMETERS, SPEED
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Claim, Question, Scale, grid

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


def arms(scale: Scale) -> list[Arm]:
    found = []
    for name, part in PARTS.items():
        run = {**GPT2, **part}
        bias = run.pop("bias")
        run |= {"attn_bias": bias, "mlp_bias": bias, "norm_bias": bias}
        if run.get("activation") == "swiglu":
            run["n_inner"] = 8 * scale.run["n_embd"] // 3  # three matrices instead of two: as many parameters
        found.append(Arm(name, run, grid(1e-2)))
    return found


QUESTION = Question(
    name="components",
    asks="Which change of a component makes GPT-2 learn more from the same tokens?",
    varied="One component at a time, from scratch, each with its own rate.",
    fixed="Everything else as in GPT-2; data, order of batches, steps, schedule, optimizer; as many rates for each.",
    would_change="A component that beats GPT-2's: a candidate for the presets that train from scratch.",
    measures=(LOSS, BEFORE, COHERENT, PARAMETERS, SPEED),
    margin=0.01,
    reference="GPT-2",
    arms=arms,
    scales={
        "smoke": SMOKE.but(n_rates=1, n_stories=1),
        "laptop": LAPTOP.but({"max_steps": 300}, n_rates=3),
        "gpu": GPU,
    },
    published=(
        Claim("SwiGLU beats GELU at equal parameters.", "Shazeer 2020, arXiv:2002.05202", {"SwiGLU": "better"}),
        Claim("Squared ReLU beats GELU.", "So 2021 (Primer), arXiv:2109.08668", {"squared ReLU": "better"}),
        Claim("RMSNorm is as good as LayerNorm.", "Zhang & Sennrich 2019, arXiv:1910.07467", {"RMSNorm": "same"}),
        Claim("DyT is as good as a norm.", "Zhu 2025, arXiv:2503.10622", {"DyT": "same"}),
        Claim("Rotary positions beat learned ones.", "Su 2021, arXiv:2104.09864", {"rope": "better"}),
        Claim(
            "Without positions a causal model loses little.", "Haviv 2022, arXiv:2203.16634", {"no positions": "same"}
        ),
        Claim("Norms on queries and keys bear higher rates.", "Wortsman 2023, arXiv:2309.14322", {}),
    ),
    threats=("From scratch only: switching a component of a pretrained model and recovering is another experiment.",),
    timed=True,
)
