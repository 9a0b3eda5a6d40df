"""Shared fixtures. Tests never touch the network and never write outside their temporary folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tensors of tests are too small to share between threads; torch reads this when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["training_helpers"]  # the fixtures `data` and `first`

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real files in upstream form; skips where MINILM_TEST_DATA is not set."""
    folder = os.environ.get("MINILM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MINILM_TEST_DATA names no folder of test data")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is written need not outlive a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared shards and compiled pieces land in the test's own folder."""
    monkeypatch.setenv("MINILM_DATA", str(tmp_path / "shards"))
    monkeypatch.setenv("MINILM_CACHE", str(tmp_path / "cache"))
