"""The model again, from the papers' formulas: numpy, float64, one query at a time. Shares no code with minilm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

erf = np.vectorize(math.erf)


def sigmoid(x: Array) -> Array:
    return (1 + np.tanh(x / 2)) / 2


def phi(x: Array) -> Array:
    """The standard normal distribution function."""
    return (1 + erf(x / math.sqrt(2))) / 2


PLAIN: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: x * phi(x),
    "gelu_quick": lambda x: x * sigmoid(1.702 * x),
    "gelu_fast": lambda x: 0.5 * x * (1 + np.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
}
GATED = {"swiglu": PLAIN["silu"], "geglu": PLAIN["gelu"], "reglu": PLAIN["relu"]}


class Reference:
    """Logits and loss of one sequence, from a config as a dict and a state dict of arrays."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Array]) -> None:
        self.c, self.w = config, weights
        self.width = config["n_embd"] // config["n_head"]

    def logits(self, ids: list[int]) -> Array:
        """(T, V); rows that are not in use are -inf."""
        c = self.c
        x = self.w["wte.weight"][ids]
        if c["n_factor"]:
            x = x @ self.w["wte_proj.weight"].T
        x = x + np.stack([self.position(t) for t in range(len(ids))])
        x = self.norm("ln_e", x, c["embd_norm"])
        unique = c["n_unique_layer"] or c["n_layer"]
        for layer in range(c["n_layer"]):
            x = self.block(layer, layer * unique // c["n_layer"], x)
        x = self.norm("ln_f", x, c["final_norm"])
        if c["n_factor"]:
            x = x @ self.w["head_proj.weight"].T
        logits = x @ self.w["wte.weight" if c["tie_embeddings"] else "lm_head.weight"].T
        if c["logit_softcap"]:
            logits = c["logit_softcap"] * np.tanh(logits / c["logit_softcap"])
        logits = logits[:, : c["vocab_size"]]
        logits[:, c["vocab_used"] or c["vocab_size"] :] = -np.inf
        return logits

    def loss(self, ids: list[int], targets: list[int]) -> list[float]:
        """Nats of each target."""
        return [float(np.logaddexp.reduce(row) - row[t]) for row, t in zip(self.logits(ids), targets, strict=True)]

    def block(self, layer: int, index: int, x: Array) -> Array:
        c, name = self.c, f"h.{index}"
        before, between, after = (
            c["norm_position"] in kinds for kinds in (("pre", "sandwich"), ("sandwich",), ("post",))
        )

        def branch(x: Array, ln: str, skipped: bool, function: Any) -> Array:
            if skipped:
                return np.zeros_like(x)
            return self.norm(f"{name}.{ln}_out", function(self.norm(f"{name}.{ln}", x, before)), between)

        def attend(x: Array) -> Array:
            return self.attention(f"{name}.attn", layer, x)

        def feed(x: Array) -> Array:
            return self.feed_forward(f"{name}.mlp", x)

        if c["parallel_residual"]:
            both = branch(x, "ln_1", index in c["skip_attn"], attend) + branch(x, "ln_2", index in c["skip_mlp"], feed)
            return self.norm(f"{name}.ln_2_post", x + both, after)
        x = self.norm(f"{name}.ln_1_post", x + branch(x, "ln_1", index in c["skip_attn"], attend), after)
        return self.norm(f"{name}.ln_2_post", x + branch(x, "ln_2", index in c["skip_mlp"], feed), after)

    def linear(self, name: str, x: Array, bias: bool) -> Array:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if bias else y

    def norm(self, name: str, x: Array, on: bool) -> Array:
        c = self.c
        if not on or c["norm"] == "none":
            return x
        if c["norm"] == "fixed" and self.w[f"{name}.std"].min() > 0:
            y = (x - x.mean(-1, keepdims=True)) / self.w[f"{name}.std"].flat[0]
        elif c["norm"] in ("layernorm", "fixed"):
            x = x - x.mean(-1, keepdims=True)
            y = x / np.sqrt((x**2).mean(-1, keepdims=True) + c["norm_eps"])
        elif c["norm"] == "rmsnorm":
            y = x / np.sqrt((x**2).mean(-1, keepdims=True) + c["norm_eps"])
        else:
            y = np.tanh(self.w[f"{name}.alpha"] * x)
        y = y * self.w[f"{name}.weight"] if c["norm_scale"] else y
        return y + self.w[f"{name}.bias"] if c["norm_bias"] else y

    def feed_forward(self, name: str, x: Array) -> Array:
        c = self.c
        up = self.linear(f"{name}.c_fc", x, c["mlp_bias"])
        if c["activation"] in GATED:
            inner = GATED[c["activation"]](self.linear(f"{name}.c_gate", x, c["mlp_bias"])) * up
        else:
            inner = PLAIN[c["activation"]](up)
        assert inner.shape[-1] == (c["n_inner"] or 4 * c["n_embd"])
        return self.linear(f"{name}.c_proj", inner, c["mlp_bias"])

    def position(self, t: int) -> Array:
        c, D = self.c, self.c["n_embd"]
        if c["position"] == "learned":
            return self.w["wpe.weight"][t]
        if c["position"] == "sinusoidal":
            pairs = [(math.sin(t / 10000 ** (i / D)), math.cos(t / 10000 ** (i / D))) for i in range(0, D, 2)]
            return np.array(pairs).ravel() * c["init_std"] * math.sqrt(2)
        return np.zeros(D)

    def attention(self, name: str, layer: int, x: Array) -> Array:
        c, width = self.c, self.width
        n_kv = c["n_kv_head"] or c["n_head"]
        packed = self.linear(f"{name}.c_attn", x, c["attn_bias"])
        q, k, v = np.split(packed, [c["n_embd"], c["n_embd"] + n_kv * width], axis=-1)
        heads = []
        for h in range(c["n_head"]):
            mine = slice(h * width, (h + 1) * width)
            shared = slice(h * n_kv // c["n_head"] * width, (h * n_kv // c["n_head"] + 1) * width)
            heads.append(self.head(name, layer, h, q[:, mine], k[:, shared], v[:, shared]))
        return self.linear(f"{name}.c_proj", np.concatenate(heads, axis=-1), c["attn_bias"])

    def head(self, name: str, layer: int, h: int, q: Array, k: Array, v: Array) -> Array:
        c = self.c
        if c["qk_norm"]:
            q, k = (
                y / np.sqrt((y**2).mean(-1, keepdims=True) + c["norm_eps"]) * self.w[f"{name}.{which}_norm.weight"]
                for which, y in (("q", q), ("k", k))
            )
        if c["position"] == "rope":
            q, k = self.turned(q), self.turned(k)
        out = np.zeros_like(v)
        for t in range(len(q)):
            first = max(0, t - c["window"] + 1) if c["window"] else 0
            scores = [float(q[t] @ k[s]) for s in range(first, t + 1)]
            if c["attn_scale"]:
                scores = [score / math.sqrt(self.width) for score in scores]
            if c["attn_scale_by_layer"]:
                scores = [score / (layer + 1) for score in scores]
            if c["position"] == "alibi":
                scores = [score - alibi_slopes(c["n_head"])[h] * (t - s) for s, score in enumerate(scores, first)]
            weights = np.exp(np.array(scores) - max(scores))
            out[t] = weights / weights.sum() @ v[first : t + 1]
        return out

    def turned(self, x: Array) -> Array:
        """Su 2021, equation 34 as complex numbers: element i and i + width / 2 are one number, turned by its angle."""
        half = self.width // 2
        angles = np.outer(np.arange(len(x)), [self.c["rope_base"] ** (-2 * i / self.width) for i in range(half)])
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], axis=-1)


def alibi_slopes(n: int) -> list[float]:
    """Press 2021: from 2^(-8/n) by that ratio; where n is no power of two, the nearest lower one's slopes, then every
    second of the next higher one's."""
    if n & (n - 1) == 0:
        start = 2 ** (-8 / n)
        return [start ** (i + 1) for i in range(n)]
    lower = 1 << (n.bit_length() - 1)
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[0::2][: n - lower]
