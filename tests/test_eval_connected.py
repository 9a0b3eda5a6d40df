"""What needs the network, on loopback: benchmarks by download, pinned; `minilm eval gpt2 --all` on a stand-in of the
Hub and of every data set's host."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from test_hub import Hub
from training_helpers import prepared, tiny_config

from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.errors import MinilmError, UsageError
from minilm.evaluation import benchmark_files
from minilm.evaluation.benchmark_files import ORIGINS, Origin, benchmark_file, benchmark_lines
from minilm.evaluation.benchmarks import READERS, read_questions
from minilm.evaluation.perplexity import perplexity
from minilm.evaluation.protocols import PROTOCOLS
from minilm.model.gpt import GPT
from minilm.text import download as downloads
from minilm.text.download import Source
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
CBT = "".join(f"{i} It was n't day {i} .\n" for i in range(1, 21))
CBT += "21 `` XXXXX is red , '' said she .\tapple\t\tapple|pear|plum|fig|date|kiwi|lime|lemon|melon|peach\n\n"
HELLASWAG = {"activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "label": 1, "endings": list("abcd")}
LINES = {
    "lambada": "one two three\nfour five six\n",
    "lambada-openai": json.dumps({"text": "a man walks the dog"}) + "\n",
    "hellaswag": json.dumps(HELLASWAG) + "\n",
    "cbt-cn": CBT,
    "cbt-ne": CBT * 2,
}


class Host(ThreadingHTTPServer):
    """Files by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        data = self.server.files.get(self.path.lstrip("/"))
        self.server.asked.append(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.001)
    served = Host()
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def archive(name: str, text: str) -> bytes:
    """As upstream packs it: CBT and the original LAMBADA in a tar, the others plain."""
    member = ORIGINS[name].member
    if not ORIGINS[name].source.name.endswith((".tgz", ".tar.gz")):
        return text.encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for path, content in ((f"CBTest/data/{member}", text), ("CBTest/data/other.txt", "no")):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    return out.getvalue()


def serve(host: Host, monkeypatch: pytest.MonkeyPatch, name: str, wrong_sum: bool = False) -> None:
    data = archive(name, LINES[name])
    source = ORIGINS[name].source
    host.files[source.name] = data
    sum_of = hashlib.sha256(b"x" if wrong_sum else data).hexdigest()
    pinned = Origin(Source(f"{host.url}/{source.name}", len(data), sum_of), ORIGINS[name].member)
    monkeypatch.setitem(benchmark_files.ORIGINS, name, pinned)


def test_sources_are_pinned() -> None:
    assert set(ORIGINS) == set(READERS)
    for origin in ORIGINS.values():
        assert len(bytes.fromhex(origin.source.sha256)) == 32
        assert origin.source.bytes > 1e6


