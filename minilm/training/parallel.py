"""Ways to share a model out among ranks: `--parallel`.

| ddp | every rank holds the whole model and its optimizer state; gradients are summed after the last micro-batch |
| fsdp | every rank holds its rows of every weight, gradient and moment (Zhao 2023, FSDP2); a block's weights are
  gathered when it runs, forward and backward, and the rows of its gradient go to their rank at once |

Both take the same steps: batches, losses and norms of gradients are those of one rank, summed in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minilm.errors import UsageError
from minilm.model import surgery
from minilm.model.gpt import GPT
from minilm.training.distributed import ALONE, Ranks
from minilm.training.spread import put, whole


class Replicated:
    """The whole model on every rank, or on the only one."""

    def __init__(self, model: GPT, ranks: Ranks = ALONE) -> None:
        self.model, self.ranks = model, ranks
        ranks.share_weights(model)

    def through(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What runs the model, such as an objective, as something that may be called."""
        return function

    def begin_micro(self, last: bool) -> None:
        """Before each micro-batch of a step."""

    def sum_gradients(self) -> None:
        """Every rank's gradients become their sum."""
        self.ranks.sum_gradients(self.model.parameters())

    def whole(self, device: torch.device | str = "cpu") -> GPT | None:
        """A model with all weights on rank 0 (the model itself where every rank has them), None on other ranks; all
        ranks call this together."""
        return self.model if self.ranks.first else None

    def plain(self) -> GPT:
        """A model to load weights into; `take` then brings them into the one that is trained."""
        return self.model

    def take(self, plain: GPT) -> None:
        """Weights from what `plain` gave."""


class Sharded(Replicated):
    """FSDP2. Everything that runs the model goes through `through`, which gathers the weights outside of blocks
    (embeddings, last norm, head) and keeps them until the backward pass has used them."""

    def __init__(self, model: GPT, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(model, ranks)
        hollow: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
        }
        self._hollow = copy.deepcopy(model, hollow)  # deepcopy takes its copy of each parameter from here
        mesh = init_device_mesh(model.device.type, (ranks.world,))
        self._root: Any = _Pass(model)
        shared = len(model.h) < model.config.n_layer  # a block that runs several times a pass stays gathered
        parts = [] if shared else [*model.h]
        for part in [*parts, self._root]:
            fully_shard(part, mesh=mesh, reshard_after_forward=part is not self._root)
            part.set_gradient_divide_factor(1.0)  # a sum, since losses are divided by the step's targets already
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other
        self._inside = False
        for name in ("hidden", "loss"):
            setattr(model, name, self.through(getattr(model, name)))

    def through(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            try:
                result: Tensor = self._root(function, *args, **kwargs)
            finally:
                self._inside = False
                if not torch.is_grad_enabled():  # else the backward pass does it
                    self._root.reshard()
            return result

        return call

    def begin_micro(self, last: bool) -> None:
        self._root.set_requires_gradient_sync(last)

    def sum_gradients(self) -> None:
        """The backward pass has done it."""

    @torch.no_grad()
    def whole(self, device: torch.device | str = "cpu") -> GPT | None:
        tensors = {}
        for name, tensor in self.model.state_dict().items():
            full = whole(tensor)  # one after the other, so that other ranks never hold more than one
            if self.ranks.first:
                tensors[name] = full.to(device)
        if not self.ranks.first:
            return None
        found = self.plain(device)
        found.load_state_dict(tensors)
        return found.train(self.model.training)

    def plain(self, device: torch.device | str = "cpu") -> GPT:
        made = copy.deepcopy(self._hollow).to_empty(device=device)
        if made.config != self.model.config:
            surgery.set_activation(made, self.model.config.activation)
        return made

    def take(self, plain: GPT) -> None:
        tensors = plain.state_dict()
        for name, mine in self.model.state_dict().items():
            put(mine, tensors[name])


class _Pass(nn.Module):
    """What FSDP takes for the root: its forward pass is whatever is to run with the model's weights."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs)


PARALLEL: dict[str, type[Replicated]] = {"ddp": Replicated, "fsdp": Sharded}


def share_out(model: GPT, parallel: str, ranks: Ranks = ALONE, compiled: bool = False) -> Replicated:
    """The model, in place, as `--parallel` says; alone there is nothing to share out.

    Raises UsageError where a run that began compiled is to be spread.
    """
    kind = PARALLEL[parallel if ranks.world > 1 else "ddp"]
    if compiled and kind is Sharded:
        raise UsageError("this run began compiled, and what FSDP spreads over ranks runs eager: take --parallel ddp")
    return kind(model, ranks)
