"""What a step minimises: the terms that the config weighs above 0, summed. Formulas: docs/objectives.md.

Terms over tokens share one pass over the head, chunk by chunk; the teacher's logits are made for the same chunk. Every
term is a sum over targets, so that micro-batches add up to the step's batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minilm.config import TrainConfig
from minilm.decoding.contexts import evaluating
from minilm.errors import UsageError
from minilm.model import losses
from minilm.model.gpt import GPT
from minilm.model.losses import IGNORE
from minilm.model.weights import find_checkpoint, load_pretrained
from minilm.text.tokenizer import Tokenizer

Blocks = Sequence[Callable[..., Tensor]] | None
Sampler = Callable[[GPT, Tensor, int], Tensor]
"""(model, ids (B, T), n) -> (B, T + n): ids and their continuation."""

# Welleck 2020, section 5.2: prefixes of 50 tokens, continuations of 100, 4-grams. A shorter context is split 1 : 2.
PREFIX, CONTINUATION, NGRAM = 50, 100, 4
OVER_TOKENS = ("likelihood", "z_loss", "unlikelihood", "distill")


class Objective:
    """(ids, targets, weights, documents) of a micro-batch -> the sum over its targets of all weighted terms.

    `terms` holds the unweighted sums since `begin_step`, without gradient. weights (B, T) weigh terms over tokens.
    """

    def __init__(
        self, model: GPT, config: TrainConfig, teacher: GPT | None = None, sampler: Sampler | None = None
    ) -> None:
        self.model, self.config, self.teacher, self.sampler = model, config, teacher, sampler
        self.over_tokens = [name for name in OVER_TOKENS if getattr(config, name)]
        self.terms: dict[str, Tensor] = {}
        changed = config.label_smoothing or config.contrastive or config.sequence_unlikelihood
        self.is_plain = config.likelihood == 1.0 and self.over_tokens == ["likelihood"] and not changed
        if teacher is not None:
            _check_teacher(teacher, model)

    def begin_step(self) -> None:
        self.terms = {}

    def means(self, n_targets: float) -> dict[str, float]:
        """Each term per target of the step, unweighted; nothing where cross-entropy alone is minimised."""
        return {name: (total / n_targets).item() for name, total in self.terms.items()}

    def __call__(
        self,
        ids: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        documents: Tensor | None = None,
        *,
        blocks: Blocks = None,
        nats: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        if self.is_plain and weights is None:
            return self.model.loss(ids, targets, documents, "sum", blocks, nats)
        config = self.config
        scored = targets != IGNORE
        weights = scored.float() if weights is None else weights * scored
        hidden = self.model.hidden(ids, documents, blocks=blocks)
        total = hidden.new_zeros((), dtype=torch.float32)
        if self.over_tokens:
            total = total + self._over_tokens(hidden, ids, targets, weights, documents)
        if config.contrastive:
            term = losses.contrastive(hidden, scored, config.contrastive_margin, documents).sum()
            total = total + config.contrastive * self._note("contrastive", term)
        if config.sequence_unlikelihood:
            term = self._over_continuations(ids, weights.sum(-1), blocks)
            total = total + config.sequence_unlikelihood * self._note("sequence_unlikelihood", term)
        return total

    def _note(self, name: str, term: Tensor) -> Tensor:
        self.terms[name] = self.terms.get(name, 0.0) + term.detach()
        return term

    def _over_tokens(
        self, hidden: Tensor, ids: Tensor, targets: Tensor, weights: Tensor, documents: Tensor | None
    ) -> Tensor:
        config, flat, flat_weights = self.config, targets.flatten(), weights.flatten()
        teacher_hidden: Tensor | None = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_hidden = self.teacher.hidden(ids, documents).flatten(0, 1)

        def terms(logits: Tensor, rows: slice) -> Tensor:
            found, logits = {}, losses.widened(logits)
            if config.likelihood:
                found["likelihood"] = losses.smoothed(logits, flat[rows], config.label_smoothing)
            if config.z_loss:
                found["z_loss"] = losses.z_squared(logits)
            if config.unlikelihood:
                negatives = losses.seen_before(ids, targets, logits.shape[-1], rows, documents)
                found["unlikelihood"] = losses.unlikelihood(logits, negatives)
            if self.teacher is not None and teacher_hidden is not None:
                with torch.no_grad():
                    told = self.teacher.used_logits(teacher_hidden[rows])
                found["distill"] = losses.divergence(logits, told, config.distill_temperature)
            return torch.stack([(flat_weights[rows] * found[name]).sum() for name in self.over_tokens])

        factors = [getattr(config, name) for name in self.over_tokens]
        total, sums = self._through_head(hidden, terms, factors)
        for name, term in zip(self.over_tokens, sums, strict=True):
            self._note(name, term)
        return total

    def _over_continuations(self, ids: Tensor, row_weights: Tensor, blocks: Blocks) -> Tensor:
        """Greedy continuations of each row's beginning; a row's mean over them counts as much as its targets do."""
        prefix = min(PREFIX, ids.shape[1] // 3)
        n_new = min(CONTINUATION, ids.shape[1] - prefix)
        whole = self._continue(ids[:, :prefix], n_new)
        new = whole[:, prefix:]
        share = losses.repeated(new, NGRAM) * (row_weights / n_new)[:, None]
        hidden = self.model.hidden(whole[:, :-1], blocks=blocks)[:, prefix - 1 :]

        def term(logits: Tensor, rows: slice) -> Tensor:
            logits = losses.widened(logits)
            chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, new.flatten()[rows, None], True)
            return (share.flatten()[rows] * losses.unlikelihood(logits, chosen)).sum()[None]

        return self._through_head(hidden, term, (1.0,))[0]

    @torch.compiler.disable
    @torch.no_grad()
    def _continue(self, ids: Tensor, n_new: int) -> Tensor:
        assert self.sampler is not None
        # Without autocast: the cache has the weights' precision.
        with evaluating(self.model), torch.autocast(ids.device.type, enabled=False):
            return self.sampler(self.model, ids, n_new)

    def _through_head(self, hidden: Tensor, loss: losses.TokenLoss, factors: Sequence[float]) -> tuple[Tensor, Tensor]:
        x = self.model.head_proj(hidden).flatten(0, 1)
        return losses.over_tokens(x, self.model.head_rows(), self.model.finish_logits, loss, factors)


def _check_teacher(teacher: GPT, model: GPT) -> None:
    ours, theirs = (m.config.rows_used for m in (model, teacher))
    if ours != theirs:
        raise UsageError(f"the teacher has {theirs} tokens, the student {ours}: distill from one with its tokenizer")
    if teacher.wpe.max_tokens < model.config.block_size:
        raise UsageError(
            f"the teacher sees {teacher.config.block_size} tokens, the student {model.config.block_size}: set "
            f"--block_size {teacher.config.block_size} or less"
        )


def greedy(model: GPT, ids: Tensor, n: int) -> Tensor:
    """A sampler: the likeliest token each time, past end-of-text too, as the paper's."""
    from minilm.decoding.engine import generate_ids

    return generate_ids(model, ids, n, temperature=0.0, seed=0)


