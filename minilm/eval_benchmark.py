"""What `minilm eval --benchmark` does: LAMBADA, HellaSwag or CBT, from a local file or its official one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from minilm.log import say


def measure(options: argparse.Namespace) -> int:
    """Prints what came of it, beside what others published."""
    from minilm.evaluation.benchmark_files import benchmark_file
    from minilm.evaluation.benchmarks import check_benchmark, read_questions, run
    from minilm.evaluation.reference import published
    from minilm.sample_cli import load

    check_benchmark(options.benchmark)
    file = options.source or benchmark_file(options.benchmark)
    questions = read_questions(options.benchmark, file, options.limit)
    options.checkpoint = options.model
    options.precision = "fp32" if options.precision == "auto" else options.precision
    model, tokenizer, what = load(options)
    say(what)
    found = run(options.benchmark, model, tokenizer, questions, model_name=options.model)
    if options.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    print(found)
    for measure in found.measures:
        for figure in published(options.model, f"{options.benchmark}/{measure}"):
            print(f"  published {measure} of the whole test set: {figure.value:g} ({figure.source})")
    return 0
