"""What a run's config says about its data, as batches: packing, order, mixing, and a length in tokens or epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from minilm.config import TrainConfig
from minilm.errors import UsageError
from minilm.log import say
from minilm.text.batches import Batch, Batches
from minilm.text.mixture import MixedFolder
from minilm.text.packing import PackingOptions, line_end_ids
from minilm.text.shards import ShardFolder
from minilm.text.tokenizer import Tokenizer
from minilm.training.setup import Setup
from minilm.training.validation import batch_tensors


def training_batches(
    config: TrainConfig, data: ShardFolder, tokenizer: Tokenizer
) -> tuple[Batches | Curriculum, TrainConfig]:
    """The run's batches, and the config with its length in steps; says what packing costs where it costs something, and
    what is mixed. Raises UsageError where the text, the packing or the schedule of contexts does not fit."""
    line_ends = line_end_ids(tokenizer.decode, tokenizer.vocab_size) if config.packing == "lines" else ()

    def of_context(block_size: int, seed: int) -> Batches:
        return Batches(
            data.sources if isinstance(data, MixedFolder) else data.splits["train"],
            weights=data.weights if isinstance(data, MixedFolder) else (),
            block_size=block_size,
            batch_size=config.batch_size * config.model.block_size // block_size,
            seed=seed,
            packing=config.packing,
            order=config.order,
            with_documents=config.attend == "document",
            options=PackingOptions(config.stride, line_ends),
        )

    batches = of_context(config.model.block_size, config.seed)
    config = with_budget(config, batches)
    _announce(config, batches, isinstance(data, MixedFolder))
    if not config.context_schedule:
        return batches, config
    stages = parse_contexts(config)
    made = [(last, of_context(context, config.seed + 1 + i)) for i, (context, last) in enumerate(stages)]
    return Curriculum([*made, (config.max_steps, batches)]), config


class Curriculum:
    """Batches of growing context: (the step before which a stage ends, its batches), in order. A pure function of
    (seed, step, rank) as they are; each stage begins an epoch of its own."""

    def __init__(self, stages: list[tuple[int, Batches]]) -> None:
        self.stages = stages
        self.eot = stages[0][1].eot
        self.windows_per_epoch = stages[-1][1].windows_per_epoch  # of the whole context

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        first = 0
        for last, batches in self.stages[:-1]:
            if step < last:
                return batches.batch(step - first, rank, world)
            first = last
        return self.stages[-1][1].batch(step - first, rank, world)


def micro_rows(config: TrainConfig, setup: Setup, batch: Batch) -> int:
    """Rows of a micro-batch: more of them where the context is shorter."""
    return setup.micro_batch_size * config.model.block_size // batch.ids.shape[1]


def parse_contexts(config: TrainConfig) -> list[tuple[int, int]]:
    """(context, the step before which it ends) of each stage of `context_schedule`. Raises UsageError where a context
    does not divide block_size or the stages do not grow."""
    stages: list[tuple[int, int]] = []
    for part in config.context_schedule.split(","):
        context, _, share = part.partition(":")
        try:
            size, until = int(context), float(share)
        except ValueError:
            size, until = 0, 0.0
        if not (0 < size < config.model.block_size and config.model.block_size % size == 0 and 0 < until < 1):
            raise UsageError(
                f"context_schedule has {part!r}: write context:share, such as 64:0.3, with a context that divides "
                f"block_size ({config.model.block_size}) and a share of the steps between 0 and 1"
            )
        stages.append((size, round(until * config.max_steps)))
    if any(size >= longer or end >= later for (size, end), (longer, later) in pairwise(stages)):
        raise UsageError(f"context_schedule {config.context_schedule!r} must grow in both contexts and shares")
    return stages


def _announce(config: TrainConfig, batches: Batches, mixed: bool) -> None:
    if config.packing != "chunks" or mixed:
        say(f"{config.packing}: {batches.report()}")
    for packing, split, weight in zip(batches.packings, batches.splits, batches.weights, strict=True):
        if mixed:
            rows = weight / sum(batches.weights) * config.batch_size * config.max_steps
            name = split.shards[0].path.parent.name
            say(f"  {name}: {weight / sum(batches.weights):.1%} of the rows, {rows / packing.n_rows:.2f} epochs")


def with_budget(config: TrainConfig, batches: Batches) -> TrainConfig:
    """The config with max_steps worked out from max_tokens, or from max_epochs (every row comes once in each), where
    one of them is set."""
    rows = config.max_tokens / config.model.block_size or config.max_epochs * batches.windows_per_epoch
    if not rows:
        return config
    # 4.1 times 10 is a hair above 41.
    return replace(config, max_steps=max(math.ceil(round(rows / config.batch_size, 6)), 1))


def micro_batches(
    config: TrainConfig, setup: Setup, batch: Batch, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """ids, targets and, where there are some, weights and documents on the device, a micro-batch at a time."""
    n_rows = micro_rows(config, setup, batch)
    for at in range(0, len(batch.ids), n_rows):
        yield batch_tensors(batch, slice(at, at + n_rows), device)
