"""Weights in and out. What loads and what a folder holds: docs/checkpoints.md.

- `load_pretrained` never executes anything in a file, and refuses what it cannot honour.
- Any field of GPTConfig can be changed while loading; the report states what became of each tensor.
- A saved folder opens in transformers exactly where GPT-2 can express the config.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minilm.config import GPTConfig, nearest
from minilm.errors import MinilmError, UsageError
from minilm.model.fit import LoadReport as LoadReport
from minilm.model.fit import fit
from minilm.model.formats import CONV1D, config_beside, read_checkpoint
from minilm.model.gpt import GPT
from minilm.model.hf_config import to_json
from minilm.model.hub import WEIGHTS
from minilm.model.hub import find_checkpoint as find_checkpoint
from minilm.model.lora import merged

if TYPE_CHECKING:
    from minilm.text.tokenizer import Tokenizer


class SaveError(MinilmError, OSError):
    """Weights could not be written: the disk is full, the folder read-only."""


def load_pretrained(
    name_or_path: str | Path | None, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[GPT, LoadReport]:
    """A model in evaluation mode, and what became of each tensor. name_or_path as in `find_checkpoint`.

    changes: fields of GPTConfig that shall differ from the checkpoint's; vocab_size 0 keeps its vocabulary.
    Raises UsageError on what is not there, damaged, of another architecture, or holds code; MinilmError where the Hub
    cannot be reached.
    """
    changes = _known(changes)
    path = find_checkpoint(name_or_path)
    checkpoint = read_checkpoint(path, dtype, changes.get("n_head", 0))
    source = str(path if name_or_path is None else name_or_path)
    return fit(checkpoint, replace(checkpoint.config, **changes), source, dtype)


def read_config(name_or_path: str | Path | None) -> GPTConfig:
    """The config of a checkpoint, without its weights where a config.json tells it."""
    path = find_checkpoint(name_or_path)
    return (config_beside(path) if path.is_dir() else None) or read_checkpoint(path, torch.float32).config


def save_pretrained(model: GPT, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Writes model.safetensors, config.json and, where given, tokenizer.json into folder, which may exist.

    LoRA's adapters are merged into the weights that they stand beside.
    Each file is whole or not there. Raises SaveError (a MinilmError and an OSError) when writing fails.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            tokenizer.save(folder)
        write_weights(folder, model.config, merged(model), None if tokenizer is None else tokenizer.eot)
    except OSError as error:
        saved = SaveError(f"the model could not be saved in {folder}: {error.strerror or error}")
        saved.errno = error.errno
        raise saved from error


def write_weights(folder: Path, config: GPTConfig, tensors: Mapping[str, Tensor], eot: int | None = None) -> None:
    """Writes model.safetensors and config.json from tensors named as in memory. Raises OSError when writing fails.

    The file holds GPT-2's names and orientation, a tied head once, and no padding rows.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {}
    for name, tensor in tensors.items():
        if name in ("wte.weight", "lm_head.weight"):
            tensor = tensor[: config.vocab_size]
        elif CONV1D.search(name):
            tensor = tensor.t()
        stored[name if name == "lm_head.weight" else f"transformer.{name}"] = tensor.detach().cpu().contiguous()
    dtype = str(tensors["wte.weight"].dtype).removeprefix("torch.")
    with _whole(folder / WEIGHTS) as path:
        try:
            save_file(stored, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
    with _whole(folder / "config.json") as path:
        path.write_text(json.dumps(to_json(config, dtype, eot), indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name that becomes path once it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _known(changes: dict[str, Any]) -> dict[str, Any]:
    known = [f.name for f in fields(GPTConfig)]
    for name in changes:
        if name not in known:
            raise UsageError(f"the model has no setting {name!r}{nearest(name, known)}")
    return {k: v for k, v in changes.items() if (k, v) != ("vocab_size", 0)}
