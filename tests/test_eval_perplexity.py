"""`minilm eval` by protocols: on a run's own data, on text, on real data sets, with results that can be stored."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import prepared, sums

from minilm import eval_perplexity
from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.errors import MinilmError
from minilm.evaluation import benchmark_files
from minilm.evaluation.benchmarks import READERS
from minilm.evaluation.perplexity import Perplexity, perplexity
from minilm.evaluation.protocols import PROTOCOLS, get_protocol
from minilm.evaluation.reference import beside, figures, published, text_of
from minilm.model.gpt import GPT
from minilm.text.detokenize import DETOKENIZERS
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=257))
    model.save_pretrained(tmp_path / "gpt2", BYTES)
    return tmp_path / "gpt2"


def measured(capsys: pytest.CaptureFixture[str], *words: object) -> Perplexity:
    assert run_door("eval", [*map(str, words), "--json", "--device=cpu"]) == 0
    return Perplexity.from_json(capsys.readouterr().out)


def test_prepared_data_text_and_what_is_stored(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepared(tmp_path / "sums")
    model = GPT.from_pretrained(checkpoint)
    found = measured(capsys, checkpoint, "--data", folder, "--out", tmp_path / "found.json")
    expected = perplexity(model, folder, "minilm")
    assert (found.nats, found.n_bytes, found.protocol) == (expected.nats, expected.n_bytes, expected.protocol)
    assert (found.model, found.data) == (str(checkpoint), "sums, val")
    assert Perplexity.from_json((tmp_path / "found.json").read_text()) == found
    text = tmp_path / "book.txt"
    text.write_text("\n".join(sums(10, 9)), encoding="utf-8")
    words = ["--protocol=hf-stride-512", "--context=32", "--stride=8", "--unit=byte", "--precision=bf16"]
    found = measured(capsys, checkpoint, "--data", text, *words)
    expected = perplexity(
        model, text.read_text(), "hf-stride-512", tokenizer=BYTES, context=32, stride=8, unit="byte", precision="bf16"
    )
    assert (found.value, found.protocol) == (expected.value, replace(expected.protocol, data=str(text)))
    found.check_alike(replace(expected, text_sha256=found.text_sha256))
    assert found.protocol.name == "hf-stride-512*"
    for option, file, why in (
        ("--out", tmp_path / "no" / "x.json", "cannot be written (it is in a folder that does not exist)"),
        ("--out", tmp_path, "cannot be written (it is a folder)"),
        ("--picture", tmp_path / "x.xyz", "name a .svg, .png or .pdf file"),
    ):
        assert run_door("eval", ["runs/none", "--data", str(text), option, str(file)]) == 2  # before the model
        assert why in capsys.readouterr().err


def test_real_text_under_every_protocol_it_is_for(
    checkpoint: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All on the same text: the sums agree where only the unit differs, and the counts are those of the file."""
    lines = (shared_data / "wikitext-2-raw" / "wiki.valid.raw").read_text(encoding="utf-8").splitlines(keepends=True)
    source = tmp_path / "wikitext-2-raw"
    source.mkdir()
    text = "".join(lines[:60])
    (source / "wiki.valid.raw").write_text(text, encoding="utf-8")
    words = [checkpoint, "--data=wikitext2", "--source", source, "--split=val", "--context=64"]
    by_word, by_byte = (measured(capsys, *words, f"--protocol={name}") for name in ("lm-eval", "lm-eval-byte"))
    assert by_word.nats == by_byte.nats
    assert by_word.n_bytes == len(text.encode())
    assert by_word.word_perplexity == pytest.approx(math.exp(by_word.nats / by_word.n_words))
    loop = measured(capsys, *words, "--protocol=hf-stride-512", "--stride=32")
    assert loop.data == "wikitext2, val"
    assert loop.text_sha256 == by_word.text_sha256
    assert loop.n_tokens > by_word.n_tokens  # rows are joined by blank lines, and nothing is detokenized


