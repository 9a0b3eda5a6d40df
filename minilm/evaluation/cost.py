"""What a model takes to predict text: memory as measured, parameters and FLOPs as counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from minilm.evaluation.scoring import Request, target_nats
from minilm.model.gpt import GPT


def weight_bytes(model: GPT) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def peak_bytes(model: GPT, n_tokens: int) -> int:
    """Bytes of the weights and of all that is alive beside them at the worst moment while one window of n_tokens, which
    are really read, is scored: as the allocator says on a card, as torch's profiler sees every allocation on a CPU."""
    request = Request(np.zeros(n_tokens + 1, np.int64), 1)
    weights = weight_bytes(model)
    if model.device.type == "cuda":
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        list(target_nats(model, [request]))
        return weights + torch.cuda.max_memory_allocated(model.device) - before
    return weights + peak_allocated(lambda: list(target_nats(model, [request])))


def peak_allocated(call: Callable[[], object]) -> int:
    """Bytes of tensors on the CPU at the worst moment of a call, beyond what was there before."""
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None  # noqa: PT018
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max(initial=0))


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's own lines on stderr are left out."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
