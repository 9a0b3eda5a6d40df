"""From prompts to text: options checked, prompts encoded, the loop run, tokens turned into characters.

- A row's text follows from the model, its prompt and its own seed; in fp32 the rest of the batch does not change it.
- Prompts of different lengths stand flush right; the padding on their left is never attended to (`Cache.starts`).
- Window: a prompt is read from its last block_size tokens. Where a row has filled its context, its last
  block_size / 2 tokens are read again as if they were all there is, and decoding goes on behind them. The rule looks
  at the row's own length only, with and without a cache, whatever the kind of positions. rolling="shift" reads nothing
  again: `contexts.py`.

B batch (rows), T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from minilm.checks import check_each, is_count, nearest
from minilm.decoding.attributes import Steering
from minilm.decoding.contexts import evaluating
from minilm.decoding.loop import Job, Piece, decode
from minilm.decoding.methods import Method, run
from minilm.decoding.penalties import Trie
from minilm.decoding.presets import ROLLING, preset
from minilm.decoding.strategies import Strategy
from minilm.decoding.texts import GrowingText
from minilm.errors import UsageError
from minilm.model.gpt import GPT

if TYPE_CHECKING:
    from minilm.text.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256

_log = logging.getLogger("minilm")


class Filters(TypedDict, total=False):
    """Keywords of everything that decodes: a preset's name, and the fields of `Strategy`, which win over it."""

    strategy: str
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    epsilon: float
    eta: float
    mirostat: float
    mirostat_rate: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram: int
    min_new_tokens: int
    logit_bias: Mapping[Any, float]
    """Keys are token ids; where there is a tokenizer, also texts of one token."""


class Methods(TypedDict, total=False):
    """Fields of `Method`."""

    n_beams: int
    length_penalty: float
    early_stopping: bool
    n_beam_groups: int
    diversity: float
    penalty_alpha: float
    guidance: float
    negative_prompt: str
    amateur: GPT | None
    contrast_alpha: float
    amateur_temperature: float
    draft: GPT | None
    lookup: int
    n_ahead: int
    steering: Steering | None


class Options(Filters, Methods, total=False):
    """Keywords of `generate`, `stream` and `stream_batch`; `Until` has their defaults."""

    max_new_tokens: int
    seed: int | Sequence[int] | None
    stop: Sequence[str]
    stop_tokens: Sequence[int]
    stop_at_eot: bool
    begin_document: bool
    choices: Sequence[str]
    alternatives: int | None
    use_cache: bool
    rolling: str


