"""Finding weights: runs, folders, files, and a Hub served from this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from minilm.config import GPTConfig
from minilm.errors import MinilmError, UsageError
from minilm.model import hub as hub_module
from minilm.model.gpt import GPT
from minilm.model.hub import find_checkpoint, newest_run
from minilm.model.weights import load_pretrained

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=400)


# --- on this machine


def make_step(run: Path, step: int, val_loss: float | None = None, age: float = 0.0, whole: bool = True) -> Path:
    folder = run / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"step": step, "val_loss": val_loss}))
    os.utime(folder / "state.json", (1e9 - age, 1e9 - age))
    if whole:
        (folder / "model.safetensors").touch()
    return folder


def test_newest_and_best_step(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    best = make_step(run, 900, val_loss=1.0)
    make_step(run, 999_999, val_loss=1.5)
    newest = make_step(run, 1_000_000)  # seven digits sort behind six
    make_step(run, 1_000_500, whole=False)
    (run / ".step_1000600.partial").mkdir()
    assert find_checkpoint(run) == newest
    assert find_checkpoint(run, which="best") == best
    assert find_checkpoint(best) == best
    assert find_checkpoint(best / "model.safetensors") == best / "model.safetensors"


def test_newest_run_is_the_one_written_last(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_step(runs / "old", 5000, age=100)
    newest = make_step(runs / "new", 10, age=50)
    make_step(runs / "new", 20, whole=False)
    make_step(runs / "unfinished", 30, whole=False)
    (runs / "empty").mkdir()
    (runs / "notes.txt").touch()
    assert newest_run(runs) == runs / "new"
    assert find_checkpoint(None, runs) == newest


def test_nothing_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape("no run found in runs/: train one first with `python train.py`")):
        find_checkpoint()
    make_step(Path("runs/a"), 10, whole=False)
    with pytest.raises(UsageError, match="no run found"):
        find_checkpoint(None)
    with pytest.raises(UsageError, match="runs/a holds no whole checkpoint"):
        find_checkpoint("runs/a")
    make_step(Path("runs/a"), 20)
    with pytest.raises(UsageError, match="none is the best"):
        find_checkpoint("runs/a", which="best")
    Path("runs/a/step_000020/state.json").write_text("{")
    with pytest.raises(UsageError, match=r"state.json is damaged"):
        find_checkpoint("runs/a", which="best")
    Path("models/mine").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"models/mine holds neither config.json nor weights"):
        find_checkpoint("models/mine")


@pytest.mark.parametrize(
    "name",
    ["runs/b", "./b", "/no/such/b", "b/c/d", "models/b", "b.safetensors", "~/b", "a b", "", "out/ckpt.pt", "../b"],
)
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    with pytest.raises(UsageError, match=r"there is no|holds neither"):
        find_checkpoint(name)


def test_a_folder_of_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").touch()
    (tmp_path / "readme.md").touch()
    assert find_checkpoint(tmp_path) == tmp_path / "ckpt.pt"
    (tmp_path / "older.pt").touch()
    with pytest.raises(UsageError, match="several files of weights: name one"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tales-shakespear", "tales-shakespeare"),
        ("tale-writer", "tales-writer"),
        ("tales_smallest", "tales-smallest"),
        *((name, "") for name in ("gpt2", "distilgpt2", "gpt2-large", "t5-small", "someone/tales-shakespear")),
    ],
)
def test_a_mistyped_name_of_a_packaged_model(name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is asked of the Hub, which is asked for all other names."""
    asked: list[str] = []

    def download(name: str) -> Path:
        asked.append(name)
        return Path(name)

    monkeypatch.setattr(hub_module, "download", download)
    if meant:
        with pytest.raises(UsageError, match=re.escape(f"no model {name} (did you mean {meant}?)")):
            find_checkpoint(name)
    else:
        assert find_checkpoint(name) == Path(name)
    assert asked == ([] if meant else [name])


# --- the Hub, imitated


class Hub(ThreadingHTTPServer):
    """Serves repositories from memory as the Hub resolves them; every other question gets a 404."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.break_once: set[str] = set()  # files whose first download breaks off halfway
        self.broken: set[str] = set()  # files that cannot be served
        self.log: list[tuple[str, str, str]] = []  # method, path, Range
        self.tokens: set[str] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str]:
        return [path.rsplit("/", 1)[1] for method, path, _ in self.log if method == "GET" and "/resolve/" in path]


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_POST(self) -> None:
        self.refuse(404, "", "unknown")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, with_body: bool) -> None:
        hub, wanted = self.server, self.headers.get("Range", "")
        hub.log.append((self.command, self.path, wanted))
        hub.tokens.add(self.headers.get("Authorization", ""))
        match = re.fullmatch(r"/(.+)/resolve/[^/]+/([^?]+).*", self.path)
        if match is None:
            return self.refuse(404, "", "unknown")
        repo, file = match[1], match[2]
        if repo in hub.gated:
            return self.refuse(403, "GatedRepo", "access is restricted")
        if repo not in hub.repos:
            return self.refuse(404, "RepoNotFound", "repository not found")
        if file not in hub.repos[repo]:
            return self.refuse(404, "EntryNotFound", "entry not found")
        if file in hub.broken and with_body:
            return self.refuse(410, "", "gone")
        content = hub.repos[repo][file]
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", hashlib.sha1(repo.encode()).hexdigest())
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not with_body:
            return None
        if file in hub.break_once:
            hub.break_once.discard(file)
            self.wfile.write(content[start : len(content) // 2])
            self.close_connection = True
            return None
        self.wfile.write(content[start:])
        return None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GPT(TINY).save_pretrained(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


ASK = """
import json, sys
from minilm.errors import MinilmError
from minilm.model.hub import find_checkpoint
for name in sys.argv[1:]:
    try:
        print(json.dumps([0, str(find_checkpoint(name))]))
    except MinilmError as error:
        print(json.dumps([error.exit_code, str(error)]))
