"""`data/openwebtext.py --build DUMPS`: runs the stages of `openwebtext.py` on one of datatrove's executors, says what
each step dropped, and prepares the documents that are left.

The same command again goes on where it stopped: datatrove skips the tasks that are done, a task of pages its chunks.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from minilm.command_line import Parser
from minilm.errors import MinilmError, UsageError
from minilm.log import say
from minilm.text.folders import data_folder
from minilm.text.sources import Files
from minilm.text.webpages import Limits

EXECUTORS = {"local": "LocalPipelineExecutor", "ray": "RayPipelineExecutor", "slurm": "SlurmPipelineExecutor"}
# Of datatrove's own blocks: a count's name -> why a document was dropped. Ours say so themselves.
DROPS = {
    "timeout": "no article in time",
    "clean_error": "article broken",
    "broken_process": "article broken",
    "dropped": "no article",
}
NEAR = "near-duplicates"
BAR = 40  # characters


def build_words(words: Sequence[str]) -> Path:
    """The whole build from a command line's words. Returns the prepared folder; that of the build where its tasks run
    elsewhere and are not done. Raises UsageError on misuse, MinilmError where nothing is left."""
    parser = Parser(prog="openwebtext --build", description=__doc__)
    parser.add_argument("--build", required=True, metavar="DUMPS", help="Reddit's submissions: a file or folder")
    parser.add_argument("--out", help="where everything between links and documents is kept (with the downloads)")
    parser.add_argument("--executor", choices=sorted(EXECUTORS), default="local")
    parser.add_argument("--executor_options", default="", help="datatrove's: partition=cpu,time=20:00:00,...")
    parser.add_argument("--tasks", type=int, default=64, help="parts of the addresses, and tasks of most stages (64)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="tasks at a time (the cores)")
    parser.add_argument("--min_score", type=int, default=3, help="karma (3)")
    parser.add_argument("--blocklist", type=Path, help="a file of more domains and .endings to leave out")
    parser.add_argument("--connections", type=int, default=64, help="hosts at a time, of each task (64)")
    parser.add_argument("--pause_seconds", type=float, default=1.0, help="between two requests to one host (1)")
    parser.add_argument("--timeout_seconds", type=float, default=15.0, help="until a host answers (15)")
    parser.add_argument("--tokenizer", default="gpt2", help="that counts tokens, and of the shards (gpt2)")
    given = parser.parse_words(words)
    dumps = Path(given.build).expanduser().absolute()
    folder = Path(given.out or data_folder() / "downloads" / "openwebtext-build").expanduser().absolute()
    if min(given.tasks, given.workers, given.connections) < 1 or not Files.at(dumps).found:
        raise UsageError(f"--tasks, --workers and --connections begin at 1, and {dumps} needs to hold a dump")
    try:
        from minilm.text.openwebtext import stages
    except ImportError as error:
        raise UsageError('building a corpus needs datatrove: run pip install "minilm[cluster,data]"') from error
    limits = Limits(given.connections, given.pause_seconds, given.timeout_seconds)
    _same_build(folder, dumps, given)
    planned = stages(dumps, folder, given.tasks, given.tokenizer, limits, given.min_score, given.blocklist)
    if not run(planned, folder, given.executor, given.workers, _options(given.executor_options)):
        say("the tasks are handed over: give the same command again when they are done")
        return folder
    report(folder, [name for name, _, _ in planned])
    from minilm.text.prepare import prepare

    return prepare("openwebtext", tokenizer=given.tokenizer, source=folder / "documents")


def run(planned: Sequence[Any], folder: Path, executor: str, workers: int, options: dict[str, Any]) -> bool:
    """Runs the stages; whether all their tasks are done."""
    kind = getattr(import_module("datatrove.executor"), EXECUTORS[executor])
    previous: Any = None
    for name, blocks, tasks in planned:
        settings = {"tasks": tasks, "logging_dir": str(folder / "logs" / name), "workers": min(workers, tasks)}
        if executor == "slurm":
            settings["job_name"] = f"openwebtext-{name}"
            if not options.keys() & {"env_command", "venv_path", "condaenv"}:  # nodes need to find datatrove's commands
                settings["env_command"] = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        try:
            stage = kind(pipeline=blocks, depends=previous, **settings | options)
        except TypeError as error:
            raise UsageError(f"--executor {executor} needs other --executor_options: {error}") from error
        if executor != "slurm":  # there, sbatch keeps the order
            stage.depends = None
            stage.run()
            if stage.get_incomplete_ranks():
                raise MinilmError(f"not every task of {name} ended well: read {folder / 'logs' / name}, then run again")
            if name == "articles" and not any((folder / "articles").glob("*.jsonl.gz")):
                report(folder, ["links", "pages", "articles"])
                raise MinilmError(f"no page of {folder} is left: the table shows where they went")
        previous = stage
    if executor == "slurm" and previous.get_incomplete_ranks():
        previous.run()
    return not previous.get_incomplete_ranks()


def report(folder: Path, names: Sequence[str]) -> str:
    """What each step dropped, as a table with a bar for what it left, and MB a second and core: said, and kept as
    funnel.md."""
    n = 0
    drops: list[tuple[str, int]] = []
    speeds: dict[str, float] = {}
    for name in names:
        for block in _blocks_of(folder / "logs" / name / "stats"):
            counts = Counter({key: _total(value) for key, value in block["stats"].items()})
            n += counts["seen"]
            drops += [(_reason(block["name"], key), count) for key, count in counts.items()]
            if counts["bytes"] and (seconds := _total(block["time_stats"])):
                speeds[block["name"].removeprefix("minilm: ")] = counts["bytes"] / 1e6 / seconds
    lines = ["| step | dropped | of those before | left | |", "|---|---|---|---|---|"]
    left = n
    for reason, count in [("in the dumps", 0), *((reason, count) for reason, count in drops if reason and count)]:
        bar = "█" * round(BAR * (left - count) / max(n, 1))
        lines.append(f"| {reason} | {count:,} | {count / max(left, 1):.1%} | {left - count:,} | {bar} |")
        left -= count
    lines += [f"\n{name}: {speed:.2f} MB/s on a core" for name, speed in speeds.items()]
    lines += [f"\nslowest: {min(speeds, key=lambda name: speeds[name])}"] if speeds else []
    text = "\n".join(lines)
    (folder / "funnel.md").write_text(text + "\n", encoding="utf-8")
    say(text)
    return text


def _reason(block: str, key: str) -> str:
    """Why documents were dropped that a block counts under this key; "" where they were not."""
    if block.endswith("MinHash stage 4"):
        return NEAR if key == "dropped" else ""
    return DROPS.get(key, "") if block.endswith("article") else key.partition("dropped: ")[2]


def _blocks_of(folder: Path) -> list[dict[str, Any]]:
    """The stage's blocks with the statistics of all its tasks."""
    from datatrove.utils.stats import PipelineStats

    found = [PipelineStats.from_json(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    return list(json.loads(sum(found, start=PipelineStats()).to_json()))


def _total(value: Any) -> Any:
    return value["total"] if isinstance(value, dict) else value


def _options(words: str) -> dict[str, Any]:
    pairs = [word.partition("=") for word in words.split(",") if word]
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}


def _same_build(folder: Path, dumps: Path, given: Any) -> None:
    """Raises UsageError where the folder belongs to a build of other settings: its parts would not fit together."""
    settings = {name: str(getattr(given, name)) for name in ("tasks", "min_score", "blocklist", "tokenizer")}
    settings["dumps"] = Files.at(dumps).stat_key()
    path = folder / "build.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        raise UsageError(f"{folder} holds a build of other dumps or settings: name another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")
