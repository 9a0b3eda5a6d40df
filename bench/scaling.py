"""Training's speed, memory and MFU against model size, context and batch, and what ranks cost.

    python bench/scaling.py                    every cell that has no line yet; `--list` names them
    python bench/scaling.py --only size batch
    python bench/scaling.py --minutes 9        stops in time and goes on when called again
    python bench/scaling.py report             only the page and the picture

One process a cell: forward, backward, clip, AdamW on random tokens, compiled, auto precision, the median of three steps
after two. Cells that the machine's memory does not hold are left out and named. Ranks: `tiny`, eager, a thread each,
over gloo; a step is what 20 more of them take. Writes bench/results/scaling.jsonl, docs/benchmarks_scaling.md and
docs/pictures/scaling.svg.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from pages import RESULTS, ROOT, JsonLines, Line, give, in_a_process, machine

OUT = RESULTS if os.environ.get("MINILM_BENCH_OUT") else ROOT / "docs"
FILE, PAGE, PICTURE = JsonLines(RESULTS / "scaling.jsonl"), OUT / "benchmarks_scaling.md", OUT / "pictures/scaling.svg"
SIZES = {  # layers, heads, width, vocabulary
    "1M": (3, 2, 128, 3072), "3M": (4, 3, 192, 4096), "10M": (6, 6, 384, 4096), "25M": (8, 8, 512, 8192),
    "51M": (8, 8, 512, 50257), "124M": (12, 12, 768, 50257), "355M": (24, 16, 1024, 50257),
    "774M": (36, 20, 1280, 50257), "1.5B": (48, 25, 1600, 50257),
}  # fmt: skip
CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # 8,192 tokens a step of the 10M model
BATCHES = (1, 2, 4, 8, 16, 32, 64)  # of the 10M model, 256 tokens a row
RANKS = (1, 2, 4)
STEP_FLOPS = {"cpu": 2e12, "cuda": 2e15}  # rows of a size's batch: as many as this allows, 64 at most
STEPS, SHORT, LONG = 3, 4, 24
EXPLANATION = """Forward, backward, clip, AdamW on random tokens, compiled. MFU is of the measured product (of a card's
data sheet), FLOPs counted as 6N + 12 L D T. *Against arithmetic*: FLOPs a second beside the best of its kind, 1 where
cost grows as the arithmetic says. Memory by shapes is what `minilm plan` would say.
"""
GLOO = """The same steps of `tiny` (32 x 128 tokens, eager, AdamW) by gloo ranks of one thread each. Overhead: processor
seconds of all ranks beyond those of one.

