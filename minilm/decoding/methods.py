"""Which loop decodes: token by token, guided or contrasted by a second reading, ahead of itself, or a search."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from minilm.checks import check_each, is_count
from minilm.decoding.attributes import Steering
from minilm.decoding.contexts import check_memory
from minilm.decoding.guidance import contrast, guide
from minilm.decoding.loop import Beside, Job, Piece, decode
from minilm.decoding.search import beam_search, contrastive_search
from minilm.decoding.speculative import by_lookup, by_model, speculate
from minilm.decoding.steer import steered
from minilm.decoding.strategies import BEFORE, CUTS
from minilm.errors import UsageError
from minilm.model.gpt import GPT

UNSCORED = ("n_beams", "penalty_alpha", "draft", "lookup", "steering")  # methods without log-probabilities


@dataclass(frozen=True)
class Method:
    """The defaults decode one token after the other. Raises UsageError on a value out of range and on two methods."""

    n_beams: int = 1
    """Beam search with so many beams. 1: off."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / tokens^length_penalty."""
    early_stopping: bool = False
    """A search ends as soon as n_beams texts have ended."""
    n_beam_groups: int = 1
    """Diverse beam search: groups that the beams are split into (Vijayakumar 2018). 1: off."""
    diversity: float = 0.5
    """What a token costs for each beam of the groups before that took it."""
    penalty_alpha: float = 0.0
    """Contrastive search among the top_k likeliest: weight of the likeness to the context (Su 2022). 0: off."""
    guidance: float = 1.0
    """Classifier-free guidance: how far to go away from the negative prompt (Sanchez 2023). 1: off."""
    negative_prompt: str = ""
    """What to move away from; empty: a text about nothing (end-of-text alone)."""
    amateur: GPT | None = None
    """Contrastive decoding: a weaker model whose log-probabilities are subtracted (Li 2022)."""
    contrast_alpha: float = 0.1
    """Only tokens with this share of the likeliest's probability, or more, are contrasted."""
    amateur_temperature: float = 1.0
    """The amateur's logits are divided by it."""
    draft: GPT | None = None
    """Speculative decoding: a smaller model of the same vocabulary that guesses ahead (Leviathan 2023)."""
    lookup: int = 0
    """Prompt look-up: guesses are what followed the last tokens, so many or fewer, before (Saxena 2023). 0: off."""
    n_ahead: int = 5
    """Guesses that are checked at once."""
    steering: Steering | None = None
    """PPLM: towards bags of words or a discriminator's class (Dathathri 2020)."""

    def __post_init__(self) -> None:
        counts = ("n_beams", "n_beam_groups", "n_ahead")
        check_each(self, counts, lambda n: is_count(n, 1), "be a whole number, 1 or more")
        check_each(self, ("lookup",), is_count, "be a whole number of tokens, 0 (off) or more")
        if self.n_beams % self.n_beam_groups:
            raise UsageError(f"n_beam_groups ({self.n_beam_groups}) must divide n_beams ({self.n_beams})")
        check_each(self, ("length_penalty", "diversity", "guidance"), math.isfinite, "be a number")
        if abs(self.length_penalty) > 10 or max(abs(self.guidance), abs(self.diversity)) > 1e6:
            raise UsageError("length_penalty lies between -10 and 10, guidance and diversity between -1e6 and 1e6")
        check_each(self, ("penalty_alpha",), lambda x: 0.0 <= x <= 1.0, "lie in [0, 1]")
        check_each(self, ("contrast_alpha",), lambda x: 0.0 < x <= 1.0, "lie in (0, 1]")
        check_each(self, ("amateur_temperature",), lambda x: 0.0 < x < math.inf, "be above 0")
        if self.negative_prompt and self.guidance == 1.0:
            raise UsageError("negative_prompt does nothing at guidance 1: raise it, to 1.5 for a start")
        if len(self.chosen) > 1:
            raise UsageError(f"{' and '.join(self.chosen)} exclude each other: choose one")

    @property
    def chosen(self) -> list[str]:
        """Names of the options that decide on a method."""
        on = {"n_beams": self.n_beams > 1, "penalty_alpha": self.penalty_alpha > 0, "guidance": self.guidance != 1.0}
        on |= {"amateur": self.amateur is not None, "draft": self.draft is not None, "lookup": self.lookup > 0}
        on |= {"steering": self.steering is not None}
        return [name for name, is_on in on.items() if is_on]


