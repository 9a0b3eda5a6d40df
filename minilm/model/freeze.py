"""What is trained: patterns over parameter names, applied once, before the optimizer is built.

A pattern is a group (`embeddings attention mlp norms biases head lora blocks`), `top:4` (the last four blocks), a name
or the beginning of one up to a dot (`h.3.attn`), blocks by number (`h.0-5`, `h.0,2.mlp`), a glob (`*.c_attn.weight`).

Of a frozen tensor autograd computes no gradient, and below the lowest trained one there is no backward pass.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from minilm.errors import UsageError
from minilm.model.gpt import GPT
from minilm.model.layers import is_norm

# Every parameter is in exactly one of these; `biases` and `blocks` cut across them.
COMPONENTS: dict[str, Callable[[str, nn.Module], bool]] = {
    "lora": lambda name, owner: ".lora_" in name,
    "norms": lambda name, owner: is_norm(owner),
    "embeddings": lambda name, owner: name.startswith(("wte", "wpe")),
    "attention": lambda name, owner: ".attn." in name,
    "mlp": lambda name, owner: ".mlp." in name,
    "head": lambda name, owner: name.startswith(("lm_head", "head_proj")),
}
GROUPS = (*COMPONENTS, "biases", "blocks")


def component_of(model: nn.Module, name: str) -> str:
    """The component that a parameter belongs to."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return next(component for component, holds in COMPONENTS.items() if holds(name, owner))


def select(model: GPT, patterns: Sequence[str]) -> set[str]:
    """Names of the parameters that any of the patterns matches. Raises UsageError where one of them matches nothing."""
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if _matches(model, pattern, name)}
        if not found:
            raise UsageError(_nothing(model, pattern, names))
        chosen |= found
    return chosen


def _matches(model: GPT, pattern: str, name: str) -> bool:
    if pattern in COMPONENTS:
        return component_of(model, name) == pattern
    if pattern == "biases":
        return name.endswith(".bias")
    if pattern == "blocks":
        return name.startswith("h.")
    if match := re.fullmatch(r"top:(\d+)", pattern):
        return _block(name) >= max(len(model.h) - int(match[1]), 0)
    if match := re.fullmatch(r"h\.(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)(?:\.(.+))?", pattern):
        if _block(name) not in _numbers(match[1]):
            return False
        name, pattern = name.split(".", 2)[2], match[2] or "*"
    return fnmatchcase(name, pattern) or name.startswith(pattern + ".")


def _block(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("h.") else -1


def _numbers(ranges: str) -> set[int]:
    """0-3,7 -> {0, 1, 2, 3, 7}."""
    ends = [part.partition("-") for part in ranges.split(",")]
    return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}


def _nothing(model: GPT, pattern: str, names: list[str]) -> str:
    if pattern == "head" and model.config.tie_embeddings:
        return "the head is the embedding table here, so nothing is called head: name embeddings, or untie them"
    if pattern in GROUPS:
        here = [group for group in GROUPS if any(_matches(model, group, name) for name in names)]
        return f"this model has no {pattern}: it has {', '.join(here)}"
    prefixes = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
    close = difflib.get_close_matches(pattern, [*GROUPS, f"top:{len(model.h)}", *sorted(prefixes)], n=3, cutoff=0.4)
    hint = f"nearest are {', '.join(close)}" if close else f"groups are {', '.join(GROUPS)}"
    return f"no parameter is called {pattern!r}: {hint}"


def set_trained(model: GPT, freeze: Sequence[str] = (), train_only: Sequence[str] = ()) -> None:
    """Trains what train_only matches (empty: everything) less what freeze matches.

    Raises UsageError on a pattern that matches nothing, and where nothing would be trained.
    """
    trained = select(model, train_only) if train_only else {name for name, _ in model.named_parameters()}
    trained -= select(model, freeze)
    if not trained:
        raise UsageError("every parameter would be frozen: leave something out of --freeze, or add to --train_only")
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)


def table(model: GPT) -> str:
    """Trained and frozen parameters of each component, as lines of text; the counts sum to the model's parameters."""
    counts = {component: [0, 0] for component in COMPONENTS}
    blocks: dict[str, set[int]] = {component: set() for component in COMPONENTS}
    for name, p in model.named_parameters():
        component = component_of(model, name)
        counts[component][not p.requires_grad] += p.numel()
        if p.requires_grad and name.startswith("h."):
            blocks[component].add(_block(name))
    counts = {component: pair for component, pair in counts.items() if any(pair)}
    total = [sum(pair[i] for pair in counts.values()) for i in (0, 1)]
    assert sum(total) == sum(p.numel() for p in model.parameters())
    lines = [f"{'component':<12}{'trained':>15}{'frozen':>15}"]
    for component, (trained, frozen) in [*counts.items(), ("total", total)]:
        where = blocks.get(component, set())
        some = f"  blocks {ranges(where)}" if where and len(where) < len(model.h) else ""
        lines.append(f"{component:<12}{trained:>15,}{frozen:>15,}{some}")
    return "\n".join(lines)


def ranges(numbers: Collection[int]) -> str:
    """{0, 1, 2, 7} -> 0-2,7."""
    firsts = [n for n in sorted(numbers) if n - 1 not in numbers]
    lasts = [n for n in sorted(numbers) if n + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


# --- gradual unfreezing (Howard & Ruder 2018, section 3.3)


def stages(model: GPT) -> list[list[str]]:
    """What is trained now, from the top down: the last block with all that stands above it, each block, embeddings.

    Levels at which nothing is trained are left out.
    """
    L = len(model.h)
    levels: list[list[str]] = [[] for _ in range(L + 1)]
    for name, p in model.named_parameters():
        if p.requires_grad:
            above = name.startswith(("ln_f", "lm_head", "head_proj"))
            levels[0 if above else L - 1 - _block(name)].append(name)
    return [level for level in levels if level]


def set_stage(model: GPT, levels: list[list[str]], n_steps: int) -> None:
    """Trains the first n_steps + 1 levels of `stages` and freezes all else."""
    trained = {name for level in levels[: n_steps + 1] for name in level}
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