"""


def ask(hub: Hub, home: Path, *names: str, offline: bool = False) -> list[Any]:
    """What find_checkpoint says of each name in a process of its own: the Hub's client reads its settings on import."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_secret", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_downloads_and_caches(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repos["someone/tiny"] = {**files, "tokenizer.json": b"{}", "pytorch_model.bin": b"-", "tf_model.h5": b"-"}
    [(code, folder)] = ask(hub, tmp_path, "someone/tiny")
    assert code == 0
    assert {p.name for p in Path(folder).iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert "Bearer hf_secret" in hub.tokens
    torch.manual_seed(0)
    expected = GPT(TINY).state_dict()
    state = load_pretrained(folder)[0].state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    hub.log.clear()
    assert ask(hub, tmp_path, "someone/tiny") == [[0, folder]]
    assert not hub.downloads()
    hub.log.clear()
    answers = ask(hub, tmp_path, "someone/tiny", "someone/other", offline=True)
    assert answers[0] == [0, folder]
    assert answers[1][0] == MinilmError.exit_code
    assert "someone/other is no folder here, config.json is not in the cache" in answers[1][1]
    assert "offline mode is on" in answers[1][1]
    assert not hub.log


def test_shards_pickles_and_refusals(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    config = {"config.json": files["config.json"]}
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    shards = {"model.safetensors.index.json": index, "one.safetensors": b"1", "two.safetensors": b"2"}
    vocabulary = {"vocab.json": b"{}", "merges.txt": b""}
    hub.repos |= {
        "sharded": {**config, **shards, **vocabulary},
        "lacking": {**config, "model.safetensors.index.json": index, "one.safetensors": b"1"},
        "pickled": {**config, "pytorch_model.bin": b"?", "README.md": b"?"},
        "flax-only": {**config, "flax_model.msgpack": b"?"},
        "no/config": {"model.safetensors": files["model.safetensors"]},
    }
    hub.gated = {"gated/model"}
    names = [*hub.repos, "gated/model", "absent/model", "not--allowed"]
    answers = dict(zip(names, ask(hub, tmp_path, *names), strict=True))
    assert {p.name for p in Path(answers["sharded"][1]).iterdir()} == {"config.json", *shards, *vocabulary}
    assert {p.name for p in Path(answers["pickled"][1]).iterdir()} == {"config.json", "pytorch_model.bin"}
    expected = {
        "lacking": "the Hub's lacking lacks two.safetensors, which its model.safetensors.index.json lists",
        "flax-only": "the Hub's flax-only has neither model.safetensors nor pytorch_model.bin",
        "no/config": "the Hub's no/config has no config.json",
        "gated/model": "the Hub's gated/model asks for consent: accept its terms there, then set HF_TOKEN",
        "absent/model": "absent/model is neither a folder here nor a model on the Hub",
        "not--allowed": "not--allowed is neither a folder here nor a name that the Hub allows",
    }
    for name, message in expected.items():
        assert answers[name][0] == UsageError.exit_code, name
        assert answers[name][1].startswith(message)
        assert "\n" not in answers[name][1]


def test_a_broken_download_is_resumed(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    content = bytes(range(256)) * 100_000  # more than two of the client's 10 MiB chunks
    hub.repos["big"] = {**files, "model.safetensors": content}
    hub.break_once = {"model.safetensors"}
    [(code, folder)] = ask(hub, tmp_path, "big")
    assert code == 0
    assert (Path(folder) / "model.safetensors").read_bytes() == content
    ranges = [wanted for method, path, wanted in hub.log if method == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] == ""
    # What had arrived was not fetched again.
    assert [int(wanted[6:].split("-")[0]) for wanted in ranges[1:]] == [10 << 20]


def test_a_download_that_fails_is_no_usage_error(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repos["tiny"] = files
    hub.broken = {"model.safetensors"}
    [(code, message)] = ask(hub, tmp_path, "tiny")
    assert code == MinilmError.exit_code
    assert message.startswith("model.safetensors of tiny could not be downloaded (")
    assert "410" in message
    hub.broken.clear()
    assert ask(hub, tmp_path, "tiny")[0][0] == 0
