"""`minilm eval` on tales: a file judged story by story, a model's own tales, and every mistake in one sentence."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from minilm import GPT, get_tokenizer
from minilm.cli import run_door
from minilm.eval_tales import grade_at, read_stories
from minilm.evaluation.intervals import wilson
from minilm.evaluation.text_metrics import coherence
from minilm.text.tales import grade, stories, story


@pytest.fixture
def told() -> list[str]:
    """Two whole stories, one whose ending is cut, one whose second sentence is none."""
    second = next(text for text in stories(n=99, level=2, style="fable") if not grade(text, 1).passed)
    a, b, c, d = story(1), second, story(3), story(4, 1, "news")
    cut = ". ".join(c.split(". ")[:-1]) + "."
    first, *rest = d.split(". ")
    return [a, b, cut, ". ".join([first, "The moon moon", *rest])]


def graded(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert run_door("eval", ["--grade", str(path), "--json", *words]) == 0
    found: dict = json.loads(capsys.readouterr().out)
    return found


def test_verdicts_and_their_sum(told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "told.txt"
    path.write_text("\n".join(told) + "\n", encoding="utf-8")
    found = graded(path, capsys)
    assert [(s["passed"], s["rule"], s["level"], s["style"]) for s in found["stories"]] == [
        (True, None, 1, "plain"),
        (True, None, 2, "fable"),
        (False, "ending", 1, "plain"),
        (False, "parse", 1, "news"),
    ]
    n_cut, n_spoilt = (len(told[i].split(". ")) for i in (2, 3))
    assert [(s["before"], s["sentences"]) for s in found["stories"][2:]] == [(n_cut, n_cut), (1, n_spoilt)]
    assert found["stories"][3]["broken"] == "The moon moon"
    low, high = wilson(2, 4)
    expected = {"stories": 4, "passed": 2, "share": 0.5, "low": low, "high": high, "rules": {"ending": 1, "parse": 1}}
    assert found["summary"] == expected | {"mean_before": pytest.approx((3 + 1 / n_spoilt) / 4)}
    assert run_door("eval", ["--grade", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1  pass, {len(told[0].split('. '))} sentences  (level 1, plain)"
    assert lines[3] == f"4  parse, after 1 of {n_spoilt} sentences: 'The moon moon'  (level 1, news)"
    assert lines[4].startswith("2 of 4 stories pass: 50.0 % (15.0 to 85.0 %, Wilson 95 %)")
    assert lines[5].startswith("first broken rule: ending 1, parse 1; ")


def test_ways_to_part_stories(told: list[str], tmp_path: Path) -> None:
    path = tmp_path / "told.txt"
    wrapped = [text.replace(". ", ".\n") for text in told]
    for text in (
        "\n".join(told),
        "\r\n".join([*told, "", ""]),
        "\n\n".join(wrapped),
        "\n \n\n".join(["", *wrapped]),
        "<|endoftext|>".join(["", *wrapped, "\n"]),
        "\ufeff" + "\n".join(told),
    ):
        path.write_bytes(text.encode())
        assert read_stories(str(path)) == told


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_level_is_found(level: int) -> None:
    """The lowest at which a story passes; where it passes nowhere, the one at which it gets furthest."""
    for text in stories(n=10, level=level, style="diary"):
        at, verdict = grade_at(text, None, None)
        assert verdict.passed
        assert at <= level
        assert not any(grade(text, lower).passed for lower in range(1, at))
        broken = text.removesuffix(".") + " and the moon."
        at, verdict = grade_at(broken, None, None)
        assert verdict.before == max(grade(broken, other).before for other in (1, 2, 3, 4))
        assert verdict == grade(broken, at)
        assert grade_at(text, 1, None) == (1, grade(text, 1))


def test_level_and_style_can_be_demanded(told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "told.txt"
    path.write_text("\n".join(told[:2]), encoding="utf-8")
    assert graded(path, capsys, "--style", "fable")["summary"]["rules"] == {"style": 1}
    assert [s["level"] for s in graded(path, capsys, "--level=2")["stories"]] == [2, 2]


def test_a_million_characters_without_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graded_before = tmp_path / "short.txt"
    graded_before.write_text("No story.", encoding="utf-8")
    graded(graded_before, capsys)  # compiles the grammars
    for text in ("a" * 10**6, "the " * 250_000, "\n \t" * 333_333 + "x", ". " * 500_000):
        path = tmp_path / "long.txt"
        path.write_text(text, encoding="utf-8")
        start = time.process_time()
        found = graded(path, capsys)
        assert found["summary"]["rules"] == {"parse": 1}
        assert len(json.dumps(found)) < 2000
        assert time.process_time() - start < 20  # a bound, not a speed: it takes a fraction of a second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--grade", "nowhere.txt"],
            "nowhere.txt cannot be read (No such file or directory): name a text file of tales",
        ),
        (["--grade", "EMPTY"], "holds no story: it needs one a line"),
        (["--grade", "MARKS"], "holds no story: it needs one a line"),
        (["--grade", "BINARY"], "is not UTF-8 text (byte 3): save it as UTF-8"),
        (["--grade", "TOLD", "--level=5"], "tales have the levels 1, 2, 3, 4, not 5"),
        (["--grade", "TOLD", "--level=0"], "tales have the levels 1, 2, 3, 4, not 0"),
        (["--grade", "TOLD", "--level=one"], "--level: invalid int value: 'one'"),
        (["--grade", "TOLD", "--style=haiku"], "tales have the styles plain, fable"),
        (["--grade", "TOLD", "runs/x"], "leave out the model, which --grade does not read"),
        (["--grade", "TOLD", "--text", "TOLD"], "leave out --text, which --grade does not read"),
        (["--grade"], "--grade: expected one argument"),
        (["--grad", "TOLD"], "no option '--grad' (did you mean --grade?)"),
        ([], "name the model to measure"),
        (["runs/x"], "there is no runs/x"),
        (["runs/x", "--coherence"], "there is no runs/x"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"EMPTY": b" \n\n", "MARKS": b"<|endoftext|>\n", "BINARY": b"The\xff\xfe\x00", "TOLD": b"Once."}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    assert run_door("eval", [str(tmp_path / word) if word in files else word for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_run_on_a_level_and_a_style(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train.py` trains on what stands behind the name, shows coherence there; `minilm eval` measures the run again."""
    words = [
        "--data",
        "tales:level=2,style=fable,megabytes=0.05,seed=7",
        "--n_layer=1",
        "--n_head=2",
        "--n_embd=16",
    ]
    words += [
        "--block_size=32",
        "--batch_size=4",
        "--max_steps=3",
        "--eval_tokens=300",
        "--compile=off",
        "--device=cpu",
    ]
    run = tmp_path / "run"
    assert run_door("train", [*words, "--precision=fp32", "--out_dir", str(run)]) == 0
    trained = capsys.readouterr().out
    assert "coherence, level 2, fable: 0.0 % of 200 stories pass" in trained
    measure = ["eval", str(run), "--coherence", "--num_stories=5", "--style=fable,news"]
    assert run_door(measure[0], measure[1:]) == 0
    report = capsys.readouterr().out
    assert "coherence, level 2, fable: 0.0 % of 5 stories" in report
    assert "coherence, level 2, news: 0.0 % of 5 stories" in report
    assert "100 % of real stories are longer than the model's context" in report
    assert "not compared with a training text" not in report
    assert run_door(measure[0], [*measure[1:], "--level=1", "--style=plain", "--top_p=0.5", "--seed=3", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["level"], found["style"], found["n_stories"], found["copies_checked"]) == (1, "plain", 5, True)
    assert found["sampler"] == "temperature 1, top_k 0, top_p 0.5, seed 3"
    for path in run.glob("../shards/*/*"):
        path.unlink()
    assert run_door("eval", measure[1:-1]) == 0  # the data is gone: level 1, and copies are not looked for
    printed = capsys.readouterr()
    assert "coherence, level 1: 0.0 % of 5 stories pass" in printed.out
    assert "not compared with a training text" in printed.out
    assert "is not there, which says what it was trained on: copies are not looked for" in printed.err


def test_the_packaged_model_writes_coherent_tales() -> None:
    """models/tales-smallest, by its name: its card says more than 90 % of 500 stories, of which 40 are told here."""
    model, tokenizer = GPT.from_pretrained("tales-smallest"), get_tokenizer("tales-smallest")
    assert model.num_params() < 700_000
    assert coherence(model, tokenizer, train=None, n_stories=40).passed >= 30
