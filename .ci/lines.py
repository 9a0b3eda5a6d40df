"""Lines per file and per room, against DESIGN's bounds. Exit code 1 where a file is too long."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("text", "model", "decoding", "evaluation", "training", "lab")
GROUND = ("checks", "command_line", "config", "errors", "log", "model_config", "options", "picture", "runtime")
READING_PATH = ("model_config", "config", "model/layers", "model/gpt", "model/losses", "model/weights", "text/shards")
READING_PATH += ("text/batches", "decoding/engine", "training/loop")
LONGEST, LONGEST_OF = 400, {"model/gpt.py": 260, "training/loop.py": 300}
PACKAGE, PATH = 30_070, 2_430


def room_of(path: Path) -> str:
    if path.parts[0] == "data":
        return "datasets"
    if len(path.parts) > 2:
        return path.parts[1]
    return "ground" if path.stem in GROUND else "doors"


def main() -> int:
    files = [p for folder in ("minilm", "data") for p in sorted((ROOT / folder).rglob("*.py"))]
    files += [ROOT / "train.py", ROOT / "sample.py"]
    lines = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    faults = []
    for room in ("ground", *ROOMS[:1], "datasets", *ROOMS[1:], "doors"):
        own = {path: n for path, n in lines.items() if room_of(path) == room}
        if own:
            print(f"{sum(own.values()):6} {room}")
        for path, n in own.items():
            limit = LONGEST_OF.get(str(path).removeprefix("minilm/"), LONGEST)
            print(f"{n:12} {path}")
            faults += [f"{path} has {n} lines, more than {limit}"] if n > limit else []
    total = sum(lines.values())
    path_lines = sum(lines[Path(f"minilm/{name}.py")] for name in READING_PATH)
    tests = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "tests").glob("*.py"))
    print(f"{total:6} in all, of {PACKAGE:,}; reading path {path_lines:,} of {PATH:,}; tests {tests:,}")
    faults += [f"the package has {total} lines, more than {PACKAGE}"] if total > PACKAGE else []
    faults += [f"the reading path has {path_lines} lines, more than {PATH}"] if path_lines > PATH else []
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
