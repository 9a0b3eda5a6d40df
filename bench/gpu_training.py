"""Everything of training that needs a card, in one command: tests marked `gpu`, then benches, then the page.

    python bench/gpu_training.py                        # about half an hour; needs the extra test
    python bench/gpu_training.py --only tests kernels
    python bench/gpu_training.py --device cpu --quick   # checks this script itself, where there is no card

What each part ended with, its last lines, the card and the versions go to bench/results/gpu_training.json and
docs/measured.md as they come; figures go where each bench writes its own. shakespeare_char ends with 1 above 1.47
(nanoGPT's own, `AT_MOST` in bench/expected.py); ranks on NCCL are tested where there are two cards. Ends with 1 where a
part did.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pages import MEASURED, RESULTS, ROOT, put, told, where

HEADING = "On a card"
FILE = RESULTS / "gpu_training.json"
TAIL = 12  # lines kept of what a part said


def parts(device: str, quick: bool, source: str) -> dict[str, list[str]]:
    """Command of each part, without the interpreter."""
    on = ["--device", device]
    few = ["--steps", "2", "--batch_size", "2", "--max_docs", "500", "--optimizers", "adamw", "--precisions", "fp32"]
    shakespeare = ["bench/expected.py", "shakespeare_char", *on, *(["--source", source] if source else [])]
    tests = ["-m", "pytest", "-o", "addopts=", "-m", "gpu", *(["tests/test_gpu.py"] if quick else [])]
    benches = {
        "tests": tests,
        "kernels": ["bench/kernels.py", *on],
        "kernels of small": ["bench/kernels.py", "--preset", "small", *on],
        "optimizers": ["bench/optimizers.py", *on, *(few if quick else ["--steps", "200"])],
        "shakespeare_char": shakespeare,
        "tiny": ["bench/expected.py", "tiny", *on],
        "objectives": ["bench/objectives.py", *on, *([] if device == "cpu" else ["--precision", "bf16"])],
        "speed": ["bench/gpu.py", *on],
    }
    slow = ("kernels of small", "shakespeare_char", "tiny", "objectives", "speed")
    return {name: words for name, words in benches.items() if not (quick and name in slow)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--source", default="", help="a copy of tinyshakespeare, where there is no network")
    parser.add_argument("--quick", action="store_true", help="little of each, nothing written into the repository")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: --device cpu --quick checks the script itself")
    record: dict[str, Any] = {"made": where() | card(), "parts": {}}
    for name, words in parts(options.device, options.quick, options.source).items():
        if options.only and name not in options.only:
            continue
        record["parts"][name] = ran(words, options.device, options.quick)
        print(f"{name}: {record['parts'][name]['ended']}", flush=True)
        if not options.quick:
            FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            put(MEASURED, HEADING, page())
    return int(any(part["code"] for part in record["parts"].values()))


def ran(words: list[str], device: str, quick: bool) -> dict[str, Any]:
    """Runs one part; how it ended."""
    # A check of the script leaves results and pages alone.
    environment = {**os.environ, "MINILM_CARD": device, **({"MINILM_BENCH_OUT": _scratch()} if quick else {})}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip().splitlines()[-TAIL:]
    summary = next((line.strip("= ") for line in reversed(said) if " passed" in line or " failed" in line), "")
    failed = f"failed with {done.returncode}: {said[-1] if said else ''}"
    ended = summary or ("done" if done.returncode == 0 else failed)
    seconds = round(time.perf_counter() - began)
    return {"command": " ".join(words), "code": done.returncode, "ended": ended, "seconds": seconds, "said": said}


def _scratch() -> str:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="minilm-gpu-"))
    (folder / "measured.md").write_text(MEASURED.read_text(encoding="utf-8"), encoding="utf-8")
    return str(folder)


def card() -> dict[str, str]:
    """The card, its memory and driver's CUDA."""
    if not torch.cuda.is_available():
        return {}
    card = torch.cuda.get_device_properties(0)
    return {
        "memory": f"{card.total_memory / 2**30:.0f} GiB",
        "capability": f"{card.major}.{card.minor}",
        "cuda": str(torch.version.cuda),
        "cards": str(torch.cuda.device_count()),
    }


def page() -> str:
    """bench/results/gpu_training.json as Markdown."""
    record = json.loads(FILE.read_text(encoding="utf-8"))
    made = record["made"]
    extra = ", ".join(f"{name} {made[name]}" for name in ("memory", "capability", "cuda", "cards") if name in made)
    lines = [f"By `python bench/gpu_training.py`: {told(made)}, {extra}, commit {made['commit'][:10]}.", ""]
    lines += ["| part | ended | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {part['ended']} | {part['seconds']} |" for name, part in record["parts"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
