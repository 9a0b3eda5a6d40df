"""What tests of the lab share: tales told once a module, and a machine that is not measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from minilm import runtime


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tales are told and encoded once for all tests here."""
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(autouse=True)
def light(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without measuring the machine, which takes longer than a run."""
    monkeypatch.setenv("MINILM_DATA", str(shards))
    monkeypatch.setattr(runtime, "peak_flops", lambda *_: 1e11)
    monkeypatch.setattr(runtime, "git_commit", lambda: "0123456789abcdef")