@dataclass(frozen=True)
class Until:
    """What is decoded until when. Raises UsageError on a value out of range."""

    max_new_tokens: int = MAX_NEW_TOKENS
    """At most so many tokens per text, 0 or more."""
    seed: int | Sequence[int] | None = None
    """One for the batch, or one for each prompt: see `row_seeds`. None: fresh randomness."""
    stop: Sequence[str] = ()
    """A text ends before the first of these strings, wherever tokens are cut."""
    stop_tokens: Sequence[int] = ()
    """A text ends before one of these tokens."""
    stop_at_eot: bool = True
    """A text ends before end-of-text."""
    begin_document: bool = False
    """End-of-text is put before the prompt, as before every training document: for a title or a control code."""
    choices: Sequence[str] = ()
    """Every text becomes one of these, token by token among those that are still possible."""
    alternatives: int | None = None
    """Pieces have the token's log-probability and those of so many likeliest tokens. None: neither."""
    use_cache: bool = True
    """False reads the whole context for every token, to the same result."""
    rolling: str = "reread"
    """Where a row has filled its context: reread, or shift: what was read of its last half (and its first tokens) stays
    as it is, at new positions."""

    def __post_init__(self) -> None:
        counts = ("max_new_tokens",) if self.alternatives is None else ("max_new_tokens", "alternatives")
        check_each(self, counts, is_count, "be a whole number, 0 or more")
        if self.rolling not in ROLLING or (self.rolling == "shift" and not self.use_cache):
            raise UsageError(f"rolling is one of {', '.join(ROLLING)}, and shift needs the cache; not {self.rolling!r}")
        for name in ("stop", "choices"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
                raise UsageError(f"{name} must be a list of texts that are not empty, not {texts!r}")


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

    options: those of `Until` (max_new_tokens=256, seed=None, stop=(), ...), `Strategy` (temperature=1.0, top_p=1.0)
    and `Method` (n_beams=1, ...), and strategy="name" for a preset of `presets.py`, over which they win. Raises
    UsageError on one that is unknown or out of range, and on a tokenizer larger than the model's vocabulary.
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


def stream_batch(model: GPT, tokenizer: Tokenizer, prompts: list[str], **options: Unpack[Options]) -> Iterator[Piece]:
    """Yields the texts of several prompts as they grow, one piece per row and token. Options and errors: `generate`."""
    strategy, until, method = settings(dict(options), tokenizer)
    job = _text_job(model, tokenizer, prompts, strategy, until)
    negative = encode_prompt(method.negative_prompt, tokenizer, until.begin_document)
    return run(job, method, negative)


def _text_job(model: GPT, tokenizer: Tokenizer, prompts: list[str], strategy: Strategy, until: Until) -> Job:
    if tokenizer.vocab_size > model.config.rows_used:
        raise UsageError(
            f"the tokenizer ({tokenizer.name}) has {tokenizer.vocab_size} tokens and the model only "
            f"{model.config.rows_used}: use the tokenizer that the model was trained with"
        )
    rows = [encode_prompt(prompt, tokenizer, until.begin_document) for prompt in prompts]
    check_ids(model, [*rows, list(until.stop_tokens), list(strategy.logit_bias)])
    _warn_of_long_prompts(model, rows)
    ends = dict.fromkeys((*until.stop_tokens, *([tokenizer.eot] if until.stop_at_eot or until.choices else ())))
    texts: dict[int, GrowingText] = {}

    def watch(row: int, token: int, last: bool) -> tuple[str, bool]:
        if row not in texts:
            # A decoder that has read the prompt knows what to put between it and the first new token.
            decoder = tokenizer.stream_decoder()
            for prompt_token in rows[row][-model.config.block_size :]:
                decoder.push(prompt_token)
            texts[row] = GrowingText(decoder, until.stop, ends)
        text, stopped = texts[row].push(token, last)
        if last or stopped:
            del texts[row]
        return text, stopped

    seeds, choices = row_seeds(until.seed, len(prompts)), _trie(until, tokenizer)
    limits = (until.max_new_tokens, tuple(ends), tokenizer.vocab_size, choices, until.alternatives)
    return Job(model, rows, seeds, strategy, *limits, watch, until.use_cache, until.rolling == "shift")


def generate_ids(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int = MAX_NEW_TOKENS,
    *,
    seed: int | Sequence[int] | None = None,
    eot: int | None = None,
    stop_tokens: Sequence[int] = (),
    use_cache: bool = True,
    **filters: Unpack[Filters],
) -> Tensor:
    """ids (B, T) -> (B, T + n): ids and n = max_new_tokens more; options are `generate`'s.

    eot, stop_tokens: tokens that end their row; the token is part of the row, which is filled up with it, and n is what
    the longest row needed. Raises UsageError where ids are empty, not (B, T) of integers, or outside the vocabulary.
    """
    if ids.dim() != 2 or 0 in ids.shape or ids.is_floating_point():
        raise UsageError(
            f"generate_ids takes integers (B, T), at least one each, not {ids.dtype} {tuple(ids.shape)}: "
            "an empty prompt starts from end-of-text"
        )
    strategy, until, _ = settings({**filters, "max_new_tokens": max_new_tokens, "seed": seed, "use_cache": use_cache})
    prompts, ends = ids.tolist(), (*stop_tokens, *(() if eot is None else (eot,)))
    check_ids(model, [*prompts, list(strategy.logit_bias)])
    _warn_of_long_prompts(model, prompts)
    job = Job(model, prompts, row_seeds(until.seed, len(ids)), strategy, max_new_tokens, ends, use_cache=use_cache)
    new: list[list[int]] = [[] for _ in prompts]
    with evaluating(model):
        for piece in decode(job):
            new[piece.row].append(piece.token)
    n = max(map(len, new))
    filled = [row + row[-1:] * (n - len(row)) for row in new]
    return torch.cat((ids, torch.tensor(filled, dtype=ids.dtype, device=ids.device).view(len(ids), n)), dim=1)


def settings(options: dict[str, Any], tokenizer: Tokenizer | None = None) -> tuple[Strategy, Until, Method]:
    """Options sorted into how tokens are chosen, until when, and by what loop; those given win over the preset's.

    Raises UsageError on an unknown one, naming the nearest.
    """
    known = {f.name: kind for kind in (Strategy, Until, Method) for f in fields(kind)}
    for name in options:
        if name not in known and name != "strategy":
            raise UsageError(f"there is no option {name!r}{nearest(name, [*known, 'strategy'])}")
    options = {**preset(options.get("strategy") or ""), **options}
    if tokenizer is not None and "logit_bias" in options:
        options["logit_bias"] = {_one_token(key, tokenizer): v for key, v in options["logit_bias"].items()}

    def of(kind: type) -> dict[str, Any]:
        return {name: value for name, value in options.items() if known.get(name) is kind}

    return Strategy(**of(Strategy)), Until(**of(Until)), Method(**of(Method))


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


def encode_prompt(prompt: str, tokenizer: Tokenizer, begin_document: bool = False) -> list[int]:
    """Ids that decoding goes on from: end-of-text alone where the prompt is empty, before it where it begins one.

    A prompt that begins a document may hold the text of special tokens: control codes such as <|imdb|>.
    """
    ids = [int(i) for i in tokenizer.encode(prompt, special=begin_document)]
    return [tokenizer.eot, *ids] if begin_document or not ids else ids


def _trie(until: Until, tokenizer: Tokenizer) -> Trie | None:
    if not until.choices:
        return None
    trie = Trie()
    for choice in until.choices:
        tokens = [int(i) for i in tokenizer.encode(choice)]
        if tokenizer.count_unknown(tokens):
            raise UsageError(f"the choice {choice!r} holds what the tokenizer ({tokenizer.name}) has no token for")
        if len(tokens) > until.max_new_tokens:
            raise UsageError(
                f"the choice {choice!r} needs {len(tokens)} tokens: raise max_new_tokens ({until.max_new_tokens})"
            )
        trie.add(tokens)
    return trie


def _one_token(key: int | str, tokenizer: Tokenizer) -> int:
    if isinstance(key, int):
        return key
    tokens = tokenizer.encode(key, special=True)
    if len(tokens) != 1 or tokenizer.count_unknown(tokens):
        raise UsageError(
            f"logit_bias: {key!r} is {len(tokens)} tokens of this tokenizer: name its tokens by id, one by one"
            if len(tokens) != 1
            else f"logit_bias: the tokenizer ({tokenizer.name}) has no token {key!r}"
        )
    return int(tokens[0])


def check_ids(model: GPT, rows: list[list[int]]) -> None:
    """Raises UsageError on a token outside the model's vocabulary."""
    V = model.config.rows_used
    for row in rows:
        wrong = next((i for i in (min(row, default=0), max(row, default=0)) if not 0 <= i < V), None)
        if wrong is not None:
            raise UsageError(
                f"token {wrong} is outside the model's vocabulary (0 to {V - 1}): use the tokenizer that the model was "
                "trained with"
            )


def _warn_of_long_prompts(model: GPT, rows: list[list[int]]) -> None:
    block_size = model.config.block_size
    longest = max(map(len, rows), default=0)
    if longest > block_size:
        _log.warning(
            f"the prompt has {longest} tokens and the model's context {block_size}: only the last {block_size} are read"
        )
