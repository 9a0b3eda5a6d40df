"""`sample.py --interactive`: turns, settings, undo, retry, colours."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from minilm import sample_cli
from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.decoding.engine import generate
from minilm.errors import UsageError
from minilm.model.gpt import GPT
from minilm.sample_interactive import Session, shaded
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
KINDS: dict[str, Any] = {"top_k": int, "top_p": float, "n_beams": int}


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=257, init_std=0.3)).eval()


@pytest.fixture
def session(model: GPT) -> Session:
    return Session(model, BYTES, {"max_new_tokens": 6}, KINDS, 5, io.StringIO())


def expected(model: GPT, text: str, seed: int, **options: Any) -> str:
    found: str = generate(model, BYTES, text, **{"max_new_tokens": 6, "seed": seed, **options})
    return found


def test_turns_undo_and_retry(model: GPT, session: Session) -> None:
    session.take("ab")
    first = "ab" + expected(model, "ab", 5)
    assert session.text == first
    session.take("")
    second = first + expected(model, first, 6)
    assert session.text == second
    session.take("/retry")
    assert session.text == first + expected(model, first, 7)
    session.take("/undo")
    assert session.text == first
    session.take("/undo")
    assert session.text == ""
    with pytest.raises(UsageError, match="nothing to undo"):
        session.take("/undo")
    session.take("/seed 5")
    session.take("ab")
    assert session.text == first
    session.take("/new")
    assert (session.text, session.turns) == ("", [])


def test_bytes_that_are_no_text_end_nothing(session: Session) -> None:
    session.run(io.TextIOWrapper(io.BytesIO(b"caf\xe9\n\n/quit\n"), encoding="utf-8"), asking=False)
    assert session.text.startswith("caf\ufffd")
    assert len(session.turns) == 2


def test_settings(model: GPT, session: Session) -> None:
    session.take("/top-k 3")
    session.take("/max_new_tokens 9")
    session.take("ab")
    assert session.text == "ab" + expected(model, "ab", 5, top_k=3, max_new_tokens=9)
    session.take("/top_k")
    session.take("/strategy greedy")
    session.take("/new")
    session.take("ab")
    assert session.text == "ab" + expected(model, "ab", 0, strategy="greedy", max_new_tokens=9)
    for line, said in (("/top_p 7", "top_p must lie"), ("/top_p much", "not a number"), ("/topp 1", "mean top_p"),
                       ("/strategy gready", "mean greedy"), ("/seed -1", "seed must be 0")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            session.take(line)
    assert session.options == {"max_new_tokens": 9, "strategy": "greedy"}


def test_colours_are_probabilities(session: Session) -> None:
    session.take("/colors")
    session.take("ab")
    assert isinstance(session.out, io.StringIO)
    shown = session.out.getvalue()
    assert "\x1b[3" in shown
    assert "\x1b" not in session.text
    assert [shaded("x", p)[2:4] for p in (-0.1, -1.0, -3.0, -9.0)] == ["32", "36", "33", "31"]
    assert shaded("", -1.0) == ""
    session.take("/n_beams 2")
    session.take("")  # a search has no probabilities of single tokens


def test_the_door(model: GPT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sample_cli, "load", lambda options: (model, BYTES, "a model"))
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n/tpo_p 1\n/show\n/help\n/quit\nnever\n"))
    assert run_door("sample", ["--interactive", "--seed", "5", "--max_new_tokens", "6"]) == 0
    out = capsys.readouterr().out
    text = expected(model, "ab", 5)
    assert f"{text}\nerror: there is no command /tpo_p (did you mean top_p?)" in out
    assert f"ab{text}\nmax_new_tokens 6, seed 6\n" in out
    assert run_door("sample", ["--interactive", "--prompts", "f"]) == 2