| ranks | s a step | times as fast | processor s a step | overhead |
|---|---|---|---|---|"""
HEAD = "| | parameters | rows x tokens | tokens/s | MFU | against arithmetic | MiB | MiB by shapes | as |"
UNKNOWN_SECONDS = 90.0


def cells() -> dict[str, tuple[str, Any]]:
    """Name -> (kind, what varies)."""
    kinds: dict[str, tuple[Any, ...]] = {"size": tuple(SIZES), "context": CONTEXTS, "batch": BATCHES, "ranks": RANKS}
    return {f"{kind} {value}": (kind, value) for kind, values in kinds.items() for value in values}


def measure(kind: str, value: str, device: str) -> dict[str, Any]:
    if kind == "ranks":
        return ranks(int(value))
    import torch

    from minilm import bench, runtime
    from minilm.config import GPTConfig, TrainConfig
    from minilm.model.gpt import GPT
    from minilm.training.estimate import memory

    where = runtime.pick_device(device)
    n_layer, n_head, n_embd, vocab_size = SIZES[value if kind == "size" else "10M"]
    T = int(value) if kind == "context" else 256
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "vocab_size": vocab_size, "block_size": T}
    config = GPTConfig(**shape)
    with torch.device("meta"):
        empty = GPT(config)
    flops = empty.flops_per_token(T)
    by_work = max(1, min(64, int(STEP_FLOPS[where.type] / (flops * T))))
    rows = {"size": by_work, "context": 8192 // T, "batch": int(value) if kind == "batch" else 0}[kind]
    run = TrainConfig(model=config, batch_size=rows, max_steps=10_000, compile="on", device=device)
    precision = runtime.pick_precision("auto", where, n_embd)
    estimate, free = memory(empty, run, precision, rows).total, runtime.free_bytes(where)
    if free is not None and estimate > free:
        raise SystemExit(f"a step takes {estimate / 2**30:.1f} GiB and {free / 2**30:.1f} are free")
    runtime.tune_allocator()
    found = bench.training(run, STEPS)
    return {
        "parameters": empty.num_params(),
        "rows": rows,
        "T": T,
        "tokens/s": found.tokens_per_second,
        "MFU": found.mfu,
        "MiB": found.peak_bytes / 2**20,
        "MiB by shapes": estimate / 2**20,
        "FLOPs a token": flops,
        "as": found.precision,
    }


def ranks(n: int) -> dict[str, Any]:
    """Seconds of a step by the clock and of all processors together, from a short and a longer run."""
    import resource

    from minilm.text.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MINILM_DATA": folder, "OMP_NUM_THREADS": "1"}
        data = prepare("tales", level=1, tokenizer="words", megabytes=0.5)
        spent = []
        for steps in (SHORT, LONG):
            words = ["--config", "tiny", "--data", data, "--max_steps", steps, "--eval_every_steps", 0, "--compile",
                     "off", "--save_every_steps", 0, "--batch_size", 32, "--device", "cpu", "--optimizer", "adamw",
                     "--eval_tokens", 1000, "--out_dir", f"{folder}/{steps}"]  # fmt: skip
            launch = ["-m", "torch.distributed.run", "--nproc-per-node", n, "--master-port", 29511]
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [sys.executable, *map(str, [*launch, "train.py", *words])]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr.strip().splitlines()[-1])
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            spent.append((time.perf_counter() - start, cpu))
    wall, cpu = ((b - a) / (LONG - SHORT) for a, b in zip(*spent, strict=True))
    return {"ranks": n, "s a step": wall, "processor s a step": cpu}


def run(only: list[str], minutes: float, device: str) -> None:
    import torch

    from minilm import runtime

    here = machine() if device == "cpu" else f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    began, known = time.monotonic(), FILE.read()
    done = {line["cell"] for line in known if line["machine"] == here and "values" in line}
    for cell, (kind, value) in cells().items():
        if cell in done or (only and kind not in only and cell not in only):
            continue
        expected = statistics.median([x["seconds"] for x in known if x["cell"] == cell] or [UNKNOWN_SECONDS])
        if minutes and time.monotonic() - began + expected > 60 * minutes:
            print(f"stopped before {cell}: the same command goes on")
            return
        start = time.perf_counter()
        words = (__file__, "--device", device, "--cell", kind, str(value))
        values = in_a_process(*words, environment={"PYTHONPATH": str(ROOT)})
        print(f"{cell}: {values}", flush=True)
        told = {"left_out": values} if isinstance(values, str) else {"values": values}
        line = {"cell": cell, "kind": kind, "machine": here, "commit": runtime.git_commit()[:10], **told}
        command = "python bench/scaling.py" + ("" if device == "cpu" else f" --device {device}")
        line |= {"date": time.strftime("%Y-%m-%d"), "command": command, "load": round(os.getloadavg()[0], 2)}
        FILE.add(line | {"seconds": round(time.perf_counter() - start, 1)})


def report() -> None:
    """The page and the picture, of the machine whose lines came last."""
    lines = FILE.read()
    if not any("values" in line for line in lines):
        PAGE.write_text("# Scaling\n\nNo results yet: `python bench/scaling.py`.\n", encoding="utf-8")
        return
    newest = {x["cell"]: x for x in lines if x["machine"] == lines[-1]["machine"]}  # a later line of a cell wins
    mine = [newest[cell] for cell in cells() if cell in newest]
    draw([line for line in mine if "values" in line])
    PAGE.write_text("\n".join(page(mine)), encoding="utf-8")


def page(lines: list[Line]) -> Iterator[str]:
    dates = sorted({line["date"] for line in lines})
    loads = statistics.median(line["load"] for line in lines)
    yield f"# Scaling\n\nBy `{lines[-1]['command']}`, which writes this page: {lines[-1]['machine']}; {dates[0]} to "
    yield f"{dates[-1]}, commits {', '.join(dict.fromkeys(line['commit'] for line in lines))}, load {loads:.1f}."
    yield EXPLANATION
    yield "![speed, memory and MFU against size, context and batch](pictures/scaling.svg)\n"
    for kind in ("size", "context", "batch"):
        mine = [line["values"] | {"cell": line["cell"]} for line in lines if line["kind"] == kind and "values" in line]
        if not mine:
            continue
        best = max(v["tokens/s"] * v["FLOPs a token"] for v in mine)
        yield f"{HEAD}\n|---|---|---|---|---|---|---|---|---|"
        for v in mine:
            share, mib = v["tokens/s"] * v["FLOPs a token"] / best, f"{v['MiB']:,.0f} | {v['MiB by shapes']:,.0f}"
            told = f"{v['parameters']:,} | {v['rows']} x {v['T']:,} | {v['tokens/s']:,.0f} | {v['MFU']:.0%}"
            yield f"| {v['cell']} | {told} | {share:.2f} | {mib} | {v['as']} |"
        yield ""
    yield from ranks_table([line["values"] for line in lines if line["kind"] == "ranks" and "values" in line])
    yield from (f"Left out, {line['cell']}: {line['left_out']}.\n" for line in lines if "left_out" in line)


def ranks_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    alone = next((row for row in rows if row["ranks"] == 1), None)
    if alone is None:
        return
    yield GLOO
    for row in rows:
        wall, cpu = row["s a step"], row["processor s a step"]
        times, beyond = alone["s a step"] / wall, cpu / alone["processor s a step"] - 1
        yield f"| {row['ranks']} | {wall:.3f} | {times:.2f} | {cpu:.3f} | {beyond:+.0%} |"
    yield ""


def draw(lines: list[Line]) -> None:
    """Nine panels: columns are what varies, rows are speed, memory, MFU; black, told apart by marks and dashes."""
    import matplotlib as mpl

    from minilm.picture import panels

    mpl.rcParams["svg.hashsalt"] = "minilm"
    kinds = {"size": ("parameters", "parameters"), "context": ("T", "context, tokens"), "batch": ("rows", "rows")}
    drawers: list[Callable[[Any], None]] = []
    for measured, by_shapes in (("tokens/s", "arithmetic"), ("MiB", "MiB by shapes"), ("MFU", "")):
        for kind, (key, label) in kinds.items():
            rows = [line["values"] for line in lines if line["kind"] == kind]
            drawers.append(lambda axis, a=(rows, key, label, measured, by_shapes): panel(axis, *a))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    panels(drawers, PICTURE)


def panel(axis: Any, rows: list[dict[str, Any]], key: str, label: str, measured: str, by_shapes: str) -> None:
    if not rows:  # not measured yet
        axis.set_axis_off()
        return
    xs = [row[key] for row in rows]
    axis.plot(xs, [row[measured] for row in rows], "ko-", label=measured, linewidth=1, markersize=4)
    if by_shapes == "arithmetic":
        best = max(row["tokens/s"] * row["FLOPs a token"] for row in rows)
        axis.plot(xs, [best / row["FLOPs a token"] for row in rows], "k--", label="the best row's FLOP/s", linewidth=1)
    elif by_shapes:
        axis.plot(xs, [row[by_shapes] for row in rows], "kx:", label="by shapes", linewidth=1, markersize=5)
    axis.set_xscale("log", base=10 if key == "parameters" else 2)
    if measured == "MFU":
        axis.set_ylim(0.0, 1.0)
    else:
        axis.set_yscale("log")
    axis.set_xlabel(label)
    axis.set_ylabel(measured)
    axis.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("what", nargs="?", choices=("report",))
    option("--only", nargs="+", default=[], metavar="KIND", help="size, context, batch, ranks, or a cell's name")
    option("--minutes", type=float, default=0.0, help="stop in time for so many (0: never)")
    option("--device", default="cpu", choices=("cpu", "cuda"))
    option("--list", action="store_true")
    option("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        give(measure(*options.cell, options.device))
    elif options.list:
        print("\n".join(cells()))
    else:
        if not options.what:
            run(options.only, options.minutes, options.device)
        report()


if __name__ == "__main__":
    main()
