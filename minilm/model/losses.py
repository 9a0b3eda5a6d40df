"""Objectives: tensors in, a number out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # a target that is not scored (torch's own default)


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Nats of targets (B, T) under logits (B, T, V), in fp32 at least. IGNORE is not scored.

    reduction: "mean" over the scored targets, "sum", or "none" (B, T).
    """
    logits = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction=reduction)
    return loss.view(targets.shape) if reduction == "none" else loss
