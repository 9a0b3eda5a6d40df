"""`sample.py --interactive`: write, let the model go on, change settings, take back, try again."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from minilm.config import nearest
from minilm.errors import UsageError

if TYPE_CHECKING:
    from minilm.model.gpt import GPT
    from minilm.text.tokenizer import Tokenizer

HELP = """\
What you write is put behind the text, and the model goes on; an empty line lets it go on at once.
  /NAME VALUE   sets an option (/top_p 0.9, /strategy nucleus, /max_new_tokens 40, /seed 3); /NAME alone takes it back
  /show         the text so far, and the options
  /undo         takes back the last turn, yours and the model's
  /retry        writes the model's last turn anew, with the next seed
  /colors       probabilities as colours, on or off: green above 1/2, then cyan 1/8, yellow 1/64, red
  /new          starts a new text
  /quit         ends, as Ctrl-D does"""
# ANSI colours by the least probability, of the model's own distribution.
SHADES = ((1 / 2, "32"), (1 / 8, "36"), (1 / 64, "33"), (0.0, "31"))
COMMANDS = ("help", "show", "undo", "retry", "colors", "new", "quit")


class Session:
    """One text in the making. kinds: option names and their types; out: where the model's words go."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        options: dict[str, Any],
        kinds: dict[str, Callable[[str], Any]],
        seed: int,
        out: TextIO,
    ) -> None:
        self.model, self.tokenizer, self.options, self.out = model, tokenizer, dict(options), out
        self.kinds: dict[str, Callable[[str], Any]] = {**kinds, "strategy": str, "seed": int, "max_new_tokens": int}
        self.seed = seed  # of the next turn; each takes one
        self.text = ""
        self.turns: list[tuple[str, str]] = []  # the text before a turn, and what was written to begin it
        self.colored = False

    def run(self, lines: TextIO, asking: bool) -> None:
        """Until /quit or the end of `lines`. asking: a mark is shown where a line is awaited."""
        if isinstance(lines, io.TextIOWrapper):
            lines.reconfigure(errors="replace")  # a byte that is no UTF-8 shows as U+FFFD and ends nothing
        while True:
            if asking:
                self.say("> ", end="")
            line = lines.readline()
            if not line or line.strip() == "/quit":
                return
            try:
                self.take(line.rstrip("\n"))
            except UsageError as error:
                self.say(f"error: {error}")
            except KeyboardInterrupt:
                self.say("\n(broken off)")

    def take(self, line: str) -> None:
        """A line of input: a command or a text. Raises UsageError where it cannot be followed."""
        if not line.startswith("/"):
            self.go_on(line)
            return
        name, _, value = line[1:].partition(" ")
        name = name.replace("-", "_")
        if name in self.kinds:
            self.set(name, value.strip())
        elif name == "help":
            self.say(HELP)
        elif name == "show":
            self.say(self.text)
            chosen = {**self.options, "seed": self.seed}
            self.say(", ".join(f"{k} {v}" for k, v in chosen.items() if v is not False and v not in ("", None, [], {})))
        elif name in ("undo", "retry"):
            if not self.turns:
                raise UsageError(f"there is nothing to {name}")
            self.text, begun = self.turns.pop()
            if name == "retry":
                self.go_on(begun)
        elif name == "colors":
            self.colored = not self.colored
        elif name == "new":
            self.text, self.turns = "", []
        else:
            known = [*COMMANDS, *self.kinds]
            raise UsageError(f"there is no command /{name}{nearest(name, known)}; /help lists them")

    def set(self, name: str, value: str) -> None:
        """Changes one option, or takes it back where no value is given."""
        from minilm.decoding.engine import settings

        options = {k: v for k, v in self.options.items() if k != name}
        if value:
            try:
                options[name] = self.kinds[name](value)
            except ValueError:
                raise UsageError(f"/{name} {value}: not a number") from None
        if name == "seed":
            seed = options.pop("seed", 0)
            if seed < 0:
                raise UsageError(f"seed must be 0 or more, not {seed}")
            self.seed = seed
            return
        settings({**options, "logit_bias": {}})
        self.options = options

    def go_on(self, begun: str) -> None:
        """The model's turn behind the text and `begun`."""
        from minilm.decoding.engine import settings, stream_batch
        from minilm.decoding.methods import UNSCORED

        self.turns.append((self.text, begun))
        self.text += begun
        _, _, method = settings({**self.options, "logit_bias": {}})
        scored = self.colored and not set(UNSCORED) & set(method.chosen)
        options = {**self.options, "seed": self.seed, "alternatives": 0 if scored else None}
        self.seed += 1
        try:
            for piece in stream_batch(self.model, self.tokenizer, [self.text], **options):
                self.text += piece.text
                self.out.write(shaded(piece.text, piece.logprob) if scored else piece.text)
                self.out.flush()
        finally:
            self.say("")

    def say(self, text: str, end: str = "\n") -> None:
        self.out.write(text + end)
        self.out.flush()


def shaded(text: str, logprob: float | None) -> str:
    """The text in the colour of its last token's probability."""
    if not text or logprob is None:
        return text
    code = next(code for least, code in SHADES if math.exp(logprob) >= least)
    return f"\x1b[{code}m{text}\x1b[0m"


def interact(model: GPT, tokenizer: Tokenizer, options: dict[str, Any], kinds: dict[str, Any], seed: int) -> None:
    """A session on the console."""
    session = Session(model, tokenizer, options, kinds, seed, sys.stdout)
    session.say("/help lists the commands")
    session.run(sys.stdin, asking=sys.stdin.isatty())