def build_objective(model: GPT, config: TrainConfig, tokenizer: Tokenizer) -> Objective:
    """The objective of a run; loads the teacher onto the model's device. Raises UsageError where it does not fit."""
    teacher = None
    if config.teacher:
        check_tokenizer(config.teacher, tokenizer)
        teacher = load_pretrained(config.teacher)[0].to(model.device).requires_grad_(False)
    return Objective(model, config, teacher, greedy)


def check_tokenizer(init: str, tokenizer: Tokenizer, may_extend: bool = False) -> int:
    """How many tokens, such as control codes, the data's tokenizer has more than the checkpoint's. Raises UsageError
    where it is another one and does not extend the checkpoint's, or may not."""
    from minilm.text.tokenizer import get_tokenizer

    folder = find_checkpoint(init)
    if not (folder / "tokenizer.json").is_file():
        return 0
    theirs = get_tokenizer(folder)
    if theirs.fingerprint != tokenizer.fingerprint and not (may_extend and tokenizer.extends(theirs)):
        raise UsageError(
            f"{init} was trained with tokenizer {theirs.name} ({theirs.fingerprint}), the data was prepared with "
            f"{tokenizer.name} ({tokenizer.fingerprint}): prepare it again with --tokenizer {folder}"
        )
    return tokenizer.vocab_size - theirs.vocab_size
