"""Ranks: the processes of `torchrun train.py ...` as one run.

- Every rank takes its share of each batch: all ranks' rows in order are the batch of one rank. Gradients are summed in
  buckets where every rank holds the whole model; `parallel.py` has the other way.
- Losses are divided by the step's targets over all ranks, validation sums are reduced here.
- Rank 0 alone writes; a checkpoint knows nothing of ranks, and resumes on any number of them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minilm.errors import MinilmError, UsageError

BUCKET_BYTES = 64 << 20
TIMEOUT = timedelta(minutes=30)  # the longest that rank 0 may write or sample while the others wait


@dataclass(frozen=True)
class Ranks:
    """This process among the run's. Alone: rank 0 of 1, and every method costs nothing."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, named: torch.device) -> torch.device:
        """This rank's own, of the kind that was named."""
        return torch.device("cuda", self.local) if self.world > 1 and named.type == "cuda" else named

    def sum(self, values: Tensor) -> Tensor:
        """values, summed over ranks in place. Raises MinilmError where another rank is gone."""
        if self.world > 1:
            with self.noticing_losses():
                dist.all_reduce(values)
        return values

    @contextmanager
    def noticing_losses(self) -> Iterator[None]:
        """Turns what is raised inside where another rank is gone into a MinilmError."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not is_lost_rank(error):
                raise
            reason = str(error).splitlines()[0]
            raise MinilmError(
                f"rank {self.rank} lost another rank, which torchrun names below ({reason}); go on with --resume"
            ) from None

    def gather(self, text: str) -> list[str]:
        """Every rank's text, in order."""
        texts = [text] * self.world
        if self.world > 1:
            with self.noticing_losses():
                dist.all_gather_object(texts, text)
        return texts

    def sum_counts(self, n_targets: float, heard: bool, device: torch.device) -> tuple[float, bool]:
        """A step's targets over all ranks, and whether any rank heard an interrupt."""
        if self.world == 1:
            return n_targets, heard
        counts = self.sum(torch.tensor([float(n_targets), float(heard)], dtype=torch.float64, device=device))
        return counts[0].item(), bool(counts[1].item())

    def wait(self) -> None:
        """Until every rank is here."""
        on_cuda = self.world > 1 and dist.get_backend() == "nccl"
        self.sum(torch.zeros(1, device=f"cuda:{self.local}" if on_cuda else "cpu"))

    def sum_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Every rank's gradients become their sum, in buckets of one dtype."""
        if self.world == 1:
            return
        buckets: dict[torch.dtype, list[Tensor]] = {}
        for grad in (p.grad for p in params if p.grad is not None):
            bucket = buckets.setdefault(grad.dtype, [])
            bucket.append(grad)
            if sum(g.numel() * g.element_size() for g in bucket) >= BUCKET_BYTES:
                self._sum_bucket(buckets.pop(grad.dtype))
        for bucket in buckets.values():
            self._sum_bucket(bucket)

    def _sum_bucket(self, grads: list[Tensor]) -> None:
        flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Every rank starts from rank 0's weights."""
        if self.world > 1:
            for p in model.parameters():
                dist.broadcast(p.data, 0)


ALONE = Ranks()


def is_lost_rank(error: BaseException) -> bool:
    """Whether it says that the ranks' connection broke: NCCL's errors have a class, gloo's have its name in them."""
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(sign in str(error).lower() for sign in ("gloo", "connection closed"))
    )


@contextmanager
def joined(device_type: str) -> Iterator[Ranks]:
    """This process's place among those that torchrun started, or alone; a group that is there is joined again.

    Raises UsageError on a device that ranks cannot share out.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if device_type not in ("cpu", "cuda"):
        raise UsageError(f"ranks work on cpu and cuda, not on {device_type}: set --device, or start without torchrun")
    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    if dist.is_initialized():
        yield ranks
        return
    if device_type == "cuda":
        torch.cuda.set_device(ranks.local)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield ranks
    except MinilmError:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which would cut off the sentence
        raise
    finally:
        dist.destroy_process_group()