def test_all_protocols_beside_published_figures(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on its own data set; what cannot be had is a line that says why. Published figures stand only where text and
    protocol are theirs."""
    folder = prepared(tmp_path / "sums")
    text = " = Title = \n" + " \n One , two . \n" * 80
    real = eval_perplexity.read_data

    def read_data(data: str, *words: Any) -> tuple[Any, str]:
        if data in (str(folder), "openwebtext"):
            return real(str(folder), *words)
        if data != "wikitext2":
            raise MinilmError(f"{data} cannot be downloaded")
        return [text], "wikitext2, test"

    def benchmark_file(name: str) -> Path:
        raise MinilmError(f"{name} cannot be downloaded")

    monkeypatch.setattr(eval_perplexity, "read_data", read_data)
    few = replace(PROTOCOLS["nanogpt"], precision="fp32", random_windows=40)
    monkeypatch.setitem(PROTOCOLS, "nanogpt", few)
    monkeypatch.setattr(benchmark_files, "benchmark_file", benchmark_file)
    monkeypatch.chdir(tmp_path)
    assert run_door("eval", ["gpt2", "--all", "--data", str(folder)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[1:-1]] == [*PROTOCOLS, *READERS]
    by_name = {row.split()[0]: row for row in rows}
    assert "hellaswag cannot be downloaded" in by_name["hellaswag"]
    model = GPT.from_pretrained(checkpoint)
    for name, source in (("minilm", folder), ("training", folder), ("gpt2-paper-wikitext2", text), ("lm-eval", text)):
        ours = perplexity(model, source, name, tokenizer=BYTES).value
        assert float(by_name[name].split()[1]) == pytest.approx(ours, abs=1e-4)
    assert "29.41" not in by_name["gpt2-paper-wikitext2"]  # of GPT-2's context, which this model lacks
    assert "wikitext103 cannot be downloaded" in by_name["megatron"]
    assert "reads 1023 tokens and the model's position table has 64" in by_name["hf-stride-512"]
    error = perplexity(model, folder, "nanogpt").standard_error
    assert f"(standard error {error:.4f} nats)" in by_name["nanogpt"]


def found_of(data: str, text: str, protocol: str, **changes: Any) -> Perplexity:
    """A measurement of a GPT-2 on a text, without a model."""
    rules = get_protocol(protocol, **changes).settled(1024)
    return Perplexity(rules, "openai-community/gpt2", data, "", "", 10.0, 5, 1, 2, 3, 4, text=text_of(data, [text]))


def test_a_figure_stands_beside_its_own_text_only(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WikiText's real validation file: whole, cut, detokenized, or as another form of it."""
    from minilm.text.prepare import prepare
    from minilm.text.shards import open_shards

    folder = shared_data / "wikitext-2-raw"
    whole = (folder / "wiki.valid.raw").read_text(encoding="utf-8")
    raw, shards = "WikiText's validation file, raw", prepare("wikitext2", source=folder, tokenizer="bytes")
    split = open_shards(shards).splits["val"]
    documents = [bytes(split.document(i).tolist()).decode() for i in range(split.n_documents)]
    assert text_of("wikitext2, val", documents) == text_of("my.txt", [whole]) == raw
    found = found_of("wikitext2, val", whole, "hf-stride-1024", split="val")
    assert beside(found).startswith("31.04 (llm.c pull request 276")
    assert f" on wikitext2, val ({raw}, whole)" in str(found)
    assert Perplexity.from_json(found.to_json()) == found
    assert beside(replace(found, protocol=replace(found.protocol, stride=512))) == ""
    assert beside(replace(found, model="runs/x")) == ""
    why = f"none beside this number: they are of {raw}, whole, and this is another text"
    tokenized = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8")
    for other in (whole[:-1], whole[:-1] + "x", DETOKENIZERS["wikitext"](whole), tokenized):
        assert beside(found_of("wikitext2, val", other, "hf-stride-1024", split="val")) == why
    assert beside(found_of("openwebtext, val", "x", "nanogpt")).startswith(
        "none beside this number: they are of nanoGPT's"
    )
    # Where no hash is known: the data set's name, and bytes or words.
    assert text_of("text8, test", ["a" * 5_000_000]) == "text8's last 5 million bytes"
    assert text_of("book.txt", ["a" * 5_000_000]) == text_of("text8, test", ["a" * 4_999_999]) == ""
    assert text_of("lm1b, test", ["a "] * 153_583).startswith("One Billion Word")
    assert text_of("lm1b, test", ["a "] * 153_582) == ""
    paper = found_of("text8, test", "a" * 5_000_000, "gpt2-paper-text8")
    assert beside(paper).startswith("1.17 (Radford et al. 2019")
    assert beside(replace(paper, protocol=paper.protocol.settled(64), model="gpt2")).startswith("1.17")
    assert beside(replace(paper, protocol=replace(paper.protocol, context=64, stride=64))) == ""


def test_the_door_says_why_no_figure_stands_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=1024, vocab_size=257))
    model.save_pretrained(tmp_path / "gpt2", BYTES)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "wiki.test.raw").write_text(" = Title = \n" + " \n One , two . \n" * 40)
    assert run_door("eval", ["gpt2", "--protocol=lm-eval", "--source=copy", "--device=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "37.37" not in shown
    assert (
        "published: none beside this number: they are of WikiText's test file, raw, whole, and this is anoth" in shown
    )


def test_text_is_scored_whole_and_called_so(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No split names it, and no split's figure stands beside it: only that of the file that it is, byte for byte."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=1024, vocab_size=257))
    model.save_pretrained(tmp_path / "gpt2", BYTES)
    monkeypatch.chdir(tmp_path)
    real = (shared_data / "wikitext-2-raw" / "wiki.valid.raw").read_text(encoding="utf-8")
    Path("folder").mkdir()
    for file in ("book.txt", "folder/book.txt"):
        Path(file).write_text(real[:20_000], encoding="utf-8")
    for words in ("book.txt", "folder", "book.txt --protocol=hf-stride-1024", "book.txt --protocol=lm-eval"):
        data, *rest = words.split()
        assert run_door("eval", ["gpt2", "--data", data, *rest, "--device=cpu", "--out=found.json"]) == 0
        shown = capsys.readouterr().out
        assert f": {data} whole, text " in shown
        assert not re.search(r"\b(val|31\.04|37\.37)\b", shown)
        assert json.loads(Path("found.json").read_text())["protocol"]["split"] == "whole"
    for split in ("train", "val", "test"):
        for door, models in (("eval", ["gpt2"]), ("compare", ["gpt2", "gpt2"])):
            assert run_door(door, [*models, "--data=book.txt", f"--split={split}", "--device=cpu"]) == 2
            assert f"book.txt is text, which has no split '{split}': leave out --split" in capsys.readouterr().err
    for text, figure in ((real, "31.04 (llm.c pull request 276"), (real[:-1], "none beside this number: they are of ")):
        assert beside(found_of("book.txt", text, "hf-stride-1024", split="whole")).startswith(figure)
    found, again = (perplexity(model, real[:2000], "minilm", tokenizer=BYTES, split=split) for split in ("val", "test"))
    assert (found.protocol.split, again.protocol.split, found.nats) == ("whole", "whole", again.nats)
    found.check_alike(replace(found, protocol=get_protocol(found.protocol, split="val")))  # the text itself decides


def test_published_figures_are_of_protocols_that_exist() -> None:
    benchmarks = ("lambada-openai", "hellaswag", "cbt-cn", "cbt-ne")
    for figure in figures():
        assert figure.key in PROTOCOLS or figure.key.split("/")[0] in benchmarks, figure
        assert figure.value > 0
        assert figure.source
        if "/" not in figure.key:
            assert figure.text().name, figure
    assert [figure.value for figure in published("openai-community/gpt2", "lm-eval")] == [37.37]
    (loss,) = published("gpt2", "nanogpt")  # published in nats, shown in the protocol's unit too
    assert str(loss).startswith(f"{math.exp(3.12):.2f} (3.12 nats per token; nanoGPT README")
    assert PROTOCOLS["nanogpt"].random_windows == 8 * 500
    assert published("runs/x", "lm-eval") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol=hf"], "there is no protocol 'hf'"),
        (["--unit=line", "--data=SUMS"], "unit is 'line': choose token, word, byte, character"),
        (["--data=SUMS", "--context=100"], "reads 100 tokens and the model's position table has 64"),
        (["--data=SUMS", "--split=test"], "has no split 'test', which protocol minilm* reads"),
        (["--data=EMPTY"], "too few to score one"),
        (["--data=EMPTY", "--unit=word"], "has no word that protocol minilm* counts"),
        (["--data=SUMS", "--protocol=training", "--unit=byte", "--eval_tokens=50"], "first 50 tokens are not counted"),
        (["--data=EMPTY", "--split=nonsense"], "is text, which has no split 'nonsense': leave out --split"),
        (["--all", "--unit=line"], "unit is 'line': choose token, word, byte, character"),
        ([], "protocol minilm is for any text: name it with --data"),
        (["--data=nowhere"], "there is no data set or path 'nowhere'"),
        (["--data=CHARS", "--protocol=training"], "different tokenizers"),
        (["--data=EMPTY", "--eval_tokens=10"], "counts tokens of prepared data: prepare the text"),
        (["--data=SUMS", "--eval_tokens", "-5"], "--eval_tokens: give a whole number, 0 or more, not '-5'"),
        (["--benchmark=lambada", "--limit=-3"], "--limit: give a whole number, 0 or more, not '-3'"),
        (["--mauve_tokens=-4"], "--mauve_tokens: give a whole number, 0 or more, not '-4'"),
        (["--all", "--out=x.json"], "leave out --out, which --all does not read"),
        (["--limit=3"], "leave out --limit, which a perplexity does not read"),
        (["--benchmark=lambada", "--data=SUMS"], "leave out --data, which --benchmark does not read"),
        (["--data=SUMS", "--json", "--breakdown"], "--breakdown prints a table: leave out --json"),
    ],
)
def test_mistakes(
    words: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from minilm.text.prepare import prepare

    (tmp_path / "empty.txt").write_text("")
    folders = {"SUMS": lambda: prepared(tmp_path / "sums"), "EMPTY": lambda: tmp_path / "empty.txt"}
    if "--data=CHARS" in words:
        (tmp_path / "book.txt").write_text("abc " * 200)
        folders["CHARS"] = lambda: prepare(tmp_path / "book.txt", tokenizer="chars")
    for name, made in folders.items():
        words = [word.replace(name, str(made())) if name in word else word for word in words]
    assert run_door("eval", [str(checkpoint), *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]


def test_the_page_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door("eval", ["--protocols"]) == 0
    table = capsys.readouterr().out.strip()
    assert all(f"| `{name}` |" in table for name in PROTOCOLS)
    page = (Path(__file__).resolve().parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert table in page, "put the output of `minilm eval --protocols` into docs/evaluation.md"


def test_a_result_is_valid_json(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, checkpoint, "--data", prepared(tmp_path / "sums"))
    raw = json.loads(found.to_json())
    assert raw["value"] == found.value
    assert raw["protocol"]["context"] == 64


def test_json_is_valid_where_the_number_is_too_large(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text("x" * 700)
    found = measured(capsys, checkpoint, "--data", tmp_path / "long.txt", "--unit=word", "--out", tmp_path / "x")
    raw = json.loads((tmp_path / "x").read_text(), parse_constant=pytest.fail)
    assert (raw["value"], found.value) == (None, math.inf)
    assert raw["nats"] == found.nats > 700


def test_a_protocol_that_options_do_not_fit_is_a_row(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = tmp_path / "copies"
    for name in {protocol.data for protocol in PROTOCOLS.values()} | set(READERS):
        (copies / name).mkdir(parents=True, exist_ok=True)  # empty: nothing is asked of the network
    words = [str(checkpoint), "--all", "--context=16", "--data", str(prepared(tmp_path / "sums")), "--device=cpu"]
    assert run_door("eval", [*words, "--source", str(copies), "--json"]) == 0
    rows = {row["protocol"].rstrip("*"): row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert "a stride of 512 leaves out tokens of a context of 16" in rows["hf-stride-512"]["measure"]
    assert float(rows["minilm"]["ours"]) > 1
