"""`python train.py`: reads the command line, prepares the data, trains, shows what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from minilm.config import TrainConfig
from minilm.errors import UsageError
from minilm.log import duration, quoted, say
from minilm.options import CommandLine, expand, init_of, parse, run_config, take

if TYPE_CHECKING:
    from minilm.training.loop import Result

SAMPLES = 3
SAMPLE_TOKENS = 120
# What a resumed run cannot change: kernels that were chosen, state that the checkpoint holds, tokens that were counted.
SETTLED = (
    *("init", "optimizer", "precision", "compile", "micro_batch_size", "recompute", "batch_size"),
    *("freeze", "train_only", "lora_rank", "lora_targets", "tokenizer", "source", "control_codes"),
)
WARN_FROM_STEPS = 100  # the planner times a step or two first: nothing for a shorter run


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if any(word.partition("=")[0] == "--discriminator" for word in argv):
        from minilm.discriminator_cli import main as train_head

        return train_head(argv)
    if {"-h", "--help"} & set(argv):
        parse(argv)  # prints the options and exits
    from minilm import runtime

    runtime.begin_tuned()
    command = _command(argv)
    from minilm.training.distributed import joined
    from minilm.training.loop import train

    with joined(runtime.pick_device(command.config.device).type) as ranks:
        if not ranks.first:
            ranks.wait()  # rank 0 prepares, the others find it prepared
        config = _prepared(command)
        if ranks.first:
            ranks.wait()
            if told := warn_of(config):
                say(f"warning: {told}")
        result = train(config)
        if result.interrupted:
            say(f"stopped after step {result.step}; continue with: python train.py --resume {quoted(result.run)}")
            return 130
        if ranks.first:
            _show(result, config.data)
        ranks.wait()
    return 0


def _command(argv: Sequence[str]) -> CommandLine:
    """The parsed command line: a resumed run's own config, or a preset on top of `--init`'s model."""
    from minilm import runtime
    from minilm.model.hub import newest_run

    device_words = [w for a, w in pairwise(argv) if a == "--device"]
    kind = runtime.pick_device(device_words[-1] if device_words else "auto").type
    base = None
    if init := init_of(argv):
        from minilm.model.weights import read_config

        base = read_config(init)
    command = parse(argv, kind, base=base)
    if command.resume_from is None:
        return command
    run = Path(command.resume_from or command.config.out_dir or newest_run())
    if not (run / "config.toml").is_file():
        raise UsageError(f"{run} holds no run to resume: start it without --resume")
    words = expand(argv)
    take(words, "config")
    again = parse([*words, "--config", str(run / "config.toml")], kind)
    was = run_config(run)
    for name in SETTLED:
        if getattr(again.config, name) != getattr(was, name):
            raise UsageError(
                f"--{name} is settled where a run begins, and {run} goes on as it began: leave it out, or start anew "
                f"with --init {run}"
            )
    data = _began_with(again.config.data, was.data, run)
    return replace(again, config=replace(again.config, data=data, out_dir=str(run), existing="resume"))


def _began_with(data: str, was: str, run: Path) -> str:
    """What a resumed run reads: the folders that it began with, which `--data` may name by what they were made of; or
    those that it names, where the first are gone. Raises UsageError where `--data` names other data."""
    from minilm.text.folders import is_prepared, made_of, read_recipe, still_holds
    from minilm.text.mixture import open_data, parse_mixture
    from minilm.text.scripts import Files, known_datasets, load_dataset, split_name

    def is_same(named: str, folder: str) -> bool:
        (name, options), path, there = split_name(named), Path(named).expanduser(), Path(folder)
        if is_prepared(named):
            return open_data(str(path)).meta.splits == open_data(folder).meta.splits
        if name in known_datasets():
            return made_of(there) == (name, load_dataset(name).check_options(options))
        return path.exists() and still_holds(there, read_recipe(there).get("recipe", {}), Files.at(path))

    given, began = parse_mixture(data), parse_mixture(was)
    if not all(is_prepared(part.name) for part in began):
        return data if all(is_prepared(part.name) for part in given) else was
    alike = [part.weight for part in given] == [part.weight for part in began]
    if not alike or not all(is_same(a.name, b.name) for a, b in zip(given, began, strict=True)):
        raise UsageError(
            f"{run} trains on {was}, not on {data}: leave out --data, or start anew with --init {quoted(run)}"
        )
    return was


def _prepared(command: CommandLine) -> TrainConfig:
    """The config with a prepared data folder and a run folder."""
    from minilm.evaluation.benchmark_files import ORIGINS, benchmark_file
    from minilm.text.folders import is_prepared
    from minilm.text.mixture import parse_mixture, prepare_mixture

    config = command.config
    if config.existing == "resume":
        return config
    # Of a prepared folder train() compares the tokenizer with init's.
    tokenizer = config.tokenizer or ("" if is_prepared(config.data) else _tokenizer_of(config.init))
    source = Path(config.source) if config.source else None
    codes = {"control_codes": config.control_codes} if config.control_codes != "off" else {}
    data = prepare_mixture(config.data, tokenizer=tokenizer or None, source=source, **codes)
    name = "+".join(_name_of(part.name) for part in parse_mixture(config.data))
    # hellaswag as hellaswag@FILE, which is downloaded where it is not there
    measures = tuple(f"{m}@{benchmark_file(m)}" if m in ORIGINS else m for m in config.eval_metrics)
    out_dir = config.out_dir or f"runs/{Path(command.preset).stem}-{name}"
    return replace(config, data=data, eval_metrics=measures, out_dir=out_dir)


def warn_of(config: TrainConfig) -> str:
    """What the planner says against the run, where it would not fit or take days; silent on a run that goes on."""
    from minilm.lab.plan import warning, with_length
    from minilm.text.mixture import open_data

    if config.max_tokens or config.max_epochs:
        config = with_length(config, open_data(config.data, config.mix_temperature).splits["train"].n_tokens)
    if config.existing == "resume" or config.max_steps < WARN_FROM_STEPS:
        return ""
    return warning(config, config.device)


def _name_of(data: str) -> str:
    """What a run on this data is called: tales-level2-stylefable for `tales:level=2,style=fable`."""
    from minilm.text.scripts import load_dataset, split_name

    name, options = split_name(data)
    return "-".join([name, *load_dataset(name).unlike_defaults(options)]) if options else Path(name).stem or "data"


def _tokenizer_of(init: str) -> str:
    """The folder of init's tokenizer, if it carries one."""
    if not init:
        return ""
    from minilm.model.hub import find_checkpoint

    folder = find_checkpoint(init)
    return str(folder) if (folder / "tokenizer.json").is_file() else ""


