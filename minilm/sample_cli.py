"""`python sample.py`: writes text with a trained model, as it comes.

Text goes to stdout, and nothing else does; what is said about it goes to stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import secrets
import select
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.command_line import Parser
from minilm.decoding.presets import PRESETS, ROLLING
from minilm.errors import UsageError
from minilm.log import say

if TYPE_CHECKING:
    import torch

    from minilm.decoding.attributes import Steering
    from minilm.decoding.loop import Piece
    from minilm.model.gpt import GPT
    from minilm.text.tokenizer import Tokenizer

# name, type, metavar, help: fields of `Strategy`. Those that are not given keep the preset's value, or the neutral one.
FILTERS = [
    ("temperature", float, "T", "logits divided by T; 0: the likeliest token, always (1)"),
    ("top_k", int, "K", "only the K likeliest tokens; 0: all (0)"),
    ("top_p", float, "P", "only the likeliest with mass P; 1: all (1)"),
    ("min_p", float, "P", "only tokens with P times the likeliest's probability; 0: all (0)"),
    ("typical_p", float, "P", "only those nearest to the expected surprise, with mass P; 1: all (1)"),
    ("epsilon", float, "E", "only tokens of probability E or more; 0: all (0)"),
    ("eta", float, "E", "the same with a bound that falls with the entropy; 0: all (0)"),
    ("mirostat", float, "BITS", "a cut that keeps the surprise of a token at BITS; 0: off (0)"),
    ("mirostat_rate", float, "R", "how fast that cut moves (0.1)"),
    ("repetition_penalty", float, "X", "logits of tokens so far divided by X, negative ones multiplied; 1: off (1)"),
    ("presence_penalty", float, "X", "X less for a token that the new text holds; 0: off (0)"),
    ("frequency_penalty", float, "X", "X less for each time that the new text holds it; 0: off (0)"),
    ("no_repeat_ngram", int, "N", "no N tokens in a row twice; 0: off (0)"),
    ("min_new_tokens", int, "N", "no end before N new tokens (0)"),
]
# Fields of `Method` that are not models.
METHODS = [
    ("n_beams", int, "N", "beam search with N beams; 1: off (1)"),
    ("length_penalty", float, "X", "beams are ranked by log-probability / tokens^X (1)"),
    ("early_stopping", None, "", "a search ends as soon as N texts have ended"),
    ("n_beam_groups", int, "N", "diverse beam search: the beams in N groups (1)"),
    ("diversity", float, "X", "what a token costs for each beam of earlier groups that took it (0.5)"),
    ("penalty_alpha", float, "A", "contrastive search: weight of the likeness to what is there; 0: off (0)"),
    ("guidance", float, "X", "classifier-free guidance, away from the negative prompt; 1: off (1)"),
    ("negative_prompt", str, "TEXT", "what to move away from (a new document)"),
    ("contrast_alpha", float, "A", "--amateur: only tokens with A times the likeliest's probability (0.1)"),
    ("amateur_temperature", float, "T", "--amateur: its logits divided by T (1)"),
    ("lookup", int, "N", "guess what followed the last N tokens before; 0: off (0)"),
    ("n_ahead", int, "N", "--draft, --lookup: guesses that are checked at once (5)"),
]
LISTS = [
    ("stop", "TEXT", r"end before this text; \n is a line end; may be repeated"),
    ("stop_token", "ID", "end before this token; may be repeated"),
    ("choice", "TEXT", "the text becomes one of the choices; given once for each"),
    ("logit_bias", "TEXT=X", "X added to the logit of the token TEXT, or #ID; -inf forbids it; may be repeated"),
]
COMPARED = 8  # texts a strategy that draws writes for --compare
SMALL = 4_000_000  # parameters that fit a processor's cache in fp32: narrower weights and rows.cpp gain nothing there
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "encoder.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Samples as the command line says; returns the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    prompt = "" if options.prompts or options.interactive else read_prompt(options)
    from minilm.decoding.engine import settings, stream_batch

    decoding = decoding_options(options)
    settings({**decoding, "logit_bias": {}})  # before the model is loaded; the bias needs its tokenizer
    kinds = {name: kind for name, kind, *_ in FILTERS + METHODS if kind is not None}
    compared: list[tuple[str, dict[str, Any]]] = []
    if options.compare is not None:
        from minilm.sample_compare import parse_strategies

        compared = parse_strategies(options.compare, kinds)
        for _, own in compared:
            settings({**decoding, **own, "logit_bias": {}})
    for name, least in (("num_samples", 1), ("max_new_tokens", 1), ("seed", 0)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            raise UsageError(f"--{name} must be {least} or more, not {getattr(options, name)}")
    model, tokenizer, what = load(options)
    how = _accelerated(options, model, options.weights)
    for role in ("amateur", "draft"):
        if getattr(options, role):
            decoding[role] = load_beside(getattr(options, role), model, role)
            _accelerated(options, decoding[role], "")
    if options.bag or options.attribute:
        decoding["steering"] = steering_of(options, model, tokenizer)
    if options.prompts:
        from minilm.sample_prompts import sample_prompts

        path = Path(options.prompts).expanduser()
        out = Path(options.out).expanduser() if options.out else path.with_suffix(".results.jsonl")
        seed = options.seed or 0  # a fresh one could not be gone on with
        say(f"{what}, {how}, seed {seed}, results in {out}")
        name = f"{what} {options.amateur} {options.draft}"
        return min(1, sample_prompts(model, tokenizer, path, out, decoding, seed, name))
    seed = secrets.randbits(31) if options.seed is None else options.seed
    if options.interactive:
        from minilm.sample_interactive import interact

        say(f"{what}, {how}, seed {seed}")
        interact(model, tokenizer, decoding, kinds, seed)
        return 0
    if options.compare is not None:
        from minilm.sample_compare import measure, table

        n = options.num_samples or COMPARED
        say(f"{what}, {how}, seed {seed}")
        each = ((name, {**decoding, **own, "seed": seed}) for name, own in compared)
        print(table([measure(model, tokenizer, name, prompt, n, own) for name, own in each]))
        return 0
    n_samples = options.num_samples or 1
    pieces = stream_batch(model, tokenizer, [prompt] * n_samples, **decoding, seed=seed)
    say(f"{what}, {how}, seed {seed}")
    show(pieces, n_samples, prompt if options.echo_prompt else "")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; hyphens and underscores in names are the same. Raises UsageError, naming the nearest option."""
    parser = Parser(prog="sample.py", description="Writes text with a trained model. The prompt may also be piped in.")
    add = parser.add_argument
    add("--checkpoint", metavar="X", help="run, step folder, Hugging Face folder, file or Hub name (the newest run)")
    add("--prompt", metavar="TEXT", help="text to continue; empty starts a new document")
    add("--prompt_file", metavar="FILE", help="file that holds the prompt, UTF-8; its last line end is left out")
    add(
        "--prompts", metavar="FILE", help='JSON lines: text or {"prompt": .., "id": .., "seed": ..}; resumed if cut off'
    )
    add("--out", metavar="FILE", help="where --prompts puts its results (FILE.results.jsonl)")
    add("--alternatives", type=int, metavar="N", help="--prompts: log-probability of each token and of the N likeliest")
    add("--echo_prompt", action="store_true", help="write the prompt before each continuation")
    add("--max_new_tokens", type=int, default=256, metavar="N", help="longest continuation (%(default)s)")
    add("--num_samples", type=int, metavar="N", help=f"texts, decoded side by side (1; --compare: {COMPARED})")
    add("--compare", metavar="A,B,..", help="a table of strategies: presets, or options like top_p:0.9+top_k:9")
    add("--interactive", action="store_true", help="write by turns with the model; /help lists what can be changed")
    add("--rolling", choices=ROLLING, default=ROLLING[0], help="past the context: its last half read again, or kept")
    add("--begin_document", action="store_true", help="end-of-text before the prompt: for a title or a control code")
    add("--strategy", choices=PRESETS, help="a preset with its published settings; options beside it win")
    for name, kind, metavar, text in FILTERS:
        add(f"--{name}", type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)
    add("--amateur", metavar="X", help="contrastive decoding: a weaker model, whose log-probabilities are subtracted")
    add("--draft", metavar="X", help="speculative decoding: a smaller model with the same tokenizer that guesses ahead")
    bag = "PPLM towards a bag of words: a file with a word a line, or words with commas; may be repeated"
    add("--bag", action="append", default=[], metavar="X", help=bag)
    add("--attribute", metavar="LABEL", help="PPLM towards a discriminator's class (train.py --discriminator DATASET)")
    add("--steer", default="", metavar="NAME=X,..", help="for PPLM: step_size, n_iterations, window, kl_scale, ..")
    for name, value, metavar, text in METHODS:
        if value is None:
            add(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            add(f"--{name}", type=value, metavar=metavar, default=argparse.SUPPRESS, help=text)
    for name, metavar, text in LISTS:
        add(f"--{name}", action="append", default=[], metavar=metavar, help=text)
    add("--seed", type=int, metavar="N", help="the same seed gives the same text (a new one each time)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (the fastest there is)")
    add("--precision", choices=("auto", "fp32", "bf16", "int8"), default="auto", help="auto: bf16 where that is faster")
    parser.set_defaults(weights="")  # what `load` rounds them to
    add("--compile", choices=("auto", "on", "off"), default="auto", help="auto: rows.cpp, built beside the first text")
    add("--tokenizer", metavar="X", help="gpt2, bytes or a folder (the one beside the weights)")
    options = parser.parse_words(argv)
    if options.prompt is not None and options.prompt_file is not None:
        raise UsageError("--prompt and --prompt_file exclude each other: choose one")
    asking = ("prompt", "prompt_file", "num_samples", "interactive", "compare")
    given = [f"--{n}" for n in asking if getattr(options, n) is not None and getattr(options, n) is not False]
    if options.interactive and (len(given) > 1 or options.echo_prompt):
        raise UsageError("--interactive asks for its prompts: leave out the other options on prompts and samples")
    if options.prompts is not None and (given or options.echo_prompt):
        raise UsageError(f"--prompts and {', '.join(given) or '--echo_prompt'} exclude each other")
    if options.steer and not (options.bag or options.attribute):
        raise UsageError("--steer goes with --bag or --attribute")
    if options.prompts is None and (options.out is not None or options.alternatives is not None):
        raise UsageError("--out and --alternatives go with --prompts FILE")
    return options


def decoding_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about decoding, as keywords of `stream_batch`; the seed is left out."""
    chosen = {name: getattr(options, name) for name, *_ in FILTERS + METHODS if hasattr(options, name)}
    chosen |= {"strategy": options.strategy or "", "max_new_tokens": options.max_new_tokens}
    chosen |= {"alternatives": options.alternatives, "begin_document": options.begin_document}
    chosen |= {"rolling": options.rolling} if options.rolling != ROLLING[0] else {}
    chosen |= {"stop": [_escaped(text) for text in options.stop], "choices": [_escaped(c) for c in options.choice]}
    return chosen | {"stop_tokens": [_id(word) for word in options.stop_token], "logit_bias": _bias(options.logit_bias)}


def _bias(words: list[str]) -> dict[int | str, float]:
    bias: dict[int | str, float] = {}
    for word in words:
        token, _, value = word.rpartition("=")
        try:
            bias[_id(token[1:]) if token[:1] == "#" and len(token) > 1 else _escaped(token)] = float(value)
        except ValueError:
            token = ""
        if not token:
            raise UsageError(
                f'--logit_bias takes TEXT=VALUE or #ID=VALUE, such as " dragon=2" or "#13=-inf", not {word!r}'
            )
    return bias


def _id(word: str) -> int:
    if not word.isdecimal():
        raise UsageError(f"{word!r} is no token id: a whole number, 0 or more")
    return int(word)


def _escaped(text: str) -> str:
    r"""\n and \t as the line end and the tab that a shell makes hard to write."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def read_prompt(options: argparse.Namespace) -> str:
    """The prompt from the option, its file or a pipe; "" where there is none. UsageError: an unreadable file."""
    if options.prompt is not None:
        return str(options.prompt)
    if options.prompt_file is None:
        return _decoded(sys.stdin.buffer.read(), "the standard input") if _is_piped() else ""
    try:
        return _decoded(Path(options.prompt_file).expanduser().read_bytes(), options.prompt_file)
    except OSError as error:
        raise UsageError(f"--prompt_file {options.prompt_file}: {error.strerror}") from None


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the prompt in {where} is not UTF-8 text (byte {error.start}): save it as UTF-8 and try again"
        ) from None


