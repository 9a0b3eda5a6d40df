"""One cell: data prepared, base at hand, trained (or gone on with where a kill cut it), measured."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from minilm import runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.errors import MinilmError
from minilm.evaluation.text_metrics import coherence, copy_check
from minilm.lab.places import Places
from minilm.lab.question import Cell, Line, Question, address
from minilm.log import read_metrics
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.model.weights import load_pretrained
from minilm.options import build, read_preset
from minilm.text.prepare import prepare
from minilm.text.shards import ShardFolder, open_shards
from minilm.text.tales.copying import CopyCheck
from minilm.text.tokenizer import Tokenizer
from minilm.training.loop import Result, train


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


def run_cell(question: Question, cell: Cell, places: Places) -> Line:
    """The cell's line of results. Training that diverges is a result; being interrupted raises KeyboardInterrupt."""
    log = places.work / "logs" / f"{cell.address}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    load = os.getloadavg()[0]
    with log.open("a", encoding="utf-8") as file, redirect_stderr(file):
        base, base_data = _base(cell, places)
        data = open_shards(_prepared(cell.data, base_data, places))
        folder = places.work / "runs" / cell.address
        if question.trains:
            # A model left alone is that of `init`.
            config = replace(cell.config, model=GPTConfig()) if base else cell.config
            metrics, result = _train(config, data, folder, base)
            trained = (
                None
                if result is None
                else Trained(cell, result.model, result.tokenizer, data, result.checkpoint, base, base_data)
            )
        else:
            assert base is not None, f"{question.name} neither trains nor has a base"
            model = load_pretrained(base)[0]
            metrics, trained = {}, Trained(cell, model, data.tokenizer(), data, base, base, base_data)
        if trained is not None and cell.kind == "paired":
            trained.model.eval()
            metrics |= _coherence(trained) if question.trains else {}
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
        "versions": runtime.versions(),
        "settings": cell.settings,
    }
    places.append(question.name, line)
    shutil.rmtree(folder, ignore_errors=True)
    return line


@cache
def _commit() -> str:
    return runtime.git_commit()


def _train(
    config: TrainConfig, data: ShardFolder, folder: Path, base: Path | None
) -> tuple[dict[str, Any], Result | None]:
    """(metrics, the result; None where training diverged)."""
    try:
        result = _trained(config, data.folder, folder, base)
    except MinilmError as error:
        if "lower --lr" not in str(error):  # what the guard advises where a loss is no longer finite
            raise
        return {"diverged": str(error)}, None
    logged = read_metrics(folder / "metrics.jsonl")
    speeds = [row["tokens_per_second"] for row in logged if row.get("tokens_per_second")]
    assert result.val_loss is not None
    split = data.meta.splits["val"]
    model = result.model
    return {
        "val_loss": result.val_loss,
        "bits_per_byte": result.val_loss / math.log(2) * data.splits["val"].n_tokens / split.bytes,
        "curve": [[row["step"], row["val_loss"]] for row in logged if "val_loss" in row],
        "tokens": result.tokens,
        "train_seconds": round(result.seconds, 2),
        "tokens_per_second": speeds[-1] if speeds else math.nan,
        "parameters": model.num_params(),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "state_megabytes": (result.checkpoint / "train_state.pt").stat().st_size / 1e6,
        "teraflops": result.tokens * model.flops_per_token(model.config.block_size) / 1e12,
    }, result


def _trained(config: TrainConfig, data: Path, folder: Path, base: Path | None) -> Result:
    """Trains in `folder`, from its newest checkpoint where it has one. KeyboardInterrupt where it was interrupted."""
    if step_folders(folder):
        config = replace(build(read_preset(str(folder / "config.toml"))), existing="resume", out_dir=str(folder))
    else:
        shutil.rmtree(folder, ignore_errors=True)
        config = replace(config, data=str(data), out_dir=str(folder), init=str(base or ""), existing="refuse")
    result = train(config)
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _base(cell: Cell, places: Places) -> tuple[Path | None, ShardFolder | None]:
    """The checkpoint that the cell starts from and its data, trained here where no cell has needed it before."""
    if cell.base is None:
        return None, None
    data = open_shards(_prepared(cell.base["data"], None, places))
    key = address({**cell.base, "base": None})
    folder = places.work / "bases" / key
    with places.lock(f"base-{key}"):
        config = build(dict(cell.base["config"]) | _tuples(cell.base["config"]))
        folders = step_folders(folder)
        if not folders or int(folders[-1].name.removeprefix("step_")) < config.max_steps:
            _trained(config, data.folder, folder, None)
    return step_folders(folder)[-1], data


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) for name, value in values.items() if isinstance(value, list)}


def _coherence(trained: Trained) -> dict[str, Any]:
    """What the model writes, judged as always."""
    n_stories = trained.cell.measure["n_stories"]
    if not n_stories:
        return {}
    level, style = trained.cell.data["level"], trained.cell.data.get("style", "plain")
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


def _prepared(data: Mapping[str, Any], base_data: ShardFolder | None, places: Places) -> Path:
    """The folder of shards for options of tales. vocabulary "base": the tokenizer is that of the base's data; a number:
    that of so many megabytes, so that losses per token of unlike amounts can be compared."""
    options = {k: v for k, v in data.items() if k not in ("tokenizer", "vocabulary", "fingerprint")}
    tokenizer = data["tokenizer"]
    if data.get("vocabulary") == "base":
        assert base_data is not None
        tokenizer = str(base_data.folder)
    with places.lock("data"):
        if isinstance(data.get("vocabulary"), float):
            more = {**options, "megabytes": data["vocabulary"]}
            tokenizer = str(_prepare(tokenizer, tuple(sorted(more.items())), os.environ.get("MINILM_DATA", "")))
        return _prepare(tokenizer, tuple(sorted(options.items())), os.environ.get("MINILM_DATA", ""))


@cache
def _prepare(tokenizer: str, options: tuple[tuple[str, Any], ...], data_folder: str) -> Path:
    return prepare("tales", tokenizer=tokenizer, **dict(options))
