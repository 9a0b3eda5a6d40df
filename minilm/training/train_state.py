"""Optimizer state on the disk: nothing in it is executed when it is read.

- `train_state.pt`, where every rank has all of it: torch's own file, read with weights_only.
- `train_state/`, where it is spread over ranks: each rank writes its rows by torch.distributed.checkpoint (DCP) as
  safetensors, and any number of ranks, or one process alone, reads the rows that it needs. DCP's default storage keeps
  a pickle of metadata, which its reader executes; its Hugging Face storage keeps offsets in each file's JSON header.

`index.json` lists what was written, since DCP reads what a lost file should hold as zeros.
"""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilm.errors import UsageError
from minilm.training.spread import is_spread, spread_as

WHOLE, SPREAD, INDEX = "train_state.pt", "train_state", "index.json"
State = dict[str, dict[str, Any]]  # parameter's name -> key -> tensor or number


def write_spread(folder: Path, state: State, first: bool) -> None:
    """Writes the rows of every rank, which all call this together; flushed to the disk.

    Raises OSError or RuntimeError, on every rank, where any of them fails to write.
    """
    import torch.distributed.checkpoint as dcp

    flat = {f"{name}/{key}": torch.as_tensor(value) for name, of in state.items() for key, value in of.items()}
    target = folder / SPREAD
    with _dcp():
        dcp.save(flat, storage_writer=dcp.HuggingFaceStorageWriter(str(target), save_distributed=True))
    if first:
        told = {name: list(tensor.shape) for name, tensor in flat.items()}
        (target / INDEX).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def read(step_folder: Path, model: nn.Module) -> State:
    """Optimizer state by parameter name, spread as the model's parameters are.

    Raises UsageError on what is missing, damaged, or holds code.
    """
    params = dict(model.named_parameters())
    spread = (step_folder / SPREAD).is_dir()
    with _readable(step_folder / (SPREAD if spread else WHOLE)) as path:
        if spread:
            return _read_spread(path, params)
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        for name, of in state.items():
            for key, value in of.items():
                if isinstance(value, Tensor) and name in params and value.shape == params[name].shape:
                    of[key] = spread_as(value, params[name])
        return state


def _read_spread(folder: Path, params: dict[str, nn.Parameter]) -> State:
    import torch.distributed.checkpoint as dcp

    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    reader = dcp.HuggingFaceStorageReader(str(folder))
    there = reader.read_metadata().state_dict_metadata
    flat: dict[str, Tensor] = {}
    for name, shape in index.items():
        held: Any = there.get(name)
        if held is None or sum(math.prod(chunk.sizes) for chunk in held.chunks) != math.prod(shape):
            raise ValueError(f"a file with {name} is missing")
        param = params.get(name.rpartition("/")[0])
        empty = torch.zeros(shape, dtype=held.properties.dtype)
        flat[name] = spread_as(empty, param) if param is not None and list(param.shape) == shape else empty
    alone = not any(is_spread(param) for param in params.values())
    with _dcp():
        dcp.load(flat, storage_reader=reader, no_dist=alone)
    state: State = {}
    for name, tensor in flat.items():
        of, _, key = name.rpartition("/")
        state.setdefault(of, {})[key] = tensor
    return state


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Turns what readers raise into one sentence."""
    from safetensors import SafetensorError

    try:
        yield path
    except UsageError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, AttributeError) as error:
        raise unreadable(path, error) from None
    except (pickle.UnpicklingError, SafetensorError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UsageError:
    """The error of a state that cannot be resumed from; of torch's long ones the first sentence."""
    reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
    return UsageError(f"{path} cannot be resumed from ({reason})")


@contextmanager
def _dcp() -> Iterator[None]:
    """Without DCP's advice for other uses of it; the first rank's error in place of its own, which is no Exception."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise cause if isinstance(cause, OSError) else RuntimeError(f"rank {rank}: {cause}") from None
