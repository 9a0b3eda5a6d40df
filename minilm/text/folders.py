"""The life of a prepared folder: named, reused while its recipe holds, replaced whole.

A folder is built under a hidden temporary name beside its place and renamed into it, so a kill at any moment leaves the
old one usable (`recover` finishes a replacement that was cut between its two renames). `recipe.json` in the folder says
what it was made of.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minilm.errors import MinilmError
from minilm.text.sources import Files, digest

RECIPE = "recipe.json"


def data_folder() -> Path:
    """Where prepared folders and downloads go: $MINILM_DATA, else data/shards of the repository around the current
    folder (or of that folder itself, outside of any)."""
    if named := os.environ.get("MINILM_DATA"):
        return Path(named).expanduser()
    here = Path.cwd()
    home = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
    return home / "data" / "shards"


def is_prepared(name: str) -> bool:
    """Whether this is the path of a prepared folder."""
    return (Path(name).expanduser() / "meta.json").is_file()


def check_space(folder: Path, need_bytes: int, doing: str) -> None:
    """Raises MinilmError where the disk that `folder` is or will be on has no room for `need_bytes`."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if need_bytes > free:
        raise MinilmError(
            f"{doing} needs about {need_bytes / 1e6:,.0f} MB in {folder}, where {free / 1e6:,.0f} MB are free: "
            f"make room, or set MINILM_DATA to a folder on another disk"
        )


def slug(value: object) -> str:
    """The value as part of a file name; different values stay different."""
    text = str(value)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "", text.replace(" ", "_"))[:40].strip(".")
    return plain if plain == text.replace(":", "") else f"{plain}{short_hash(text)}"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def write_recipe(folder: Path, recipe: dict[str, Any], source: dict[str, str]) -> None:
    """`recipe`: all that decides the tokens, except where the text came from, which `source` says."""
    temporary = folder / f"{RECIPE}.tmp"
    temporary.write_text(json.dumps({"recipe": recipe, "source": source}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RECIPE)


def read_recipe(folder: Path) -> dict[str, Any]:
    """What `write_recipe` wrote, under "recipe" and "source"; empty where there is none or it is damaged."""
    return read_object(folder / RECIPE)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def made_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Name and options of the data script that a prepared folder was made by; ("", {}) where that is not known."""
    recipe = read_recipe(folder).get("recipe") or {}
    return str(recipe.get("data", "")), dict(recipe.get("options", {}))


def tales_of(folder: Path) -> tuple[int, list[str]]:
    """Level and styles of prepared tales; the defaults of other data."""
    name, options = made_of(folder)
    told = options if name == "tales" else {}
    return told.get("level", 1), [style.strip() for style in str(told.get("style", "plain")).split(",")]


def still_holds(folder: Path, recipe: dict[str, Any], files: Files | None) -> bool:
    """Whether the folder was made by this recipe from these files: at once where no file's size or time has changed,
    else by their content. Without files (the script's own source) whatever it was made from will do."""
    old = read_recipe(folder)
    source = old.get("source", {})
    if old.get("recipe") != recipe:
        return False
    if files is None or source.get("stat_key") == files.stat_key():
        return True
    if source.get("content_key") != digest(files.sha256s()):
        return False
    write_recipe(folder, recipe, source | {"stat_key": files.stat_key()})
    return True


@contextmanager
def replacing(folder: Path, is_kept: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """A folder that takes the place of `folder` when the block ends well. When it does not, it vanishes, unless
    `is_kept` says that a later call can go on with it; then it is what that call yields. Raises MinilmError as
    `disk_errors`."""
    temporary = folder.with_name(f".{folder.name}.{_owner()}-{os.getpid()}.tmp")
    try:
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            for left in left_behind(folder):
                if is_kept(left) and (left == temporary or not temporary.exists()):
                    left.rename(temporary)
                else:
                    shutil.rmtree(left, ignore_errors=True)
            temporary.mkdir(exist_ok=True)
            yield temporary
            if folder.exists():
                shutil.rmtree(_old(folder), ignore_errors=True)
                folder.rename(_old(folder))
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "meta.json").is_file():  # another process was faster with the same
                    raise
            shutil.rmtree(_old(folder), ignore_errors=True)
    finally:
        if not is_kept(temporary):
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raises MinilmError where the disk turns out to be full or closed to us."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MinilmError(
                f"no space is left for {folder}: make room, or set MINILM_DATA to a folder on another disk; "
                f"what was there before is unchanged"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise MinilmError(
                f"{folder} cannot be written ({error.strerror}): set MINILM_DATA to another folder"
            ) from error
        raise


def recover(folder: Path) -> None:
    """Brings the old folder back where a replacement was killed between moving it away and moving the new one in."""
    if _old(folder).exists() and not folder.exists():
        _old(folder).rename(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def left_behind(folder: Path) -> list[Path]:
    """What builds of this folder on this machine left that failed or were killed."""
    found = []
    for left in sorted(folder.parent.glob(f".{folder.name}.{_owner()}-*.tmp")):
        pid = left.name.rpartition("-")[2].partition(".")[0]
        if pid.isdecimal() and (int(pid) == os.getpid() or not _is_alive(int(pid))):
            found.append(left)
    return found


def _owner() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
