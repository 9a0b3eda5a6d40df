"""Step folders: written whole or not at all, the newest k and the best kept, nothing executed on load.

A step folder holds model.safetensors, config.json, tokenizer.json (see `model/weights.py`), optimizer state
(`train_state.py`) and state.json (step, losses, tokens, seconds); with LoRA also adapter/. The weights are whole also
where training spreads them over ranks: rank 0 gathers them, so that every checkpoint loads like any other.
"""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from minilm.errors import MinilmError, UsageError
from minilm.log import quoted, read_json
from minilm.model import lora
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.model.weights import load_pretrained
from minilm.text.shard_format import fsync
from minilm.text.tokenizer import Tokenizer
from minilm.training import train_state
from minilm.training.distributed import is_lost_rank
from minilm.training.finetune import read_start
from minilm.training.optim import load_optimizer_state, optimizer_state
from minilm.training.parallel import Replicated, Sharded

ADAPTER = "adapter"  # a folder of its own: beside model.safetensors, transformers would apply it to the merged weights


def save_checkpoint(
    run: Path,
    model: GPT,
    tokenizer: Tokenizer,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
    keep: int,
    parallel: Replicated | None = None,
) -> Path:
    """Writes run/step_NNNNNN for state["step"], then removes what is neither among the newest `keep` nor the best.

    parallel: how the model is shared out; all ranks call this together. Raises MinilmError when the disk is full or
    fails; checkpoints that were there stay whole.
    """
    parallel = parallel or Replicated(model)
    first, spread = parallel.ranks.first, isinstance(parallel, Sharded)
    final = run / f"step_{state['step']:06d}"
    partial = run / f".{final.name}.partial"
    try:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        parallel.ranks.wait()
        whole = parallel.whole()
        held = optimizer_state(model, optimizers)
        if spread:
            train_state.write_spread(partial, held, first)
        if whole is not None:
            if not spread:
                torch.save(held, partial / train_state.WHOLE)
            whole.save_pretrained(partial, tokenizer)
            if lora.layers(whole):
                lora.save(whole, partial / ADAPTER)
            (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            for path in [*partial.rglob("*"), partial]:
                fsync(path)
            _remove(final)
            partial.rename(final)
            fsync(run)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        if is_lost_rank(error):
            raise
        message = _save_failure(run, error)
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise MinilmError(message) from error
    if first:
        prune(run, keep)
    parallel.ranks.wait()
    return final


def read_state(step_folder: Path) -> dict[str, Any]:
    """state.json of a step folder. Raises UsageError where there is none."""
    return read_json(step_folder / "state.json")


def prune(run: Path, keep: int) -> None:
    """Removes all step folders but the newest `keep` and the best, and what a kill left half written."""
    folders = step_folders(run)
    scored = [(loss, folder) for folder in folders if (loss := read_state(folder)["val_loss"]) is not None]
    spared = {*folders[-keep:], *([min(scored)[1]] if scored else [])}
    for folder in folders:
        if folder not in spared:
            _remove(folder)
    for partial in run.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _remove(step_folder: Path) -> None:
    """Under another name first: a kill leaves no step folder that lacks files."""
    if step_folder.exists():
        gone = step_folder.with_name(f".{step_folder.name}.gone.partial")
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(step_folder.rename(gone))


def load_checkpoint(
    step_folder: Path, model: GPT, optimizers: list[torch.optim.Optimizer], parallel: Replicated | None = None
) -> dict[str, Any]:
    """Puts weights and optimizer state back into model and optimizers, shared out as `parallel` does, whatever number
    of ranks wrote them; returns state.json.

    Values are copied into the tensors that are there: memory layout, and with it rounding, stays that of a fresh run.
    Raises UsageError on a checkpoint of another model, a damaged one, or one that holds code, with what to do.
    """
    parallel = parallel or Replicated(model)
    plain = parallel.plain()
    try:
        state = read_state(step_folder)
        _load_weights(step_folder, plain)
        parallel.take(plain)
        held = train_state.read(step_folder, model)
    except UsageError as error:
        if str(step_folder) not in (what := str(error).removesuffix(": fetch or save it again")):
            raise  # of the run, not of this checkpoint
        raise UsageError(f"{what}{_way_on(step_folder)}") from None
    try:
        load_optimizer_state(model, optimizers, held)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{train_state.unreadable(step_folder, error)}: start anew with --init") from None
    return state


def _way_on(damaged: Path) -> str:
    """What to do without this checkpoint; names the newest older one that can be read."""
    run, gone = damaged.parent, [damaged]
    for older in [folder for folder in reversed(step_folders(run)) if folder != damaged]:
        try:
            read_state(older)
            model, _ = load_pretrained(older)
            train_state.read(older, model)
            if (damaged / ADAPTER).is_dir():
                lora.load(model, older / ADAPTER)
        except UsageError:
            gone.append(older)
        else:
            remove, resume = " ".join(map(quoted, gone)), f"python train.py --resume {quoted(run)}"
            return f": remove {remove}, then `{resume}` goes on from {older.name}"
    return f", and {run} has no older whole checkpoint: start anew with --overwrite, or from its weights with --init"


def _load_weights(step_folder: Path, model: GPT) -> None:
    saved, _ = load_pretrained(step_folder)
    if saved.config != model.config:
        run = step_folder.parent
        raise UsageError(f"{run} holds another model than the run's config asks for: use --overwrite or --init")
    tensors = saved.state_dict()
    with torch.no_grad():
        for name, mine in model.state_dict().items():
            if ".lora_" not in name:
                mine.copy_(tensors[name])
    if lora.layers(model):
        read_start(model, step_folder.parent)  # what the adapters stand beside; the step folder has it merged
        lora.load(model, step_folder / ADAPTER)


def _save_failure(run: Path, error: Exception) -> str:
    left = step_folders(run)
    kept = f"{left[-1]} is whole" if left else "no checkpoint had been written yet"
    # A full disk reaches torch.save's caller without its error number; what could be written is still there to tell.
    full = getattr(error, "errno", None) == errno.ENOSPC or shutil.disk_usage(run).free < 1 << 20
    why = "the disk is full" if full else f"writing failed ({str(error).splitlines()[0]})"
    return f"no checkpoint could be saved in {run}: {why}; {kept}; make room and continue with --resume {quoted(run)}"
