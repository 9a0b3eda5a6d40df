"""Objectives: tensors in, a number out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # a target that is not scored (torch's own default)


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Nats of targets (B, T) under logits (B, T, V), in fp32 whatever the logits are. IGNORE is not scored.

    reduction: "mean" over the scored targets, "sum", or "none" (B, T).
    """
    loss = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE, reduction=reduction)
    return loss.view(targets.shape) if reduction == "none" else loss
