"""The study of models (bench/tales.py): its cells, and a report that says what is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from minilm.text import tales
from minilm.text.tokenizer import train_tokenizer

BENCH = Path(__file__).resolve().parent.parent / "bench"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


study = load("tales")


def test_cells_are_told_apart_and_cover_the_question() -> None:
    cells = study.cells()
    assert len({cell.name for cell in cells}) == len(cells)
    for level in tales.LEVELS:
        mine = [cell for cell in cells if cell.level == level]
        assert {cell.size for cell in mine if cell.tokens == study.SWEEP_TOKENS} == set(study.SIZES)
        assert {cell.tokens for cell in mine if cell.size == "tiny"} >= set(study.TIMED.values())


@pytest.mark.parametrize("level", tales.LEVELS)
def test_a_story_fits_the_context(level: int) -> None:
    texts = list(tales.stories(n=400, level=level))
    tokenizer = train_tokenizer("words", texts, 0)
    assert max(len(tokenizer.encode(text)) for text in texts) < study.BLOCK_SIZE[level]


def test_report_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the report's pictures need the extra `lab`")
    report = load("tales_report")
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "PICTURES", tmp_path / "pictures")
    *done, missing = study.cells()
    results = {
        cell.name: {
            "cell": cell.name,
            "level": cell.level,
            "size": cell.size,
            "tokenizer": cell.tokenizer,
            "parameters": 10**5 * (i + 1),
            "parameters_in_blocks": 10**4 * (i + 1),
            "tokens": cell.tokens,
            "steps": cell.tokens // cell.tokens_per_step,
            "val_loss": 0.75,
            "bits_per_byte": 0.25,
            "passed": 120,
            "n_stories": 200,
            "low": 0.53,
            "high": 0.67,
            "mean_before": 0.875,
            "failures": {"where": 50, "copied": 30},
            "train_seconds": 60.0,
            "date": "2026-11-25",
            "precision": "fp32",
            "threads": 1,
            "commit": "0123456789",
            "torch": "2.13.0",
        }
        for i, cell in enumerate(done)
    }
    report.write(study.cells(), results, study.SWEEP_TOKENS, study.TIMED)
    page = (tmp_path / "page.md").read_text("utf-8")
    assert f"1 of {len(done) + 1} cells: {missing.name}." in page
    assert page.count("| 60.0 % | 53 to 67 | 88 % |") >= len(done) - 4
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {"tales_parameters.png", "tales_rules.png", "tales_tokens.png"}
    assert all(name in page for name in pictures)


def test_the_text_is_that_of_the_study() -> None:
    """Other text makes every result void: hours of training. Change it for a reason only, then run the study again."""
    assert [study.corpus(level) for level in tales.LEVELS] == [
        "a66835dc2731",
        "528ecef50458",
        "ea0d0a2272a6",
        "384c58657a48",
    ]
