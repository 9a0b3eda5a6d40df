"""What a run's config says about its data, as batches: packing, order, mixing, and a length in tokens or epochs."""

from __future__ import annotations

import math
from dataclasses import replace

from minilm.config import TrainConfig
from minilm.log import say
from minilm.text.batches import Batches
from minilm.text.mixture import MixedFolder
from minilm.text.packing import PackingOptions, line_end_ids
from minilm.text.shards import ShardFolder
from minilm.text.tokenizer import Tokenizer


def training_batches(config: TrainConfig, data: ShardFolder, tokenizer: Tokenizer) -> Batches:
    """The run's batches; says what packing costs where it costs something, and what is mixed. Raises UsageError where
    the text or the packing does not fit."""
    line_ends = line_end_ids(tokenizer.decode, tokenizer.vocab_size) if config.packing == "lines" else ()
    mixed = isinstance(data, MixedFolder)
    batches = Batches(
        data.sources if isinstance(data, MixedFolder) else data.splits["train"],
        weights=data.weights if isinstance(data, MixedFolder) else (),
        block_size=config.model.block_size,
        batch_size=config.batch_size,
        seed=config.seed,
        packing=config.packing,
        order=config.order,
        options=PackingOptions(config.stride, line_ends),
    )
    if config.packing != "chunks" or mixed:
        say(f"{config.packing}: {batches.report()}")
    for packing, split, weight in zip(batches.packings, batches.splits, batches.weights, strict=True):
        if mixed:
            rows = weight / sum(batches.weights) * config.batch_size * config.max_steps
            name = split.shards[0].path.parent.name
            say(f"  {name}: {weight / sum(batches.weights):.1%} of the rows, {rows / packing.n_rows:.2f} epochs")
    return batches


def with_budget(config: TrainConfig, data: ShardFolder) -> TrainConfig:
    """The config with max_steps worked out from max_tokens or max_epochs, where one of them is set."""
    tokens = config.max_tokens or config.max_epochs * (data.splits["train"].n_tokens - 1)
    if not tokens:
        return config
    per_step = config.batch_size * config.model.block_size
    return replace(config, max_steps=max(math.ceil(tokens / per_step), 1))