def _show(result: Result, data: str) -> None:
    """Three samples (for tales: coherence, in each style of the data), where it all is, and what to try next."""
    from minilm.decoding.engine import generate
    from minilm.evaluation.text_metrics import coherence, copy_check
    from minilm.text.folders import tales_of
    from minilm.text.mixture import open_data

    shards = open_data(data)
    print()
    if shards.meta.name == "tales":
        level, styles = tales_of(shards.folder)
        copies = copy_check(shards.splits["train"], result.tokenizer)
        for style in styles:
            print(coherence(result.model, result.tokenizer, train=copies, level=level, style=style))
    else:
        texts = generate(result.model, result.tokenizer, [""] * SAMPLES, max_new_tokens=SAMPLE_TOKENS, seed=result.step)
        for i, text in enumerate(texts, 1):
            print(f"--- sample {i}\n{text.strip()}\n")
    print(
        f"trained {result.step:,} steps, {result.tokens:,} tokens in {duration(result.seconds)}; "
        f"validation loss {result.val_loss:.4f}"
    )
    checkpoint = best_of(result)
    if checkpoint != result.run and result.best:
        print(f"the best was {result.best[0]:.4f} after step {result.best[1]}: the next command takes that checkpoint")
    print(f"run folder: {result.run}\nnext: python sample.py --checkpoint {quoted(checkpoint)} --top_p 0.9")


def best_of(result: Result) -> Path:
    """The run, whose newest checkpoint is meant; or the checkpoint with the best validation loss, if that is older."""
    if result.best is None or result.best[1] == result.step:
        return result.run
    best = result.run / f"step_{result.best[1]:06d}"
    return best if (best / "state.json").is_file() else result.run
