"""`sample.py --compare greedy,top_p:0.9,...`: the same prompt by several strategies, measured side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from minilm.config import nearest
from minilm.decoding.presets import PRESETS
from minilm.errors import UsageError

if TYPE_CHECKING:
    from minilm.model.gpt import GPT
    from minilm.text.tokenizer import Tokenizer


class Measured(NamedTuple):
    """What one strategy wrote. Repetition and diversity are counted over the model's tokens."""

    name: str
    texts: list[str]
    n_tokens: float
    """Mean length in tokens, end-of-text included."""
    seq_rep_4: float
    """1 - distinct / all 4-grams of a text, mean over those that have any (Welleck 2019)."""
    distinct_2: float
    """Distinct / all 2-grams over all texts (after Li 2016)."""
    perplexity: float
    """Of the texts' tokens by the model itself, without any filter."""


def parse_strategies(text: str, known: dict[str, type]) -> list[tuple[str, dict[str, Any]]]:
    """`greedy,top_p:0.9+temperature:0.7` -> (name, options) each; known: option names and their types.

    Raises UsageError, naming the nearest name.
    """
    found = []
    for name in text.split(","):
        options: dict[str, Any] = {}
        for part in name.split("+"):
            key, colon, value = part.strip().partition(":")
            if not colon:
                if key not in PRESETS:
                    raise UsageError(f"--compare: there is no strategy {key!r}{nearest(key, PRESETS)}")
                options["strategy"] = key
            elif key not in known:
                raise UsageError(f"--compare: there is no option {key!r}{nearest(key, known)}")
            else:
                try:
                    options[key] = known[key](value)
                except ValueError:
                    raise UsageError(f"--compare: {part.strip()!r} is no {known[key].__name__}") from None
        found.append((name.strip(), options))
    return found


def measure(
    model: GPT, tokenizer: Tokenizer, name: str, prompt: str, n_texts: int, options: dict[str, Any]
) -> Measured:
    """Decodes n_texts texts of the prompt and measures them. Searches, which draw nothing, write one."""
    from minilm.decoding.engine import encode_prompt, settings, stream_batch
    from minilm.evaluation.repetition import distinct_n, seq_rep_n

    strategy, _, method = settings({**options, "logit_bias": {}})
    if strategy.temperature == 0.0 or method.n_beams > 1 or method.penalty_alpha > 0:
        n_texts, seed = 1, options["seed"]
        options = {**options, "seed": seed[0] if isinstance(seed, Sequence) else seed}
    texts = [""] * n_texts
    rows: list[list[int]] = [[] for _ in texts]
    for piece in stream_batch(model, tokenizer, [prompt] * n_texts, **options):
        texts[piece.row] += piece.text
        rows[piece.row].append(piece.token)
    before = encode_prompt(prompt, tokenizer, options.get("begin_document", False))
    nats = sum(sum(nats_of(model, before, row)) for row in rows)
    n_tokens = sum(map(len, rows))
    repeated = [seq_rep_n(row, 4) for row in rows if len(row) > 3]
    mean = sum(repeated) / len(repeated) if repeated else math.nan
    return Measured(name, texts, n_tokens / n_texts, mean, distinct_n(rows, 2), math.exp(nats / n_tokens))


@torch.inference_mode()
def nats_of(model: GPT, before: list[int], tokens: list[int]) -> list[float]:
    """-ln p of each token behind those before. Past the context each has the last half of it or more before it."""
    text, block_size, nats = before + tokens, model.config.block_size, list[float]()
    done = len(before)
    while done < len(text):
        begin = max(0, done - max(1, block_size // 2)) if len(text) > block_size else 0
        end = min(len(text), begin + block_size + 1)
        log_p = model(torch.tensor([text[begin : end - 1]], device=model.device))[0].float().log_softmax(dim=-1)
        nats += [-float(log_p[i - 1 - begin, text[i]]) for i in range(done, end)]
        done = end
    return nats


def table(measured: list[Measured]) -> str:
    """One line a strategy, then what each wrote first."""
    width = max(len("strategy"), *(len(m.name) for m in measured))
    lines = [f"{'strategy':{width}}  texts  tokens  seq-rep-4  distinct-2  perplexity"]
    for m in measured:
        lines.append(
            f"{m.name:{width}}  {len(m.texts):5}  {m.n_tokens:6.1f}  {m.seq_rep_4:9.3f}  {m.distinct_2:10.3f}  "
            f"{m.perplexity:10.3f}"
        )
    return "\n".join(lines + [f"\n--- {m.name}\n{m.texts[0]}" for m in measured])
