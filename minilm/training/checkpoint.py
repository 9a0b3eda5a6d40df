"""Step folders: written whole or not at all, the newest k and the best kept, nothing executed on load.

A step folder holds model.safetensors, config.json, tokenizer.json (see `model/weights.py`), train_state.pt (optimizer
state by parameter name, plain tensors) and state.json (step, losses, tokens, seconds); with LoRA also adapter/.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minilm.errors import MinilmError, UsageError
from minilm.model import lora
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.model.weights import load_pretrained
from minilm.text.tokenizer import Tokenizer
from minilm.training.finetune import read_start
from minilm.training.optim import load_optimizer_state, optimizer_state

ADAPTER = "adapter"  # a folder of its own: beside model.safetensors, transformers would apply it to the merged weights


def save_checkpoint(
    run: Path,
    model: GPT,
    tokenizer: Tokenizer,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Writes run/step_NNNNNN for state["step"], then removes what is neither among the newest `keep` nor the best.

    Raises MinilmError when the disk is full or fails; checkpoints that were there stay whole.
    """
    final = run / f"step_{state['step']:06d}"
    partial = run / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial, tokenizer)
        if lora.layers(model):
            lora.save(model, partial / ADAPTER)
        torch.save(optimizer_state(model, optimizers), partial / "train_state.pt")
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        for path in [*partial.rglob("*"), partial]:
            _fsync(path)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _fsync(run)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        message = _save_failure(run, error)
        shutil.rmtree(partial, ignore_errors=True)
        raise MinilmError(message) from error
    prune(run, keep)
    return final


def read_state(step_folder: Path) -> dict[str, Any]:
    """state.json of a step folder."""
    try:
        state: dict[str, Any] = json.loads((step_folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{step_folder} is no checkpoint to resume from: {error}") from None
    return state


def prune(run: Path, keep: int) -> None:
    """Removes all step folders but the newest `keep` and the best, and what a kill left half written."""
    folders = step_folders(run)
    scored = [(loss, folder) for folder in folders if (loss := read_state(folder)["val_loss"]) is not None]
    spared = {*folders[-keep:], *([min(scored)[1]] if scored else [])}
    for folder in folders:
        if folder not in spared:
            shutil.rmtree(folder)
    for partial in run.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def load_checkpoint(step_folder: Path, model: GPT, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Puts weights and optimizer state back into model and optimizers; returns state.json.

    Values are copied into the tensors that are there: memory layout, and with it rounding, stays that of a fresh run.
    Raises UsageError on a checkpoint of another model, a damaged one, or one that holds code.
    """
    state = read_state(step_folder)
    saved, _ = load_pretrained(step_folder)
    if saved.config != model.config:
        raise UsageError(f"{step_folder} holds another model than the run's config asks for: use --overwrite or --init")
    tensors = saved.state_dict()
    with torch.no_grad():
        for name, mine in model.state_dict().items():
            if ".lora_" not in name:
                mine.copy_(tensors[name])
    if lora.layers(model):
        read_start(model, step_folder.parent)  # what the adapters stand beside; the step folder has it merged
        lora.load(model, step_folder / ADAPTER)
    path = step_folder / "train_state.pt"
    try:
        saved_state = torch.load(path, map_location="cpu", weights_only=True)
        load_optimizer_state(model, optimizers, saved_state)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{path} cannot be resumed from ({reason}): resume from an older step folder, or start anew with --init"
        ) from None
    return state


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot flush a folder
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def _save_failure(run: Path, error: Exception) -> str:
    left = step_folders(run)
    kept = f"{left[-1]} is whole" if left else "no checkpoint had been written yet"
    # A full disk reaches torch.save's caller without its error number; what could be written is still there to tell.
    full = getattr(error, "errno", None) == errno.ENOSPC or shutil.disk_usage(run).free < 1 << 20
    why = "the disk is full" if full else f"writing failed ({str(error).splitlines()[0]})"
    return f"no checkpoint could be saved in {run}: {why}; {kept}; make room and continue with --resume {run}"
