"""Validation: the loss on the same first tokens each time."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch import Tensor

from minilm.model.gpt import GPT
from minilm.text.batches import IGNORE, Batch, documents_of, eval_batches
from minilm.text.shards import Split
from minilm.training.distributed import ALONE, Ranks
from minilm.training.setup import Setup


@torch.no_grad()
def evaluate(
    model: GPT, setup: Setup, split: Split, max_tokens: int, ranks: Ranks = ALONE, attend: str = "window"
) -> float:
    """Nats per token over the split's first max_tokens: summed over tokens, so that neither the batch size nor the
    number of ranks changes anything; each rank takes its share of the batches.

    attend: "document" keeps tokens to their own document, as in training.
    """
    model.eval()
    total, count = 0.0, 0
    size = setup.micro_batch_size
    batches = eval_batches(split, block_size=model.config.block_size, batch_size=size, max_tokens=max_tokens)
    while among_ranks := list(islice(batches, ranks.world)):
        # In the last round a rank may have none of its own: it runs another's, since spread weights need every rank.
        batch = among_ranks[min(ranks.rank, len(among_ranks) - 1)]
        with setup.autocast():
            ids, targets = to_device(batch.ids, model.device), to_device(batch.targets, model.device)
            documents = None
            if attend == "document":
                documents = to_device(documents_of(batch.ids, split.shards[0].eot), model.device)
            loss = model.loss(ids, targets, documents, reduction="sum")
        if ranks.rank < len(among_ranks):
            total += loss.item()
            count += int((batch.targets != IGNORE).sum())
    model.train()
    # A device of Apple's has no float64.
    sums = torch.tensor([total, count], dtype=torch.float64, device="cpu" if ranks.world == 1 else model.device)
    nats, targets = ranks.sum(sums).tolist()
    return nats / targets


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of the array's values, on its way to the device."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def batch_tensors(batch: Batch, rows: slice, device: torch.device) -> tuple[Tensor, ...]:
    """ids and targets of some rows on the device, behind them weights and documents where there are some."""
    arrays = [batch.ids, batch.targets, batch.weights, batch.documents]
    while arrays[-1] is None:
        arrays.pop()
    if arrays[2:] and arrays[2] is None:  # documents come fourth
        arrays[2] = np.ones(batch.ids.shape, np.float32)
    return tuple(to_device(array[rows], device) for array in arrays if array is not None)
