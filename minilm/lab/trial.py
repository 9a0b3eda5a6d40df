"""One cell: data prepared, base at hand, trained (or gone on with where a kill cut it), measured."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import statistics
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from minilm import runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.errors import MinilmError
from minilm.evaluation.text_metrics import coherence, copy_check
from minilm.lab.cells import base_address, same_run, tuples
from minilm.lab.places import Places
from minilm.lab.question import Cell, Line, Question
from minilm.lab.texts import prepared
from minilm.log import read_metrics
from minilm.model.gpt import GPT
from minilm.model.hub import cached, step_folders
from minilm.model.weights import load_pretrained, read_config
from minilm.options import MODEL_FIELDS, build, run_config
from minilm.text.mixture import MixedFolder, open_data
from minilm.text.shards import ShardFolder, Split
from minilm.text.tales.copying import CopyCheck
from minilm.text.tokenizer import Tokenizer
from minilm.training.loop import Result, train
from minilm.training.setup import settle
from minilm.training.validation import evaluate


@dataclass(frozen=True)
class Trained:
    """What a question measures."""

    cell: Cell
    model: GPT
    tokenizer: Tokenizer
    data: ShardFolder
    checkpoint: Path
    base_checkpoint: Path | None
    base_data: ShardFolder | None
    """What the base was trained on."""
    metrics: Mapping[str, Any]
    """What training came to, `curve` among it."""


def run_cell(question: Question, cell: Cell, places: Places) -> Line:
    """The cell's line of results, another question's where it has run the same one. Training that diverges is a result;
    being interrupted raises KeyboardInterrupt."""
    log = places.work / "logs" / f"{cell.address}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    load = os.getloadavg()[0]
    with places.lock(f"run-{cell.training}"), log.open("a", encoding="utf-8") as file, redirect_stderr(file):
        base, base_data = _base(cell, places)
        mark = {"base_weights": _mark(base)} if base is not None else {}
        known = None if cell.kind == "timed" else places.elsewhere(cell)
        if known is not None and known.get("base_weights") == mark.get("base_weights"):
            line = {**known, "arm": cell.arm}
            places.append(question.name, line)
            return line
        named = prepared(cell.data, base_data, places)
        data = open_data(named, cell.config.mix_temperature)
        folder = places.work / "runs" / cell.training
        if question.trains and cell.config.lr:
            config, init = _settled(cell, base)
            metrics, result = _train(replace(config, data=named), data, folder, init)
            trained = (
                None
                if result is None
                else Trained(cell, result.model, result.tokenizer, data, result.checkpoint, base, base_data, metrics)
            )
        else:
            assert base is not None, f"{question.name} neither trains nor has a base"
            switched = _settled(cell, base)[0].model if question.trains else GPTConfig()
            changes = {} if switched == GPTConfig() else asdict(switched)
            model = load_pretrained(base, **changes)[0].to(runtime.pick_device())
            metrics = _left_alone(model, cell.config, data) if question.trains else {}
            trained = Trained(cell, model, data.tokenizer(), data, base, base, base_data, metrics)
        if trained is not None and (cell.kind == "paired" or "chosen_by" in cell.measure):
            trained.model.eval()
            metrics |= _coherence(trained) if question.trains else {}
            trained = replace(trained, metrics=metrics)
            metrics |= question.measure(trained) if question.measure else {}
    line = {
        "arm": cell.arm,
        "kind": cell.kind,
        "seed": cell.seed,
        "lr": cell.config.lr,
        "scale": cell.scale,
        "metrics": metrics,
        "seconds": round(time.perf_counter() - started, 2),
        "load": round(load, 2),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "versions": {**runtime.versions(), "vectors": torch.backends.cpu.get_cpu_capability()},
        "settings": cell.settings,
        **mark,
    }
    places.append(question.name, line)
    others = same_run(question, cell)
    if not others or others <= places.results(question.name, cell.scale).keys():
        shutil.rmtree(folder, ignore_errors=True)
    return line


def _settled(cell: Cell, base: Path | None) -> tuple[TrainConfig, Path | None]:
    """The config, and where its weights come from: fields of the model that differ from the base's are switched."""
    if base is None or cell.base is None or not cell.base.get("weights", True):
        return cell.config, None
    if cell.config.teacher:
        return replace(cell.config, teacher=str(base)), None
    of_base, there = _config(cell.base).model, read_config(base)
    if "pretrained" in cell.base:  # its table of positions is longer than the scale's context
        of_base = replace(of_base, block_size=there.block_size)
    switched = {n: v for n in MODEL_FIELDS if (v := getattr(cell.config.model, n)) != getattr(of_base, n)}
    # A model left alone is that of `init`.
    return replace(cell.config, model=replace(there, **switched) if switched else GPTConfig()), base


def _config(base: Mapping[str, Any]) -> TrainConfig:
    return build(tuples(base["config"]))