def _is_piped() -> bool:
    """Whether the standard input is a pipe or a file; says so where the pipe is silent, since reading it would wait."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or replaced by an object without a file
        return False
    if stat.S_ISFIFO(mode) and sys.platform != "win32" and not select.select([sys.stdin], [], [], 1.0)[0]:
        say("reading the prompt from the standard input (end it with Ctrl-D, or give --prompt)")
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def load(options: argparse.Namespace) -> tuple[GPT, Tokenizer, str]:
    """Model, tokenizer, and a line that says what they are."""
    from minilm import runtime
    from minilm.decoding.rows import round_weights
    from minilm.model.weights import find_checkpoint, load_pretrained

    device = runtime.pick_device(options.device)
    path = find_checkpoint(options.checkpoint)
    model = load_pretrained(path)[0].eval()
    tokenizer = tokenizer_of(options.tokenizer, path if path.is_dir() else path.parent, model)
    dtype, options.weights = _dtype(options, device, model)
    model.to(device, dtype)
    round_weights(model, options.weights)
    kind = f"{options.weights} weights" if options.weights else str(dtype).removeprefix("torch.")
    return model, tokenizer, f"{path}: {model.num_params():,} parameters, {device}, {kind}"


def steering_of(options: argparse.Namespace, model: GPT, tokenizer: Tokenizer) -> Steering:
    """What --bag, --attribute and --steer say. Raises UsageError where a bag or a discriminator cannot be used."""
    from minilm.decoding.attributes import bag_of_words, load_head, steering, words_of
    from minilm.model.weights import find_checkpoint

    bags = []
    for bag in options.bag:
        tokens, missing = bag_of_words(words_of(bag), tokenizer)
        bags.append(tokens)
        if missing:
            say(f"bag: {', '.join(missing)}: several tokens each, left out")
    name, _, label = (options.attribute or "").rpartition(":")
    head = load_head(find_checkpoint(options.checkpoint), name, model) if label else None
    return steering(bags, head, label, options.steer)


def load_beside(name: str, model: GPT, role: str) -> GPT:
    """A second model, on the first one's device and in its precision."""
    from minilm.model.weights import find_checkpoint, load_pretrained

    path = find_checkpoint(name)
    other = load_pretrained(path)[0].eval().to(model.device, model.wte.weight.dtype)
    say(f"{role}: {path}, {other.num_params():,} parameters")
    return other


