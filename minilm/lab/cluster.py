"""`--engine ray`: cells on the machines of a Ray cluster, which need share no disk.

A machine keeps its bases and its results in a folder of its own; a finished cell's line comes back to the driver, which
alone writes the results. A driver that is killed and started again gets what machines have finished meanwhile at once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minilm.errors import UsageError
from minilm.lab.cells import ready
from minilm.lab.places import Places
from minilm.lab.question import Cell, Line
from minilm.lab.questions import load_question


def run(names: Sequence[str], scale: str, places: Places, processes: int, address: str = "") -> None:
    """Runs what has no result yet. address: of a cluster; empty: one of `processes` workers on this machine, one cell
    each. Raises UsageError without Ray."""
    try:
        import ray
    except ImportError:
        raise UsageError('--engine ray needs Ray: pip install "minilm[cluster]"') from None
    where = {"address": address} if address else {"address": "local", "num_cpus": processes, "include_dashboard": False}
    ray.init(**where, log_to_driver=False, runtime_env={"env_vars": {"MINILM_DATA": os.environ.get("MINILM_DATA", "")}})
    try:
        whole = int(max(node["Resources"].get("CPU", 1) for node in ray.nodes()))
        cards = int(any("GPU" in node["Resources"] for node in ray.nodes()))  # a cell that asks for none is given none
        task = ray.remote(max_retries=2)(_line)
        folder = "" if address else str(places.work / "ray")
        running: dict[object, Cell] = {}
        while True:
            asked = {cell.address for cell in running.values()}
            for name in names:
                question = load_question(name)
                for cell in ready(question, question.scale(scale), places.results(name, scale)):
                    if cell.address not in asked:
                        cpus = whole if cell.kind == "timed" else 1  # a timed one has its machine to itself
                        running[task.options(num_cpus=cpus, num_gpus=cards).remote(cell, folder, cpus)] = cell
                        asked.add(cell.address)
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(done[0])
            places.append(cell.question, ray.get(done[0]))
            print(f"{cell.name}: done, {len(running)} asked for", flush=True)
    finally:
        ray.shutdown()


def _line(cell: Cell, folder: str, threads: int) -> Line:
    """On a worker: the cell's line, from its own results where they have it."""
    import torch

    from minilm.lab.trial import run_cell

    torch.set_num_threads(threads)
    places = Places(folder or Path(tempfile.gettempdir()) / f"minilm-lab-{os.getuid()}")
    with places.lock(cell.address):
        found = places.results(cell.question, cell.scale).get(cell.address)
        return found or run_cell(load_question(cell.question), cell, places)
