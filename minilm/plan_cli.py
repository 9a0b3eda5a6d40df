"""`minilm plan`: this machine or that card, so much text, so many hours or dollars: what fits, and what it takes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minilm.command_line import Parser
from minilm.config import TrainConfig
from minilm.errors import UsageError
from minilm.log import duration
from minilm.options import build, read_preset

if TYPE_CHECKING:
    from minilm.lab.plan import Forecast, Machine

GPT2_ROWS, TALES_ROWS = 50_257, 700  # of a model whose data decides: GPT-2's tokenizer, or the words of tales
BYTES_PER_TOKEN = 4.3  # of English in GPT-2's tokens, roughly
SCRATCH = ("tiny", "small", "medium", "large", "xl")
METHODS = ("finetune", "lora", "biases", "norms")
PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MOST = 1e9  # of hours, megabytes, dollars: beyond, a number is a mistake
FEWEST_STEPS = 60  # of a finetune, however little text or time: as long as the lab's, on 20 kB and on 500 kB


@dataclass(frozen=True)
class Row:
    """One way to spend the budget."""

    command: str
    forecast: Forecast
    steps: str
    """Option that makes a run as long as forecast, where the preset's own length is another."""
    reason: str
    """Why not, where it cannot be done within the budget."""
    cut: bool = False
    """Whether it has fewer steps than the text is worth, so as to end within the budget."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="minilm plan", description=__doc__)
    parser.add_argument("--text", default="", help="your text, a file or folder")
    parser.add_argument("--megabytes", type=float, default=0.0, help="of text, where --text is not given (no limit)")
    parser.add_argument("--hours", type=float, help="at most (24, or what --dollars pay for)")
    parser.add_argument("--dollars", type=float, default=0.0, help="at most, with --dollars_per_hour; 0: no limit")
    parser.add_argument("--dollars_per_hour", type=float, default=0.0, help="of the machine")
    parser.add_argument("--card", default="", help="a card that is not here: H100, A100, 4090 ... (this machine)")
    parser.add_argument("--folder", default="lab", help="the lab's results, for expected losses (%(default)s)")
    options = parser.parse_words(sys.argv[2:] if argv is None else argv)
    for name, least in (("megabytes", 0.0), ("hours", 1e-3), ("dollars", 0.0), ("dollars_per_hour", 0.0)):
        if (given := getattr(options, name)) is not None and not least <= given <= MOST:
            raise UsageError(f"--{name} must be {least:g} to {MOST:g}, not {given:g}")
    if options.text and options.megabytes:
        raise UsageError("--text has its own size: leave out --megabytes")
    if options.dollars and not options.dollars_per_hour:
        raise UsageError("--dollars needs --dollars_per_hour: what the machine costs")
    from minilm.lab import plan
    from minilm.lab.places import Places

    machine = plan.card(options.card) if options.card else plan.this_machine()
    text = size_of(options.text) if options.text else 1e6 * options.megabytes
    paid = options.dollars / options.dollars_per_hour if options.dollars else None
    hours = min((limit for limit in (options.hours, paid) if limit is not None), default=24.0)
    told = f"{text / 1e6:,.3g} MB of text, some {text / BYTES_PER_TOKEN:,.0f} tokens" if text else "any text"
    print(f"{machine.name}, {machine.memory / 1e9:.1f} GB; {told}; at most {hours:.3g} h")
    places, rows = Places(options.folder), []
    amount, beside = plan.beside_everything(text, places) if text else ("", {})
    for row in ways(machine, text, hours):
        rows.append(row)
        f = row.forecast
        cost = f", ${options.dollars_per_hour * f.seconds / 3600:,.2f}" if options.dollars_per_hour else ""
        told = f"{f.bytes / 1e9:6.1f} GB{f.step_seconds:10.3g} s a step{f.config.max_steps:9,} steps"
        why = "; " + (row.reason or "fewer steps than the text is worth") if row.reason or row.cut else ""
        print(f"  {row.command:44}{told}, {duration(f.seconds)}{cost}{why}", flush=True)
    if beside:
        each = ", ".join(f"{name} {e.mean:+.2f} ({e.interval(2)})" for name, e in beside.items())
        print(f"loss beside `finetune`, nats per token, at the lab's size, on {amount} of its tales (95 %): {each}")
    if text:
        print(plan.expected(text, places))
    best = choose(rows, text)
    if best is None:
        print("nothing fits: give more --hours, or another --card")
        return 1
    data = shlex.quote(options.text) if options.text else "YOURS"
    yours = f" --data {data}" if options.text or best.forecast.config.init else ""
    print(f"take: python train.py {best.command}{yours}{best.steps}")
    return 0


def size_of(path: str) -> float:
    """Bytes of text in a file or folder, as far as `train.py` would read it."""
    from minilm.text.sources import Files
    from minilm.text.userfiles import text_of

    found = Path(path).expanduser()
    if not found.exists():
        raise UsageError(f"{path} does not exist: give --text a file or folder, or say --megabytes")
    n_bytes = text_of(Files.at(found)).text_bytes()
    if not n_bytes:
        raise UsageError(f"{path} is empty: give --text a file or folder with text, or say --megabytes")
    return float(n_bytes)


def ways(machine: Machine, text_bytes: float, hours: float) -> Iterator[Row]:
    """Every preset from scratch, every way to finetune every pretrained size."""
    from minilm.lab.plan import CARD_SHARE, TIMED_CONTEXT, forecast, gpt2, with_length

    kind = "cuda" if machine.peak_flops else machine.device_type
    found: list[tuple[str, TrainConfig, int]] = []  # the last: steps of the preset itself
    for name in SCRATCH:
        config = build(read_preset(name, kind))
        model = replace(config.model, vocab_size=config.model.vocab_size or (GPT2_ROWS if text_bytes else TALES_ROWS))
        found.append((f"--config {name}", replace(config, model=model), config.max_steps))
    for size in PRETRAINED:
        for method in METHODS:
            config = replace(build(read_preset(method, kind)), model=gpt2(size), init=size)
            name = f"--config {method}" + (f" --init {size}" if size != "gpt2" else "")
            long = with_length(config, text_bytes / BYTES_PER_TOKEN)
            least = min(config.max_steps, FEWEST_STEPS)
            long = long if long.max_steps >= least else replace(long, max_steps=least)
            found.append((name, long, config.max_steps))
    speeds: dict[str, float] = {}
    for command, config, own in found:
        # What is larger than GPT-2 small would take minutes to time: it is taken to be as fast, FLOP for FLOP.
        large = config.model.n_embd > 768
        way = command.split(" --init")[0] if "--init" in command or not large else "--config small"
        timed = replace(machine, peak_flops=machine.peak_flops or (large and speeds.get(way, 0.0)))
        told = forecast(config, timed, turns=1, context=TIMED_CONTEXT)
        speeds.setdefault(way, told.flops / told.step_seconds / CARD_SHARE)
        share = 3600 * hours / told.seconds
        reason = "does not fit" if told.bytes > machine.memory else "takes too long" if share < 1 else ""
        if reason == "takes too long" and config.init and 0.9 * share * config.max_steps >= FEWEST_STEPS:
            told = replace(told, config=replace(told.config, max_steps=int(0.9 * share * config.max_steps)))
            reason = "takes too long" if told.seconds > 3600 * hours else ""  # validations are not cut
        n = told.config.max_steps
        yield Row(command, told, f" --max_steps {n}" if n != own else "", reason, n < config.max_steps)


def choose(rows: list[Row], text_bytes: float) -> Row | None:
    """With text: the largest pretrained model that can be finetuned within the budget, or where every one must be cut
    short the smallest, which learns more for the same compute (`budget`): all of it, which no part and no adapter beat
    (`freeze`), else by an adapter, biases or norms. Without, or where none can be: the largest preset from scratch."""
    able = [row for row in rows if not row.reason]
    for method in METHODS if text_bytes else ():
        if mine := [row for row in able if row.command.startswith(f"--config {method}")]:
            whole = [row for row in mine if not row.cut]
            return whole[-1] if whole else mine[0]
    scratch = [row for row in able if not any(row.command.startswith(f"--config {method}") for method in METHODS)]
    return scratch[-1] if scratch else None