@cache
def _mark(base: Path) -> str:
    """Tells a base from another training of it, as another machine's is."""
    with (base / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@cache
def _commit() -> str:
    return runtime.git_commit()


def _train(
    config: TrainConfig, data: ShardFolder, folder: Path, base: Path | None
) -> tuple[dict[str, Any], Result | None]:
    """(metrics, the result; None where training diverged)."""
    try:
        result = _trained(config, folder, base)
    except MinilmError as error:
        if "lower --lr" not in str(error):  # what the guard advises where a loss is no longer finite
            raise
        return {"diverged": str(error)}, None
    logged = read_metrics(folder / "metrics.jsonl")
    speeds = [row["tokens_per_second"] for row in logged if row.get("tokens_per_second")]
    assert result.val_loss is not None
    model = result.model
    return {
        **_losses(result.val_loss, model, data),
        "curve": [[row["step"], row["val_loss"]] for row in logged if "val_loss" in row],
        "tokens": result.tokens,
        "train_seconds": round(result.seconds, 2),
        "tokens_per_second": statistics.median(speeds[1:] or speeds or [math.nan]),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "state_megabytes": (result.checkpoint / "train_state.pt").stat().st_size / 1e6,
        "teraflops": result.tokens * model.flops_per_token(model.config.block_size) / 1e12,
    }, result


def _losses(val_loss: float, model: GPT, data: ShardFolder) -> dict[str, float]:
    per_byte = data.splits["val"].n_tokens / data.meta.splits["val"].bytes
    bits = math.nan if isinstance(data, MixedFolder) else val_loss / math.log(2) * per_byte
    return {"val_loss": val_loss, "bits_per_byte": bits, "parameters": model.num_params()}


def _left_alone(model: GPT, config: TrainConfig, data: ShardFolder) -> dict[str, Any]:
    """What training would have logged of a model that it does not change: a rate of 0 asks for none."""
    loss = loss_of_rows(model, config, data.splits["val"])
    return {**_losses(loss, model, data), "curve": [], "tokens": 0, "trained": 0, "teraflops": 0.0}


def loss_of_rows(model: GPT, config: TrainConfig, split: Split) -> float:
    """Nats per token of a split's first rows, as training reads and validation counts them."""
    setup = settle(replace(config, model=model.config, compile="off"), model, model.device)
    return evaluate(model, setup, split, config.eval_tokens)


def _trained(config: TrainConfig, folder: Path, base: Path | None) -> Result:
    """Trains in `folder`, from its newest checkpoint where it has one. KeyboardInterrupt where it was interrupted."""
    if step_folders(folder):
        config = replace(run_config(folder), existing="resume", out_dir=str(folder))
    else:
        shutil.rmtree(folder, ignore_errors=True)
        config = replace(config, out_dir=str(folder), init=str(base or ""), existing="refuse")
    result = train(config)
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _base(cell: Cell, places: Places) -> tuple[Path | None, ShardFolder | None]:
    """The checkpoint that the cell starts from and its data, trained here where no cell has needed it before."""
    if cell.base is None:
        return None, None
    named = prepared(cell.base["data"], None, places)
    if name := cell.base.get("pretrained"):
        if (found := runtime.packaged(name) or cached(name)) is None:
            raise MinilmError(
                f"{name} is not in models/ nor in this machine's cache: download it (`minilm eval {name} --all`)"
            )
        return found, open_data(named)
    key = base_address(cell.base)
    folder = places.work / "bases" / key
    with places.lock(f"base-{key}"):
        config = replace(_config(cell.base), data=named)
        folders = step_folders(folder)
        if not folders or int(folders[-1].name.removeprefix("step_")) < config.max_steps:
            _trained(config, folder, None)
    return step_folders(folder)[-1], open_data(named)


def _coherence(trained: Trained) -> dict[str, Any]:
    """What the model writes, judged as always."""
    n_stories, data = trained.cell.measure["n_stories"], trained.cell.data
    if not n_stories or "local" in data or not data.get("codes", True):
        return {}
    level, style = data["level"], data.get("style", "plain")
    copies = copies_of(trained.data)
    graded = coherence(
        trained.model, trained.tokenizer, train=copies, level=level, style=style.split(",")[0], n_stories=n_stories
    )
    return {
        "coherent": 100 * graded.share,
        "before": 100 * graded.mean_before,
        "failures": graded.failures,
        "sample": graded.samples[0],
    }


_copies: dict[Path, CopyCheck] = {}


def copies_of(data: ShardFolder) -> CopyCheck:
    """What copies of the training text are found with; the last one is kept, since building it takes seconds."""
    if data.folder not in _copies:
        found = copy_check(data.splits["train"], data.tokenizer())
        assert found is not None
        _copies.clear()
        _copies[data.folder] = found
    return _copies[data.folder]
