"""The door `sample.py`: its options, prompts, streaming, and how it ends."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from minilm import sample_cli
from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.decoding.engine import generate
from minilm.decoding.loop import Piece
from minilm.decoding.methods import Method
from minilm.decoding.strategies import Strategy
from minilm.errors import UsageError
from minilm.model.gpt import GPT
from minilm.text.tokenizer import Tokenizer, get_tokenizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257, init_std=0.3)).eval()


@pytest.fixture
def loaded(model: GPT, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """A door that needs no run folder."""
    tokenizer = get_tokenizer("bytes")
    monkeypatch.setattr(sample_cli, "load", lambda options: (model, tokenizer, "a model"))
    monkeypatch.setattr(sample_cli, "_is_piped", lambda: False)
    return tokenizer


def expected(model: GPT, tokenizer: Tokenizer, prompts: list[str], **options: Any) -> list[str]:
    return generate(model, tokenizer, prompts, **options)


# --- text


def test_one_text_and_nothing_else_on_stdout(model: GPT, loaded: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_door("sample", ["--prompt", "Once", "--max_new_tokens", "20", "--seed", "3", "--temperature", "0.8"]) == 0
    )
    out, err = capsys.readouterr()
    [text] = expected(model, loaded, ["Once"], max_new_tokens=20, seed=3, temperature=0.8)
    assert out == text + "\n"
    assert "a model, eager, seed 3" in err


def test_spellings_of_an_option_are_the_same(loaded: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    outs = []
    for words in (
        ["--top_k", "5", "--max_new_tokens", "9"],
        ["--top-k=5", "--max-new-tokens=9"],
        ["--top_k=5", "--max-new_tokens", "9"],
    ):
        assert run_door("sample", [*words, "--seed", "1"]) == 0
        outs.append(capsys.readouterr().out)
    assert len(set(outs)) == 1


def test_several_samples(model: GPT, loaded: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "ab", "--num_samples", "3", "--max_new_tokens", "30", "--seed", "8", "--echo_prompt"]
    assert run_door("sample", words) == 0
    texts = expected(model, loaded, ["ab"] * 3, max_new_tokens=30, seed=8)
    out = capsys.readouterr().out
    assert out == "".join(f"--- sample {i} of 3\nab{text}\n" for i, text in enumerate(texts, 1))


def test_every_option_reaches_the_engine(model: GPT, loaded: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95}
    values |= {"epsilon": 1e-4, "eta": 1e-3, "repetition_penalty": 1.1, "presence_penalty": 0.1}
    values |= {"frequency_penalty": 0.2, "no_repeat_ngram": 3, "min_new_tokens": 4, "max_new_tokens": 30, "seed": 3}
    named = {name for name, *_ in sample_cli.FILTERS}
    assert named == {f.name for f in fields(Strategy)} - {"logit_bias"}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    words += ["--stop", r"\n", "--stop", "zz", "--stop_token", "33", "--logit_bias", "e=2", "--logit_bias", "#120=-inf"]
    assert run_door("sample", ["--prompt", "Once", *words]) == 0
    [text] = expected(
        model, loaded, ["Once"], **values, stop=["\n", "zz"], stop_tokens=[33], logit_bias={"e": 2.0, 120: -math.inf}
    )
    assert capsys.readouterr().out == text + "\n"
    assert (
        run_door("sample", ["--prompt", "Is it?", "--choice", "yes", "--choice", "no", "--strategy", "mirostat"]) == 0
    )
    assert capsys.readouterr().out in ("yes\n", "no\n")


def test_methods_reach_the_engine(
    model: GPT, loaded: Tokenizer, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {name for name, *_ in sample_cli.METHODS}
    assert named == {f.name for f in fields(Method)} - {"amateur", "draft", "steering"}
    for options in ({"n_beams": 4, "n_beam_groups": 2, "diversity": 1.0, "length_penalty": 0.5},
                    {"penalty_alpha": 0.6, "top_k": 5}, {"guidance": 2.0, "negative_prompt": "x", "top_p": 0.9},
                    {"lookup": 3, "n_ahead": 2}):  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        assert run_door("sample", ["--prompt", "ab", "--seed", "3", "--max_new_tokens", "12", *words]) == 0
        assert (
            capsys.readouterr().out == expected(model, loaded, ["ab"], seed=3, max_new_tokens=12, **options)[0] + "\n"
        )
    for role in ("draft", "amateur"):
        words = ["--prompt", "ab", "--seed", "3", "--max_new_tokens", "12", f"--{role}", str(saved)]
        assert run_door("sample", words) == 0
        done = capsys.readouterr()
        assert f"{role}: {saved}" in done.err
        assert done.out == expected(model, loaded, ["ab"], seed=3, max_new_tokens=12, **{role: model})[0] + "\n"
    assert run_door("sample", ["--prompt", "ab", "--n_beams", "2", "--early_stopping", "--max_new_tokens", "3"]) == 0


def test_seed_is_said_and_repeats(loaded: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door("sample", ["--max_new_tokens", "12"]) == 0
    first = capsys.readouterr()
    seed = first.err.strip().rpartition("seed ")[2]
    assert run_door("sample", ["--max_new_tokens", "12", "--seed", seed]) == 0
    assert capsys.readouterr().out == first.out


def test_pieces_are_shown_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    """The first unfinished sample is on screen up to its last piece; later ones wait for their turn."""

    def pieces() -> Iterator[Piece]:
        for piece, shown in (
            (Piece(0, "a", False), "--- sample 1 of 2\na"),
            (Piece(1, "x", False), ""),
            (Piece(0, "b", False), "b"),
            (Piece(1, "y", True), ""),
            (Piece(0, "c", True), "c\n--- sample 2 of 2\nxy\n"),
        ):
            yield piece
            assert capsys.readouterr().out == shown

    sample_cli.show(pieces(), 2, "")


def test_console_without_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    sample_cli.show([Piece(0, "é!", True)], 1, "")
    assert console.buffer.getvalue() == b"?!\n"


# --- prompts


def test_prompt_file(loaded: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeffÜber\r\nall\n".encode())
    assert run_door("sample", ["--prompt_file", str(path), "--max_new_tokens", "1", "--echo_prompt"]) == 0
    assert capsys.readouterr().out.startswith("Über\nall")


@pytest.mark.parametrize(("content", "word"), [(b"caf\xe9", "UTF-8"), (None, "No such file")])
def test_bad_prompt_file(content: bytes | None, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    assert run_door("sample", ["--prompt_file", str(path)]) == 2
    err = capsys.readouterr().err
    assert word in err
    assert err.count("\n") == 1


def test_stdin_is_read_where_something_is_piped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = sample_cli.parse([])
    (tmp_path / "f").write_text("from a file\n")
    with (tmp_path / "f").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert sample_cli.read_prompt(options) == "from a file"
        assert sample_cli.read_prompt(sample_cli.parse(["--prompt", ""])) == ""
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert sample_cli.read_prompt(options) == ""
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    with os.fdopen(reader) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert sample_cli.read_prompt(options) == "from a pipe"


def test_long_prompt_is_said(loaded: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    assert run_door("sample", ["--prompt", "x" * 99, "--max_new_tokens", "2"]) == 0
    assert "the prompt has 99 tokens and the model's context 16" in caplog.text


# --- misuse and failure


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tok_p", "0.9"], "no option '--tok_p' (did you mean --top_p?)"),
        (["--tempratur=0.9"], "(did you mean --temperature?)"),
        (["Once"], "no option 'Once'"),
        (["--top_p", "much"], "--top_p: invalid float value: 'much'"),
        (["--top_p", "0"], "top_p must lie in (0, 1], not 0.0"),
        (["--top_k", "-1"], "top_k must be a whole number, 0 (off) or more, not -1"),
        (["--temperature", "-1"], "temperature must be 0 (greedy) or more"),
        (["--strategy", "nucleas"], "--strategy: invalid choice: 'nucleas'"),
        (["--mirostat", "3", "--top_p", "0.9"], "leave out top_p"),
        (["--logit_bias", "dragon"], "--logit_bias takes TEXT=VALUE or #ID=VALUE"),
        (["--logit_bias", "#x=1"], "not '#x=1'"),
        (["--logit_bias", "ab=1"], "'ab' is 2 tokens of this tokenizer"),
        (["--stop_token", "-1"], "'-1' is no token id"),
        (["--stop", ""], "stop must be a list of texts"),
        (["--max_new_tokens", "0"], "--max_new_tokens must be 1 or more"),
        (["--num_samples", "0"], "--num_samples must be 1 or more"),
        (["--seed", "-3"], "--seed must be 0 or more"),
        (["--precision", "fp64"], "choose from"),
        (["--prompt"], "--prompt: expected one argument"),
        (["--prompt", "a", "--prompt_file", "b"], "exclude each other"),
    ],
)
def test_misuse_is_one_sentence(
    words: list[str], said: str, loaded: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_door("sample", words) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


def test_damaged_model_is_a_failure(
    model: GPT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = GPT(model.config)
    torch.nn.init.constant_(broken.wte.weight, float("nan"))
    monkeypatch.setattr(sample_cli, "load", lambda options: (broken, get_tokenizer("bytes"), "a model"))
    assert run_door("sample", ["--prompt", "a"]) == 1
    assert "error: the model's logits are not numbers" in capsys.readouterr().err


def test_interrupt_is_quiet(
    loaded: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_cli, "show", interrupted)
    assert run_door("sample", ["--prompt", "a"]) == 130
    assert "Traceback" not in capsys.readouterr().err


# --- the whole program, on a saved model


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "sample.py"), *words]


@pytest.fixture(scope="module")
def saved(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder, tokenizer=get_tokenizer("bytes"))
    return folder


def test_from_a_folder(model: GPT, saved: Path) -> None:
    words = command("--checkpoint", str(saved), "--seed", "5", "--max-new-tokens=15")
    done = subprocess.run(words, input="piped\n", capture_output=True, text=True, cwd=saved, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert done.stdout == expected(model, get_tokenizer("bytes"), ["piped"], seed=5, max_new_tokens=15)[0] + "\n"
    assert "float32" in done.stderr


def test_reader_that_goes_away_ends_it_quietly(saved: Path) -> None:
    words = command("--checkpoint", str(saved), "--max_new_tokens", "200000", "--prompt", "a", "--num_samples", "4")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=saved) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)  # it streams: long before 200,000 tokens are there
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert b"Traceback" not in process.stderr.read()


def test_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_door("sample", ["--prompt", "a"]) == 2
    err = capsys.readouterr().err
    assert "train.py" in err
    assert err.count("\n") == 1


def test_tokenizer_that_is_missing(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((saved / name).read_bytes())
    assert run_door("sample", ["--checkpoint", str(bare), "--prompt", "a"]) == 2
    assert "--tokenizer" in capsys.readouterr().err
    words = ["--checkpoint", str(bare), "--prompt", "a", "--tokenizer", "bytes", "--max_new_tokens", "2"]
    assert run_door("sample", words) == 0


def test_parse_does_not_need_torch() -> None:
    code = "import sys; from minilm import sample_cli; sample_cli.parse([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_parser_never_exits_by_itself() -> None:
    with pytest.raises(UsageError):
        sample_cli.parse(["--top_k", "x"])