def _check_read(method: Method) -> None:
    """Raises UsageError on an option that the method does not read. Not asked before models are loaded."""
    needed = {
        "length_penalty": (method.n_beams > 1, "n_beams"),
        "early_stopping": (method.n_beams > 1, "n_beams"),
        "diversity": (method.n_beam_groups > 1, "n_beam_groups"),
        "contrast_alpha": (method.amateur is not None, "amateur"),
        "amateur_temperature": (method.amateur is not None, "amateur"),
        "n_ahead": (method.draft is not None or method.lookup > 0, "draft or lookup"),
    }
    for name, (is_read, by) in needed.items():
        if not is_read and getattr(method, name) != getattr(Method, name):
            raise UsageError(f"{name} does nothing without {by}: add it, or leave {name} out")


def run(job: Job, method: Method, negative: list[int]) -> Iterator[Piece]:
    """The job's pieces by this method; negative: tokens of the negative prompt. Raises UsageError where they clash."""
    _check_read(method)
    for name, model in (("amateur", method.amateur), ("draft", method.draft)):
        if model is not None and (used := model.config.rows_used) < job.n_tokens:
            raise UsageError(f"the {name} model has {used} tokens, not {job.n_tokens}: it must share the tokenizer")
    strategy, name = job.strategy, next(iter(method.chosen), "")
    if name in ("n_beams", "penalty_alpha"):
        cuts = [cut for cut, step in CUTS.items() if getattr(strategy, cut) != step.neutral]
        wrong = [cut for cut in cuts if (name, cut) != ("penalty_alpha", "top_k")]
        if wrong or strategy.mirostat or strategy.temperature not in (0.0, 1.0):
            raise UsageError(f"{name} draws nothing: leave out {', '.join(wrong) or 'temperature and mirostat'}")
    if name in UNSCORED and job.alternatives is not None:
        raise UsageError(f"{name} keeps no log-probabilities of single tokens: leave out alternatives")
    if job.shift and name in ("penalty_alpha", "draft", "lookup", "steering"):
        raise UsageError(f"{name} reads a full context again: leave out rolling=shift")
    if name in ("draft", "lookup"):
        looks_back = [step for step, (_, neutral) in BEFORE.items() if getattr(strategy, step) != neutral]
        looks_back += ["mirostat"] if strategy.mirostat else []
        looks_back += ["choices"] if job.choices else []
        if looks_back:
            raise UsageError(f"{name} guesses ahead and cannot look back: leave out {', '.join(looks_back)}")
    if strategy.min_new_tokens > job.max_new_tokens > 0:
        raise UsageError(
            f"min_new_tokens ({strategy.min_new_tokens}) is more than max_new_tokens ({job.max_new_tokens})"
        )
    if not job.max_new_tokens:
        return iter(())
    if name in ("penalty_alpha", "draft", "lookup", "steering"):  # these read the whole prompt, k times the first
        n_slots = job.model.config.block_size * (strategy.top_k or 4 if name == "penalty_alpha" else 1)
        check_memory(job.model, min(max(map(len, job.prompts)), job.model.config.block_size), n_slots)
    match name:
        case "n_beams":
            beams = (method.n_beams, method.length_penalty, method.early_stopping, method.n_beam_groups)
            return beam_search(job, *beams, method.diversity if method.n_beam_groups > 1 else 0.0)
        case "penalty_alpha":
            return contrastive_search(job, strategy.top_k or 4, method.penalty_alpha)
        case "draft":
            assert method.draft is not None
            return speculate(job, by_model(method.draft, strategy, job.n_tokens), method.n_ahead)
        case "lookup":
            return speculate(job, by_lookup(method.lookup), method.n_ahead)
        case "guidance":
            combine = partial(guide, scale=method.guidance)
            return decode(replace(job, beside=Beside(job.model, [negative] * len(job.prompts), combine)))
        case "amateur":
            assert method.amateur is not None
            combine = partial(contrast, alpha=method.contrast_alpha, amateur_temperature=method.amateur_temperature)
            return decode(replace(job, beside=Beside(method.amateur, job.prompts, combine)))
        case "steering":
            assert method.steering is not None
            return steered(job, method.steering)
    return decode(job)
