"""`minilm lab`: research questions as commands. `list` names them, `run` runs one, `report` writes what was found,
`present` trains and packages two models to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minilm.command_line import Parser, unread
from minilm.errors import MinilmError, UsageError
from minilm.lab.places import Places
from minilm.lab.question import SCALES

# By each job, beside --folder.
READ = {"list": ("names", "scale"), "run": ("names", "scale", "processes", "engine", "address")}
READ |= {"report": ("names", "scale", "out"), "present": ("models",)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="minilm lab", description=__doc__)
    parser.add_argument("job", choices=tuple(READ))
    parser.add_argument("names", nargs="*", metavar="NAME", help="questions (run: at least one, or `all`)")
    parser.add_argument("--scale", choices=SCALES, default="laptop", help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="that run cells, one thread each (cores)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="that runs cells (%(default)s)")
    parser.add_argument("--address", default="", help="of a Ray cluster (one is started on this machine)")
    parser.add_argument("--folder", default="lab", help="results, and work in progress under work/ (%(default)s)")
    parser.add_argument("--models", default="models", help="folder that `present` writes to (%(default)s)")
    parser.add_argument("--out", default="", help="folder of the report (docs/findings for all at scale laptop)")
    import sys

    options = parser.parse_words(sys.argv[2:] if argv is None else argv)
    if left := unread(options, parser.parse_words([options.job]), {"folder", *READ[options.job]}):
        told = ", ".join(f"--{name}" if name != "names" else options.names[0] for name in left)
        raise UsageError(f"`minilm lab {options.job}` does not read {told}: leave it out")
    try:
        return do(options)
    except MinilmError:
        raise
    except OSError as error:
        told = f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
        raise UsageError(f"{told}: choose another --folder, --out or --models") from None


def do(options: Any) -> int:
    names, places = chosen(options.job, options.names), Places(options.folder)
    if options.processes < 0:
        raise UsageError(f"processes must be 0 (as many as cores) or more, not {options.processes}")
    if options.address and options.engine != "ray":
        raise UsageError("--address is of a Ray cluster: give it with --engine ray")
    if options.job == "list":
        for name in names:
            print(told(name, options.scale, places))
    elif options.job == "run":
        from minilm import runtime
        from minilm.lab import runner
        from minilm.text.parallel import n_cores

        # One card is not shared: its cells run one after the other.
        processes = options.processes or (1 if runtime.pick_device().type != "cpu" else n_cores())
        if options.engine == "ray":
            from minilm.lab import cluster

            cluster.run(names, options.scale, places, processes, options.address)
        else:
            runner.run(names, options.scale, places, processes)
    elif options.job == "present":
        from minilm.lab import present

        for folder in present.present(Path(options.models), places.work / "present"):
            size = sum(path.stat().st_size for path in folder.iterdir())
            kept = "" if size <= present.LARGEST_BYTES else ", too large for the repository: made again by this command"
            print(f"{folder}: {size / 1e6:.1f} MB{kept}")
    else:
        from minilm.lab import report
        from minilm.lab.questions import QUESTIONS

        whole = len(names) == len(QUESTIONS) and options.scale == "laptop" and options.folder == "lab"
        if not options.out and not whole:
            raise UsageError("docs/findings holds all questions at scale laptop of lab/: give --out for another report")
        page = report.write(names, options.scale, places, Path(options.out or "docs/findings"))
        print(f"{page}\n{page.with_name(report.HTML)}")
    return 0


def chosen(job: str, names: Sequence[str]) -> list[str]:
    """The questions that were named; all of them for `all`, and where `list` and `report` are given none."""
    from minilm.lab.questions import QUESTIONS, load_question

    if list(names) == ["all"] or (not names and job != "run"):
        return list(QUESTIONS)
    if not names:
        raise UsageError(f"name a question to run, or `all`: {', '.join(QUESTIONS)}")
    return [load_question(name).name for name in names]


def told(name: str, scale_name: str, places: Places) -> str:
    """What `list` says of a question."""
    from minilm.lab.cells import all_cells, done_cells, total_flops
    from minilm.lab.question import CORE_FLOPS
    from minilm.lab.questions import load_question

    question = load_question(name)
    scale = question.scale(scale_name)
    results = places.results(name, scale_name)
    done = done_cells(question, scale, results)
    flops = total_flops(question, scale, results)
    cells = f"{done} of {all_cells(question, scale, results)} cells done at scale {scale_name}"
    minutes = f", {flops / CORE_FLOPS / 120:,.0f} minutes on two cores" if scale_name == "laptop" else ""
    return f"{name}: {question.asks}\n  {cells}, {flops / 1e12:,.1f} TFLOP of training in all{minutes}"
