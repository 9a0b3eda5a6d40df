"""Where weights are: runs, step folders, Hugging Face folders, single files, Hub names."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Literal

from minilm import runtime
from minilm.checks import nearest
from minilm.errors import MinilmError, UsageError
from minilm.log import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")

Which = Literal["newest", "best"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def find_checkpoint(name_or_path: str | Path | None = None, runs: str | Path = "runs", which: Which = "newest") -> Path:
    """The folder or file that holds the weights meant by a name.

    None: the newest run in `runs`. A run: its newest or best step folder (steps without model.safetensors and
    state.json do not count). A folder with config.json, or a file: itself. A folder with one foreign checkpoint: that
    file. A name in models/. A Hub name: the folder in Hugging Face's cache that it was downloaded into.

    Raises UsageError where there is nothing, MinilmError where the Hub cannot be reached.
    """
    if name_or_path is None:
        return step_folder(newest_run(runs), which)
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if any(path.glob("step_*")) or (path / "config.toml").is_file():
            return step_folder(path, which)
        if (path / "config.json").is_file():
            return path
        files = [p for p in path.iterdir() if p.suffix in SUFFIXES and p.suffix != ".json"]
        if len(files) == 1:
            return files[0]
        what = "several files of weights: name one of them" if files else "neither config.json nor weights"
        raise UsageError(f"{path} holds {what}")
    name = str(name_or_path)
    if (packaged := runtime.packaged(name)) is not None:
        return packaged
    known = [file.parent.name for file in runtime.PACKAGED.glob("*/config.json")]
    if "/" not in name and (near := nearest(name, known, alike=0.8)):  # the Hub's t5-small is 0.64 of tales-smallest
        raise UsageError(f"there is no model {name}{near}; one on the Hub is named owner/name")
    if _HUB_NAME.fullmatch(name) is None or path.suffix in SUFFIXES or path.parts[0] == Path(runs).name:
        raise UsageError(f"there is no {path}: name a run, a folder or file of weights, or a model on the Hub")
    if len(path.parts) > 1 and Path(path.parts[0]).is_dir():
        raise UsageError(f"there is no {path.name} in the folder {path.parent}")
    return download(name)


def newest_run(runs: str | Path = "runs") -> Path:
    """The run folder whose newest whole step was written last. Raises UsageError where there is none."""
    steps = [step for run in Path(runs).glob("*/") for step in step_folders(run)[-1:]]
    if not steps:
        raise UsageError(f"no run found in {runs}/: train one first with `python train.py`")
    return max(steps, key=lambda step: (step / "state.json").stat().st_mtime_ns).parent


def step_folder(run: Path, which: Which = "newest") -> Path:
    """A run's newest step folder, or the one with the lowest validation loss."""
    steps = step_folders(run)
    if not steps:
        raise UsageError(f"{run} holds no whole checkpoint yet: a run writes one when it saves, ends or is interrupted")
    if which == "newest":
        return steps[-1]
    losses = [(loss, s) for s in steps if (loss := read_json(s / "state.json").get("val_loss")) is not None]
    if not losses:
        raise UsageError(f"no checkpoint of {run} was validated, so none is the best: take the newest")
    return min(losses)[1]


def step_folders(run: Path) -> list[Path]:
    """Whole step folders of a run, oldest first."""
    whole = [p for p in run.glob("step_*") if (p / WEIGHTS).is_file() and (p / "state.json").is_file()]
    return sorted(whole, key=lambda p: (len(p.name), p.name))  # step_1000000 comes after step_999999


class _Unreachable(MinilmError):
    """The Hub cannot be asked and the cache has no answer."""


def download(name: str) -> Path:
    """Downloads a model of the Hub, or finds it in the cache; the folder. Only the files that loading needs.

    Cache, token, endpoint and offline mode are huggingface_hub's own: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
    """
    config = _fetch(name, "config.json")
    if config is None:
        raise UsageError(f"the Hub's {name} has no config.json: it is no transformers model")
    missing: MinilmError = UsageError(f"the Hub's {name} has neither {WEIGHTS} nor {PICKLE}: nothing else is read")
    for file in (WEIGHTS, INDEX, PICKLE, PICKLE_INDEX):
        try:
            path = _fetch(name, file)
        except _Unreachable as error:
            missing = error
            continue
        if path is not None:
            break
    else:
        raise missing
    for shard in sorted(shards_of(path)) if path.suffix == ".json" else ():
        if _fetch(name, shard) is None:
            raise UsageError(f"the Hub's {name} lacks {shard}, which its {file} lists")
    with contextlib.suppress(_Unreachable):  # offline, what is not in the cache was not there when it was filled
        if _fetch(name, "tokenizer.json") is None:
            _fetch(name, "vocab.json")
            _fetch(name, "merges.txt")
    return config.parent


def cached(name: str) -> Path | None:
    """The folder of a model of the Hub whose weights are in the cache; nothing is asked or downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, WEIGHTS)
    return Path(found).parent if isinstance(found, str) else None


def shards_of(index: Path) -> set[str]:
    """File names that an index lists. Raises UsageError on a damaged one, or one that points out of its folder."""
    names: Any = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UsageError(f"{index} lists no files: fetch or save it again")
    for file in names.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise UsageError(f"{index} lists {file!r}, which is no file beside it")
    return set(names.values())


def _fetch(name: str, file: str) -> Path | None:
    """One file of a model on the Hub, from the cache where it is there; None where the model has no such file."""
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except errors.LocalEntryNotFoundError as error:
        mode = "offline mode is on" if constants.HF_HUB_OFFLINE else "it cannot be reached"
        raise _Unreachable(
            f"{name} is no folder here, {file} is not in the cache, and the Hub was not asked ({mode}): connect, or "
            "name a folder that holds the model"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError:
        raise UsageError(f"the Hub's {name} asks for consent: accept its terms there, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise UsageError(
            f"{name} is neither a folder here nor a model on the Hub: check the name, or set HF_TOKEN if it is private"
        ) from None
    except errors.HFValidationError as error:
        raise UsageError(f"{name} is neither a folder here nor a name that the Hub allows: {error}") from None
    except Exception as error:  # which library the Hub's client speaks HTTP with, and its errors, change by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MinilmError(f"{file} of {name} could not be downloaded ({reason}): try again, it continues") from error