def _accelerated(options: argparse.Namespace, model: GPT, weights: str) -> str:
    """Has few tokens read faster where --compile says so; "auto": rows.cpp, built beside a large model's first text."""
    from minilm.decoding.rows import accelerate

    if options.compile == "off":
        return "eager"
    auto = "background" if model.num_params() >= SMALL else "cached"
    return accelerate(model, weights, "now" if options.compile == "on" else auto)


def _dtype(options: argparse.Namespace, device: torch.device, model: GPT) -> tuple[torch.dtype, str]:
    """What the model computes in; what weights are rounded to beyond: bf16 halves what rows.cpp reads on a slow CPU.
    Doors without --compile do not decode by it."""
    import torch

    from minilm import runtime
    from minilm.decoding.rows import unsupported

    on_cpu, precision = device.type == "cpu", options.precision
    if precision in ("int8", "fp32") or (precision == "auto" and on_cpu and model.num_params() < SMALL):
        return torch.float32, precision.removeprefix("fp32").removeprefix("auto")
    fastest = runtime.pick_dtype("auto" if on_cpu else precision, device, model.config.n_embd)
    if on_cpu and fastest == torch.float32 and getattr(options, "compile", "off") != "off" and not unsupported():
        return fastest, "bf16"
    return runtime.pick_dtype(precision, device, model.config.n_embd), ""


