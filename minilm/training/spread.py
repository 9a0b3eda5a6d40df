"""Tensors that are spread over ranks (torch's DTensor, rows shared out), beside tensors that are not.

Every function takes either kind, and does nothing to the second: what calls them runs alone and in FSDP alike. A rank's
rows are ceil(n / ranks) from rank times that on, as FSDP2 has them; later ranks may have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_spread(x: object) -> bool:
    """Whether a tensor is spread. Asks for the method, since the class takes seconds to import."""
    return hasattr(x, "full_tensor")


def whole(x: Tensor) -> Tensor:
    """All of a tensor, on every rank; all of them call this together. What is left to be summed is summed."""
    return x.full_tensor() if is_spread(x) else x  # type: ignore[attr-defined]


def own(x: Tensor) -> Tensor:
    """This rank's rows, the same memory."""
    return x.to_local() if is_spread(x) else x  # type: ignore[attr-defined]


def rank_of(x: Tensor) -> int:
    """Among those that a tensor is spread over; 0 where it is not."""
    return x.device_mesh.get_local_rank() if is_spread(x) else 0  # type: ignore[attr-defined]


def spread_as(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor spread as `like` of the same shape is; every rank has it, so that nothing is sent."""
    if not is_spread(like) or is_spread(x):
        return x
    mesh: Any = like.device_mesh  # type: ignore[attr-defined]
    rows = -(-len(x) // mesh.size())
    first = min(mesh.get_local_rank() * rows, len(x))
    return _of_rows(x[first : first + rows], like, x)


def map_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function of each rank's rows, which keeps their shape, spread as x is."""
    return _of_rows(function(own(x)), x, x) if is_spread(x) else function(x)


def _of_rows(rows: Tensor, like: Any, x: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    stride = torch.empty(x.shape, device="meta").stride()
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=x.shape, stride=stride)


@torch.no_grad()
def put(target: Tensor, x: Tensor) -> None:
    """Copies a whole tensor into one that may be spread."""
    own(target).copy_(own(spread_as(x, target)))
