"""From prompts to text: the prompts are read at once, then one token per row and pass, both into one cache.

- A row's text follows from the model, its prompt and its own seed; in fp32 the rest of the batch does not change it.
- Prompts of different lengths stand flush right; the padding on their left is never attended to (`Cache.starts`).
- Window: a prompt is read from its last block_size tokens. Where a row has filled its context, its last
  block_size / 2 tokens are read again as if they were all there is, and decoding goes on behind them. The rule looks
  at the row's own length only, with and without a cache, whatever the kind of positions.
- Rows that are done leave the batch when they are a quarter of it. Nothing is drawn from torch's global generator.

B batch (rows), T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from minilm.decoding.contexts import Contexts, evaluating, groups
from minilm.decoding.parallel import shares, spread
from minilm.decoding.strategies import Strategy, choose
from minilm.errors import UsageError
from minilm.model.gpt import GPT

if TYPE_CHECKING:
    from minilm.text.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256
CACHE_BYTES = 1 << 30  # many prompts are decoded in groups whose cache and logits stay below this

_log = logging.getLogger("minilm")


class Piece(NamedTuple):
    """What `stream_batch` yields."""

    row: int
    text: str  # may be empty
    last: bool  # the row is done


class Options(TypedDict, total=False):
    """Keywords of `generate`, `stream` and `stream_batch`; that one's signature has their defaults."""

    max_new_tokens: int
    """At most so many tokens per text, 0 or more."""
    temperature: float
    """0 is greedy; this and the next two: see `Strategy`."""
    top_k: int
    top_p: float
    seed: int | Sequence[int] | None
    """One for the batch, or one for each prompt: see `row_seeds`. None: fresh randomness."""
    stop_at_eot: bool
    """A text ends before end-of-text."""
    use_cache: bool
    """False reads the whole context for every token, to the same result."""


@overload
def generate(model: GPT, tokenizer: Tokenizer, prompt: str = "", **options: Unpack[Options]) -> str: ...
@overload
def generate(model: GPT, tokenizer: Tokenizer, prompt: list[str], **options: Unpack[Options]) -> list[str]: ...
def generate(
    model: GPT, tokenizer: Tokenizer, prompt: str | list[str] = "", **options: Unpack[Options]
) -> str | list[str]:
    """Continues one prompt (-> str) or several (-> list of str, in their order).

    The text returned is what is new: it never repeats the prompt, so `prompt + text` is the whole. An empty prompt
    starts a new document (from end-of-text). Nothing is put before a prompt that is not empty. A prompt longer than
    the context is read from its last tokens, which is logged as a warning.

    options: max_new_tokens=256, temperature=1.0, top_k=0, top_p=1.0, seed=None, stop_at_eot=True, use_cache=True; see
    `Options`. Raises UsageError on one out of range, and on a tokenizer larger than the model's vocabulary.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts = [""] * len(prompts)
    with evaluating(model):
        for piece in stream_batch(model, tokenizer, prompts, **options):
            texts[piece.row] += piece.text
    return texts[0] if isinstance(prompt, str) else texts


def stream(model: GPT, tokenizer: Tokenizer, prompt: str = "", **options: Unpack[Options]) -> Iterator[str]:
    """Yields `generate`'s text piece by piece, each as soon as its characters are certain. Same options and errors."""
    return (piece.text for piece in stream_batch(model, tokenizer, [prompt], **options) if piece.text)


def stream_batch(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: list[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] | None = None,
    stop_at_eot: bool = True,
    use_cache: bool = True,
) -> Iterator[Piece]:
    """Yields the texts of several prompts as they grow, one piece per row and token; see `Options`."""
    strategy = Strategy(temperature, top_k, top_p)
    seeds = row_seeds(seed, len(prompts))
    _check_count(max_new_tokens)
    if tokenizer.vocab_size > _vocab_used(model):
        raise UsageError(
            f"the tokenizer ({tokenizer.name}) has {tokenizer.vocab_size} tokens and the model only "
            f"{_vocab_used(model)}: use the tokenizer that the model was trained with"
        )
    rows = [[int(i) for i in tokenizer.encode(prompt)] or [tokenizer.eot] for prompt in prompts]
    eot = tokenizer.eot if stop_at_eot else None
    _check_ids(model, rows)
    tokens = _decode(model, rows, strategy, max_new_tokens, seeds, eot, use_cache, tokenizer.vocab_size)

    def pieces() -> Iterator[Piece]:
        decoders = []
        for prompt_ids in rows:
            # A decoder that has read the prompt knows what to put between it and the first new token.
            decoders.append(tokenizer.stream_decoder())
            for token in prompt_ids[-model.config.block_size :]:
                decoders[-1].push(token)
        for row, token, done in tokens:
            text = decoders[row].push(token) if token != eot else ""
            yield Piece(row, text + decoders[row].flush() if done else text, done)

    return pieces()