def tokenizer_of(name: str | None, folder: Path, model: GPT) -> Tokenizer:
    """The one named, or the one beside the weights. Raises UsageError where there is none."""
    from minilm.text.tokenizer import get_tokenizer

    if name is not None:
        return get_tokenizer(name)
    if any((folder / file).is_file() for file in TOKENIZER_FILES):
        return get_tokenizer(folder)
    if model.config.vocab_size != 50257:
        raise UsageError(f"{folder} holds no tokenizer.json: name the model's tokenizer with --tokenizer")
    say(f"{folder} holds no tokenizer, and the model has GPT-2's 50,257 tokens: taking gpt2's")
    return get_tokenizer("gpt2")


def show(pieces: Iterable[Piece], n_samples: int, echo: str) -> None:
    """Writes the first sample as it grows, and each other one from where it stands when its turn comes."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")  # a console that lacks a character shows "?", not a traceback
    unsaid = [echo] * n_samples
    done = [False] * n_samples
    shown = 0

    def begin() -> None:
        if n_samples > 1 and shown < n_samples:
            out.write(f"--- sample {shown + 1} of {n_samples}\n")

    begin()
    for piece in pieces:
        unsaid[piece.row] += piece.text
        done[piece.row] = piece.last
        while shown < n_samples and (unsaid[shown] or done[shown]):
            out.write(unsaid[shown])
            unsaid[shown] = ""
            if not done[shown]:
                break
            out.write("\n")
            shown += 1
            begin()
        out.flush()
