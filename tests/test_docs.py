"""The pages say what is so: links lead somewhere, names exist, tables are whole, examples run."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from minilm.config import GPTConfig, TrainConfig
from minilm.options import parse, presets

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, i, code) for page in PAGES for i, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))]
# The others need a run, a download or files.
RUN = [("README.md", 0), ("toggles.md", 0), ("tokenizers.md", 0), ("evaluation.md", 0)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(("page", "i", "code"), BLOCKS, ids=[f"{p.name}-{i}" for p, i, _ in BLOCKS])
def test_names_in_examples_exist(page: Path, i: int, code: str) -> None:
    tree = ast.parse(code)
    package = import_module("minilm")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            exec(compile(ast.Module([node], []), page.name, "exec"), {})
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "minilm":
            assert getattr(package, node.attr)


@pytest.mark.parametrize(("name", "i"), RUN)
def test_examples_run(name: str, i: int) -> None:
    (code,) = [code for page, j, code in BLOCKS if (page.name, j) == (name, i)]
    exec(compile(code, f"{name}, example {i}", "exec"), {})


def test_tables_of_toggles_are_whole() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "toggles.md").read_text(encoding="utf-8")
    hints = get_type_hints(GPTConfig)
    for field in fields(GPTConfig):
        assert f"`{field.name}`" in page, field.name
        if field.name not in ("n_layer", "n_head", "n_embd", "block_size", "rope_base"):
            assert f"`{field.name}`" in readme, field.name
        if str(hints[field.name]).startswith("typing.Literal"):
            for value in get_args(hints[field.name]):
                assert f"`{value}`" in page, value
                row = next(line for line in readme.splitlines() if line.startswith("|") and f"`{field.name}`" in line)
                assert value in row, value


@pytest.mark.parametrize("name", presets())
def test_table_of_presets_is_right(name: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}` |"))
    model = parse(["--config", name], "cuda").config.model
    assert f"| {model.n_layer}, {model.n_head}, {model.n_embd} | {model.block_size:,} |" in row


def test_page_on_training_names_every_choice() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    hints = get_type_hints(TrainConfig)
    for field in ("optimizer", "schedule", "precision", "guard"):
        for value in set(get_args(hints[field])) - {"auto"}:
            assert f"| `{value}` |" in page, value


def test_findings_of_the_readme_are_the_lab_s() -> None:
    """Every figure that the README gives stands in the report, which is generated."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## What the lab found\n")[2].partition("\n## ")[0]
    report = (ROOT / "docs" / "findings" / "README.md").read_text(encoding="utf-8")
    findings = re.findall(r"^- .+?(?=^- |\Z)", section, re.MULTILINE | re.DOTALL)
    assert len(findings) == 5
    for finding in findings:
        question = re.search(r"\(`(\w+)`\)", finding)
        assert question, finding
        mine = report.partition(f"\n## {question[1]}\n")[2].partition("\n## ")[0]
        figures = re.findall(r"\d+\.\d+", finding)
        assert figures, finding
        assert set(figures) <= set(re.findall(r"\d+\.\d+", mine))


def test_entries_of_the_performance_log_are_whole() -> None:
    page = (ROOT / "docs" / "performance-log.md").read_text(encoding="utf-8")
    entries = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    dates = [entry[:10] for entry in entries]
    assert dates == sorted(dates, reverse=True)
    for entry in entries:
        said = re.findall(r"^- (\w+): \S", entry, flags=re.MULTILINE)
        assert said == ["Profiled", "Predicted", "Changed", "Measured", "Kept"], entry.splitlines()[0]
