"""Much and large input: memory stays where it is, tokens are those of the whole."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minilm.text import encode, long_text, userfiles
from minilm.text.long_text import LongText, parts_of
from minilm.text.prepare import prepare
from minilm.text.shards import open_shards

WORDS = re.split(" ", "Every good boy does fine , said naïve René — twice “over”\u00a0again")
LONG_BYTES = 1 << 26  # of the measured processes, so that a short "long document" is quick
PEAK = (
    "import sys, minilm.text.prepare as p, minilm.text.userfiles as u; from minilm.runtime import peak_resident_bytes;"
    f"u.LONG_BYTES = {LONG_BYTES}; print(p.prepare(sys.argv[1], tokenizer=sys.argv[2]));"
    "print(peak_resident_bytes())"
)


def prose(n_bytes: int, seed: int = 0) -> Iterator[str]:
    """About so many bytes of paragraphs, a megabyte of them again and again."""
    rng = random.Random(seed)
    paragraphs = "\n\n".join(" ".join(rng.choices(WORDS, k=rng.randrange(5, 90))) for _ in range(3500))
    for i in range(n_bytes // len(paragraphs.encode()) + 1):
        yield f"{paragraphs}\n\nPart {i}. "


def test_a_long_text_is_its_characters() -> None:
    whole = "".join(prose(3_000_000))[:2_500_000]

    def read() -> Iterator[str]:
        return (whole[i : i + 700_000] for i in range(0, len(whole), 700_000))

    text = long_text.long_text(read)
    assert isinstance(text, LongText)
    assert len(text) == len(whole)
    assert "".join(parts_of(text)) == "".join(parts_of(whole)) == whole
    before, after = text.cut(1_234_567)
    assert ("".join(before.parts()), "".join(after.parts())) == (whole[:1_234_567], whole[1_234_567:])
    again, rest = after.cut(1)
    assert (len(again), len(rest)) == (1, len(whole) - 1_234_568)
    assert "".join(encode.pieces(text)) == whole
    assert long_text.long_text(lambda: iter([" \n", "\t"])) is None


@pytest.mark.parametrize("n_files", [1, 2])
def test_a_long_document_has_the_tokens_of_a_short_one(
    n_files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    for i in range(n_files):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{i}.txt").write_text("".join(prose(1_600_000, i)), encoding="utf-8")
    gpt2 = str(shared_data / "gpt2_files")
    short = open_shards(prepare(tmp_path / "text", tokenizer=gpt2, out=tmp_path / "short"))
    monkeypatch.setattr(userfiles, "LONG_BYTES", 1000)
    monkeypatch.setattr(userfiles, "READ_CHARS", 300_001)
    monkeypatch.setattr(userfiles, "_documents", lambda *_: pytest.fail("read whole"))
    long = open_shards(prepare(tmp_path / "text", tokenizer=gpt2, out=tmp_path / "long"))
    texts = []
    for folder in (short, long):
        splits = folder.splits.values()
        texts.append("".join(folder.tokenizer().decode(s.document(i)) for s in splits for i in range(s.n_documents)))
    assert texts[0] == texts[1]
    if n_files == 2:
        assert long.meta.splits == short.meta.splits
    else:  # both end the training part at a paragraph, not at the same one
        val = long.splits["val"].document(0)
        assert 0.05 < len(val) / long.splits["train"].n_tokens < 0.12
        assert long.tokenizer().decode(long.splits["train"].document(0)).endswith("\n\n")


def peak_mb(path: Path, tokenizer: str) -> tuple[Path, float]:
    done = subprocess.run([sys.executable, "-c", PEAK, path, tokenizer], check=True, capture_output=True, text=True)
    folder, peak = done.stdout.split("\n")[:2]
    return Path(folder), int(peak) / 2**20


@pytest.mark.slow
def test_a_document_of_2_gb(tmp_path: Path, shared_data: Path) -> None:
    """Memory no larger than for a document a thirtieth as long."""
    peaks = []
    for n_bytes in (LONG_BYTES + 1, 2 * 10**9):
        path = tmp_path / f"{n_bytes}.txt"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(prose(n_bytes))
        folder, peak = peak_mb(path, str(shared_data / "gpt2_files"))
        peaks.append(peak)
        assert sum(split.bytes for split in open_shards(folder).meta.splits.values()) == path.stat().st_size
        path.unlink()
    assert peaks[1] < peaks[0] + 50 < 1000


@pytest.mark.slow
def test_a_hundred_thousand_tiny_files(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    for i in range(100_000):
        if i % 1000 == 0:
            (texts / f"{i // 1000:03d}").mkdir(parents=True)
        (texts / f"{i // 1000:03d}" / f"{i:06d}.txt").write_text(f"File number {i}.")
    folder, peak = peak_mb(texts, "bytes")
    meta = open_shards(folder).meta
    assert sum(split.documents for split in meta.splits.values()) == 100_000
    assert len(meta.sources) == 1
    assert peak < 600
    train = open_shards(folder).splits["train"]
    numbers = [int(bytes(train.document(i).tolist()).split()[2][:-1]) for i in range(0, 90_000, 9999)]
    assert numbers == sorted(numbers)