def generate_ids(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int = MAX_NEW_TOKENS,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] | None = None,
    eot: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """ids (B, T) -> (B, T + n): ids and n = max_new_tokens more; options are `generate`'s.

    eot: a token that ends its row; it is part of the row, which is filled up with it, and n is what the longest row
    needed. Raises UsageError where ids are empty, not (B, T) of integers, or outside the vocabulary.
    """
    if ids.dim() != 2 or 0 in ids.shape or ids.is_floating_point():
        raise UsageError(
            f"generate_ids takes integers (B, T), at least one each, not {ids.dtype} {tuple(ids.shape)}: "
            "an empty prompt starts from end-of-text"
        )
    strategy = Strategy(temperature, top_k, top_p)
    _check_count(max_new_tokens)
    seeds, prompts = row_seeds(seed, len(ids)), ids.tolist()
    _check_ids(model, prompts)
    new: list[list[int]] = [[] for _ in prompts]
    with evaluating(model):
        for row, token, _ in _decode(model, prompts, strategy, max_new_tokens, seeds, eot, use_cache):
            new[row].append(token)
    n = max(map(len, new))
    filled = [row + [eot or 0] * (n - len(row)) for row in new]
    return torch.cat((ids, torch.tensor(filled, dtype=ids.dtype, device=ids.device).view(len(ids), n)), dim=1)


def row_seeds(seed: int | Sequence[int] | None, n_rows: int) -> list[int]:
    """One seed per row, so that every row can be had again alone.

    An int is the first row's seed, and each other row has 64 bits mixed from it and the row; a list is taken as it is.
    """
    if not isinstance(seed, int | np.integer | None):
        seeds = [int(s) for s in seed]
        if len(seeds) != n_rows:
            raise UsageError(f"{len(seeds)} seeds for {n_rows} prompts: pass one seed, or one for each")
    else:
        first = secrets.randbits(63) if seed is None else int(seed)
        mixed = (np.random.SeedSequence((first, row)) for row in range(1, n_rows)) if first >= 0 else ()
        seeds = [first, *(int(s.generate_state(1, np.uint64)[0]) for s in mixed)][:n_rows]
    if any(s < 0 for s in seeds):
        raise UsageError(f"seed must be 0 or more, not {min(seeds)}")
    return seeds


def _check_count(max_new_tokens: int) -> None:
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise UsageError(f"max_new_tokens must be a whole number, 0 or more, not {max_new_tokens!r}")


def _vocab_used(model: GPT) -> int:
    return model.config.vocab_used or model.config.vocab_size


def _check_ids(model: GPT, rows: list[list[int]]) -> None:
    V, block_size = _vocab_used(model), model.config.block_size
    for row in rows:
        wrong = next((i for i in (min(row), max(row)) if not 0 <= i < V), None)
        if wrong is not None:
            raise UsageError(
                f"token {wrong} is outside the model's vocabulary (0 to {V - 1}): use the tokenizer that the model was "
                "trained with"
            )
    longest = max(map(len, rows), default=0)
    if longest > block_size:
        _log.warning(
            f"the prompt has {longest} tokens and the model's context {block_size}: only the last {block_size} are read"
        )


def _decode(
    model: GPT,
    prompts: list[list[int]],
    strategy: Strategy,
    max_new_tokens: int,
    seeds: list[int],
    eot: int | None,
    use_cache: bool,
    vocab_size: int | None = None,
) -> Iterator[tuple[int, int, bool]]:
    """Yields (row, token, whether the row is done). vocab_size: tokens from there on are never drawn."""

    def decode(rows: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
        limit = CACHE_BYTES // n_threads
        return _decode_rows(model, prompts, rows, strategy, max_new_tokens, seeds, eot, use_cache, vocab_size, limit)

    n_threads = shares(model, len(prompts))
    everything = range(len(prompts))
    return decode(everything) if n_threads == 1 else spread(decode, len(prompts), n_threads)


def _decode_rows(
    model: GPT,
    prompts: list[list[int]],
    rows: Sequence[int],
    strategy: Strategy,
    max_new_tokens: int,
    seeds: list[int],
    eot: int | None,
    use_cache: bool,
    vocab_size: int | None,
    cache_bytes: int,
) -> Iterator[tuple[int, int, bool]]:
    if max_new_tokens == 0:
        return
    for members in groups(model, rows, [len(prompts[row]) + max_new_tokens for row in rows], cache_bytes):
        contexts = Contexts(model, [prompts[row] for row in members], max_new_tokens, use_cache)
        random = [np.random.Generator(np.random.Philox(seeds[row])) for row in members]
        done = [False] * len(members)
        for n in range(1, max_new_tokens + 1):
            logits = contexts.logits()[:, :vocab_size]
            logits = logits.cpu() if logits.device.type == "mps" else logits  # no float64 there
            uniforms = torch.tensor([r.random() for r in random], dtype=torch.float64, device=logits.device)
            tokens = choose(logits, strategy, uniforms).tolist()
            for i, token in enumerate(tokens):
                if not done[i]:
                    done[i] = token == eot or n == max_new_tokens
                    yield members[i], token, done[i]
            kept = [i for i, is_done in enumerate(done) if not is_done]
            if not kept:
                break
            if 4 * len(kept) > 3 * len(done):
                kept = list(range(len(done)))
            contexts.advance(kept, [tokens[i] for i in kept])
            members, random, done = [members[i] for i in kept], [random[i] for i in kept], [done[i] for i in kept]
