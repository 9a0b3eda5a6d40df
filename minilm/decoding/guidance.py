"""Two predictions made one: of two prompts, or of a strong and a weak model. Pure functions of logits (B, V)."""

from __future__ import annotations

import math

from torch import Tensor


def guide(logits: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022; text: Sanchez 2023): n + scale (l - n), both log-probabilities.

    negative: logits behind the negative prompt. 1 changes nothing, more moves away from it.
    """
    log_p, log_n = logits.float().log_softmax(dim=-1), negative.float().log_softmax(dim=-1)
    return (log_n + scale * (log_p - log_n)).masked_fill(log_p == -math.inf, -math.inf)


def contrast(logits: Tensor, amateur: Tensor, alpha: float, amateur_temperature: float) -> Tensor:
    """Contrastive decoding (Li 2022): ln p - ln p_amateur where p >= alpha max p, else -inf."""
    log_p = logits.float().log_softmax(dim=-1)
    score = log_p - (amateur.float() / amateur_temperature).log_softmax(dim=-1)
    return score.masked_fill(log_p < log_p.amax(dim=-1, keepdim=True) + math.log(alpha), -math.inf)
