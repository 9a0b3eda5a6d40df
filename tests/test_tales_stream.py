"""Tales from several processes are those from one, to the letter; options reach data scripts from every side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from minilm.cli import run_door
from minilm.errors import MinilmError, UsageError
from minilm.text.folders import made_of
from minilm.text.prepare import prepare
from minilm.text.scripts import split_name
from minilm.text.shards import open_shards
from minilm.text.tales import mixed_stories, stories
from minilm.text.tales import stream as tales_stream
from minilm.text.tales.stream import parallel_stories

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("styles", "level", "split", "workers"), [("plain", 1, "train", 3), ("plain, letter", 3, "val", 2)]
)
def test_the_same_stories_in_the_same_order(
    styles: str, level: int, split: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tales_stream, "WORTH_MEGABYTES", 0.0)
    told = list(parallel_stories(styles, 0.05, 5, level, split, workers))
    assert told == list(mixed_stories(styles, 0.05, 5, level, split))
    assert 0.05e6 <= sum(len(text) + 1 for text in told) < 0.06e6  # it ends inside a block
    if styles == "plain":
        assert told == list(stories(megabytes=0.05, seed=5, level=level, split=split))


def test_processes_end_with_their_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    def recorded(real: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
        def popen(*words: object, **options: object) -> subprocess.Popen[str]:
            started.append(real(*words, **options))
            return started[-1]

        return popen

    monkeypatch.setattr(subprocess, "Popen", recorded(subprocess.Popen))
    told = parallel_stories("plain", 100.0, workers=2)
    assert len(list(islice(told, 40))) == 40
    told.close()  # type: ignore[attr-defined]
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)
    told = parallel_stories("plain", 100.0, workers=2)
    next(told)
    started[-1].kill()
    with pytest.raises(MinilmError, match="a process that tells tales ended early"):
        list(told)


def test_little_is_told_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert list(parallel_stories("plain", 0.01, workers=8)) == list(stories(megabytes=0.01))
    assert next(parallel_stories("plain", 100.0, workers=1)) == next(stories(n=1))
    for options in ({"level": 7}, {"styles": "haiku"}, {"seed": -1}, {"megabytes": 0.0}):
        with pytest.raises(UsageError, match="tales"):
            parallel_stories(**{"styles": "plain", "megabytes": 100.0, "workers": 8} | options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("tales", ("tales", {})),
        ("tales:", ("tales", {})),
        (
            "tales:level=2,style=plain,fable,megabytes=3",
            ("tales", {"level": 2, "style": "plain,fable", "megabytes": 3.0}),
        ),
        ("./tales:level=2", ("./tales:level=2", {})),
        ("C:/novels", ("C:/novels", {})),
    ],
)
def test_options_behind_a_name(words: str, found: object) -> None:
    assert split_name(words) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tales:levl=2", "tales has no option 'levl' .did you mean level"),
        ("tales:level=two", "tales: level takes int, not 'two'"),
        ("tales:2", "options stand behind tales as name=value,name=value, not '2'"),
        ("tales:level=9", "tales have the levels 1, 2, 3, 4, not 9"),
        ("tales:style=haiku", "tales have the styles"),
        ("wikitext2:level=2", "wikitext2 has no option 'level'"),
    ],
)
def test_mistakes_behind_a_name(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(words)


def test_every_way_to_say_options_leads_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINILM_DATA", str(tmp_path))
    words = ["--level", "2", "--style", "fable", "--megabytes", "0.02", "--seed", "7"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "data" / "tales.py"), *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert made_of(folder) == ("tales", {"level": 2, "style": "fable", "seed": 7, "megabytes": 0.02})
    shards = open_shards(folder)
    first = shards.tokenizer().decode(shards.splits["train"].document(0))
    assert first == next(stories(n=1, seed=7, level=2, style="fable"))
    named = "tales:level=2,style=fable,seed=7,megabytes=0.02"
    written = folder.stat().st_mtime_ns
    assert prepare(named) == prepare("tales", level=2, style="fable", seed=7, megabytes=0.02) == folder
    assert prepare("tales:level=2,seed=9,megabytes=0.02", style="fable", seed=7) == folder
    assert run_door("data", ["prepare", "tales:level=2,style=news,megabytes=0.02", "--style=fable", "--seed=7"]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder
    assert folder.stat().st_mtime_ns == written
    others = {prepare(f"tales:megabytes=0.02,{more}") for more in ("level=2", "style=fable")}
    assert len(others | {folder}) == 3


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def show(words: str) -> str:
        assert run_door("data", ["show", words]) == 0
        return capsys.readouterr().out

    shown = show("tales")
    assert "Not prepared yet; it begins:" in shown
    assert all(text in shown for text in stories(n=3))
    assert next(stories(n=1, level=2, style="fable")) in show("tales:level=2,style=fable")
    other, mine = prepare("tales:level=2,megabytes=0.02"), prepare("tales:level=3,megabytes=0.02")
    capsys.readouterr()
    shown = show("tales:level=3,megabytes=0.02")
    assert f"{mine}: tokenizer words" in shown
    assert f"prepared in other ways too: {other.name}" in shown
    assert f"{other}: tokenizer words" in show("tales")  # what there is, where there is none with the defaults
    assert "Not prepared yet" in show("tales:level=4")
    for words in ("wikitext2", "nowhere"):
        assert run_door("data", ["show", words]) == 2
        assert f"{words} is not prepared: make it with `minilm data prepare {words}`" in capsys.readouterr().err
