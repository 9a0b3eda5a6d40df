"""`sample.py --prompts`: many prompts to JSON lines, resumed, wrong lines told by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minilm import sample_cli
from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.decoding.engine import generate, row_seeds
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "top_k": 20, "stop": ["e"]}
WORDS = ["--max_new_tokens", "9", "--top_k", "20", "--stop", "e"]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257, init_std=0.3)).eval()
    monkeypatch.setattr(sample_cli, "load", lambda options: (model, BYTES, "a model"))
    return model


def results(path: Path) -> list[dict[str, Any]]:
    return sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda r: int(r["line"]))


def test_every_line_is_the_text_of_its_prompt_and_seed(model: GPT, tmp_path: Path) -> None:
    prompts = ["Once", "", "é", "x" * 40]
    lines = [json.dumps("Once"), '{"prompt": "", "id": "b"}', "", '{"prompt": "é", "seed": 77}', json.dumps("x" * 40)]
    (tmp_path / "in.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    words = ["--prompts", str(tmp_path / "in.jsonl"), "--seed", "5", *WORDS, "--alternatives", "2"]
    assert run_door("sample", words) == 0
    found = results(tmp_path / "in.results.jsonl")
    assert [r["line"] for r in found] == [1, 2, 4, 5]
    assert [r["prompt"] for r in found] == prompts
    assert [r["id"] for r in found] == [None, "b", None, None]
    derived = row_seeds(5, 5)
    assert [r["seed"] for r in found] == [derived[0], derived[1], 77, derived[4]]
    for result in found:
        assert result["text"] == generate(model, BYTES, result["prompt"], seed=result["seed"], **OPTIONS)
        assert len(result["tokens"]) == result["n_tokens"]
        for token in result["tokens"]:
            assert token["logprob"] <= token["best"][0][1] <= 0
            assert len(token["best"]) == 2


def test_a_run_that_was_cut_off_goes_on(model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "deep" / "out.jsonl"
    path.write_text("\n".join(json.dumps(f"prompt {i}") for i in range(12)))
    words = ["--prompts", str(path), "--out", str(out), *WORDS]
    assert run_door("sample", words) == 0
    whole = results(out)
    kept = out.read_text().splitlines(keepends=True)[:5]
    out.write_text("".join(kept) + '{"line": 9, "prom')
    assert run_door("sample", words) == 0
    assert "5 results are there, 7 to go" in capsys.readouterr().err
    assert results(out) == whole
    assert out.read_text().startswith("".join(kept))
    assert run_door("sample", words) == 0
    assert results(out) == whole


def test_wrong_lines_are_told_by_number(model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [b'"fine"', b'{"prompt": 3}', b'{"prompt": "a"', b'"\xff"', b'{"prompt": "a", "sed": 1}', b"[1]"]
    lines += [b'{"prompt": "a", "seed": -1}', b'"also fine"', b"[" * 100_000, b"9" * 5_000, rb'"a\ud800b"']
    lines += [rb'{"prompt": "a", "id": "\udc00"}']
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    assert run_door("sample", ["--prompts", str(tmp_path / "in.jsonl"), *WORDS]) == 1
    err = capsys.readouterr().err
    for said in ("line 2: neither a string", "line 3: not JSON", "line 4: not UTF-8", "line 5: 'sed' is not known",
                 "line 6: neither", "line 7: seed must be", "line 9: not usable", "line 10: not usable",
                 "line 11: half of a surrogate pair", "line 12: half of"):  # fmt: skip
        assert said in err, said
    assert [r["line"] for r in results(tmp_path / "in.results.jsonl")] == [1, 8]


def test_results_of_something_else_are_not_mixed(
    model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('"a"\n')
    assert run_door("sample", ["--prompts", str(path), *WORDS]) == 0
    before = (tmp_path / "in.results.jsonl").read_text()
    assert run_door("sample", ["--prompts", str(path), *WORDS, "--seed", "1"]) == 2
    assert "give another --out" in capsys.readouterr().err
    path.write_text('"b"\n')
    assert run_door("sample", ["--prompts", str(path), *WORDS]) == 2
    assert run_door("sample", ["--prompts", str(path), "--out", str(path), *WORDS]) == 2
    assert "line 1 is no result of this command" in capsys.readouterr().err
    assert (tmp_path / "in.results.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "none.jsonl"], "No such file"),
        (["--prompts", "f", "--prompt", "a"], "--prompts and --prompt exclude each other"),
        (["--prompts", "f", "--num_samples", "2"], "--prompts and --num_samples exclude"),
        (["--out", "f"], "go with --prompts"),
        (["--prompts", __file__, "--out", "."], "is a folder: name a file for --out"),
    ],
)
def test_misuse(words: list[str], said: str, model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door("sample", words) == 2
    assert said in capsys.readouterr().err
