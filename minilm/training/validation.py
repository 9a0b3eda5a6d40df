"""Validation: the loss on the same first tokens each time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minilm.model.gpt import GPT
from minilm.text.batches import IGNORE, eval_batches
from minilm.text.shards import Split
from minilm.training.setup import Setup


@torch.no_grad()
def evaluate(model: GPT, setup: Setup, split: Split, max_tokens: int) -> float:
    """Nats per token over the split's first max_tokens: summed over tokens, so the batch size changes nothing."""
    model.eval()
    total, count = 0.0, 0
    size = setup.micro_batch_size
    for batch in eval_batches(split, block_size=model.config.block_size, batch_size=size, max_tokens=max_tokens):
        with setup.autocast():
            ids, targets = to_device(batch.ids, model.device), to_device(batch.targets, model.device)
            loss = model.loss(ids, targets, reduction="sum")
        total += loss.item()
        count += int((batch.targets != IGNORE).sum())
    model.train()
    return total / count


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of the array's values, on its way to the device."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
