"""What `minilm eval --benchmark` does: LAMBADA, HellaSwag or CBT, from a local file or its official one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from minilm.eval_cli import loaded

if TYPE_CHECKING:
    from minilm.evaluation.benchmarks import Result
    from minilm.evaluation.reference import Figure


def measure(options: argparse.Namespace) -> int:
    """Prints what came of it, beside what others published."""
    from minilm.evaluation.benchmark_files import benchmark_file
    from minilm.evaluation.benchmarks import check_benchmark, read_questions, run

    check_benchmark(options.benchmark)
    file = options.source or benchmark_file(options.benchmark)
    questions = read_questions(options.benchmark, file, options.limit)
    found = run(options.benchmark, *loaded(options, options.model), questions, model_name=options.model)
    if options.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    print(found)
    for measure in found.measures:
        for figure in figures_of(found, measure):
            print(f"  published {called(measure)}, of as many questions: {figure}")
    return 0


def called(measure: str) -> str:
    """A measure as the report calls it."""
    return measure.replace("_", ", per ").replace("per norm", "per character")


def figures_of(found: Result, measure: str) -> list[Figure]:
    """Published figures of this model by a measure, where as many questions were asked as their file has."""
    from minilm.evaluation.reference import published, whole

    return published(found.model, f"{found.benchmark}/{measure}") if found.n_questions == whole(found.benchmark) else []