@pytest.mark.parametrize("name", list(LINES))
def test_a_benchmark_is_downloaded_once(name: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILM_DATA", str(tmp_path / "data"))
    serve(host, monkeypatch, name)
    plain = tmp_path / "plain.txt"
    plain.write_text(LINES[name])
    expected = read_questions(name, plain)
    assert read_questions(name, benchmark_file(name)) == expected
    assert read_questions(name, benchmark_file(name)) == expected
    assert len(host.asked) == 1
    if name.startswith("cbt"):
        assert expected[0].context.endswith("It wasn't day 20.")
        assert expected[0].choices[:2] == ('"apple is red," said she.', '"pear is red," said she.')


def test_another_file_is_refused(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILM_DATA", str(tmp_path / "data"))
    serve(host, monkeypatch, "hellaswag", wrong_sum=True)
    with pytest.raises(MinilmError, match="is not the file it was: its SHA-256 differs"):
        benchmark_file("hellaswag")
    assert not list((tmp_path / "data").rglob("*.jsonl"))
    with pytest.raises(UsageError, match=r"holds no cbtest_CN_valid_2000ex\.txt"):
        list(benchmark_lines("cbt-cn", tmp_path))


def test_training_takes_a_benchmark_by_name(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minilm.log import read_metrics

    monkeypatch.setenv("MINILM_DATA", str(tmp_path / "data"))
    serve(host, monkeypatch, "lambada-openai")
    config = tiny_config(prepared(tmp_path / "sums"), tmp_path / "run", max_steps=1)
    words = [f"--{name}={getattr(config, name)}" for name in ("data", "out_dir", "max_steps", "batch_size", "device")]
    words += ["--n_layer=1", "--n_embd=32", "--n_head=2", "--block_size=32", "--warmup_steps=0", "--eval_tokens=99"]
    assert (
        run_door("train", [*words, "--compile=off", "--eval_metrics", "lambada-openai", "zipf", "--eval_samples=2"])
        == 0
    )
    row = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    file = tmp_path / "data" / "downloads" / "lambada" / "lambada_test.jsonl"
    assert row[f"lambada-openai@{file}/accuracy"] in (0.0, 100.0)


CONNECTED = """
import dataclasses, importlib, sys
from minilm.evaluation import benchmark_files
from minilm.text.download import Source
host, *words = sys.argv[1:]
for name, file in (("wikitext2", "wikitext-2-raw-v1.zip"), ("enwik8", "enwik8.zip"), ("ptb", "ptb.test.txt")):
    module = importlib.import_module(f"minilm.datasets.{name}")
    module.DATASET = dataclasses.replace(module.DATASET, sources=(Source(f"{host}/{file}"),))
for name in ("wikitext103", "lm1b", "text8", "openwebtext"):
    module = importlib.import_module(f"minilm.datasets.{name}")
    module.DATASET = dataclasses.replace(module.DATASET, sources=(Source(f"{host}/missing.zip"),))
for name, origin in benchmark_files.ORIGINS.items():
    benchmark_files.ORIGINS[name] = origin._replace(source=Source(f"{host}/{origin.source.name}"))
from minilm.cli import run_door
sys.exit(run_door("eval", words))
"""


def zipped(name: str, text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(name, text)
    return out.getvalue()


def test_gpt2_by_all_protocols_on_a_connected_machine(host: Host, tmp_path: Path) -> None:
    """`minilm eval gpt2 --all`: weights from the Hub, data from their hosts, our numbers beside the published ones."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=1024, vocab_size=257)).eval()
    model.save_pretrained(tmp_path / "model", BYTES)
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    hub.repos["gpt2"] = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    text = " = Title = \n" + " \n One , two . \n" * 50
    host.files["wikitext-2-raw-v1.zip"] = zipped("wikitext-2-raw/wiki.test.raw", text)
    host.files["enwik8.zip"] = zipped("enwik8", "<page>x</page>\n" * 2000)
    host.files["ptb.test.txt"] = b" no it was n't N years \n" * 50
    host.files |= {ORIGINS[name].source.name: archive(name, LINES[name]) for name in ("lambada-openai", "hellaswag")}
    host.files[ORIGINS["cbt-ne"].source.name] = archive("cbt-ne", LINES["cbt-ne"])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "MINILM_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    words = ["gpt2", "--all", "--format=csv", "--device=cpu"]
    done = subprocess.run(
        [sys.executable, "-c", CONNECTED, host.url, *words],
        capture_output=True, text=True, env=environment, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    hub.shutdown()
    hub.server_close()
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(dict.fromkeys(row["protocol"] for row in rows)) == [*PROTOCOLS, *READERS]
    by_name = {(row["protocol"], row["measure"]): row for row in rows}
    token = by_name["gpt2-paper-wikitext2", "perplexity per token"]
    ours = perplexity(model, text, "gpt2-paper-wikitext2", tokenizer=BYTES)
    assert float(token["ours"]) == pytest.approx(ours.value, abs=1e-3)
    assert float(token["per word"]) == pytest.approx(ours.word_perplexity, rel=1e-4)  # both normalisations are shown
    for name, measure in (("gpt2-paper-wikitext2", "perplexity per token"), ("gpt2-paper-enwik8", "bits per byte")):
        assert by_name[name, measure]["published"].startswith("none beside this number: they are of ")
    assert by_name["hellaswag", "accuracy, per character"]["published"] == ""  # one question of 10,042
    assert by_name["cbt-ne", "accuracy"]["published"] == ""
    assert any(row["protocol"] == "megatron" and "HTTP 404" in row["measure"] for row in rows)
    assert any(row["protocol"] == "cbt-cn" and "holds no" in row["measure"] for row in rows)


def test_local_copies_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a network: a folder with a copy of each under its name."""
    torch.manual_seed(0)
    GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=257)).save_pretrained(tmp_path / "m", BYTES)
    copies = tmp_path / "copies"
    (copies / "ptb").mkdir(parents=True)
    (copies / "ptb" / "ptb.test.txt").write_text(" no it was n't N years \n" * 50)
    (copies / "lambada-openai").mkdir()
    (copies / "lambada-openai" / "lambada_test.jsonl").write_text(LINES["lambada-openai"])
    names = [name for name in PROTOCOLS if PROTOCOLS[name].data not in ("", "ptb")]
    for name in {PROTOCOLS[name].data for name in names} | (set(READERS) - {"lambada-openai"}):
        (copies / name).mkdir()  # empty: nothing is asked of the network
    assert run_door("eval", [str(tmp_path / "m"), "--all", "--source", str(copies), "--json", "--device=cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["protocol"] for row in rows if row["ours"] != "-"] == ["gpt2-paper-ptb", *["lambada-openai"] * 2]
    assert sum(row["ours"] == "-" for row in rows) == len(PROTOCOLS) + len(READERS) - 2
