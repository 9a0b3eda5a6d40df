"""Where each benchmark's official file is, and its lines from a local copy: the file, its archive or a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from minilm.datasets.lambada import SOURCES as LAMBADA
from minilm.errors import UsageError
from minilm.text.download import Source, download
from minilm.text.folders import data_folder
from minilm.text.sources import OPENERS, TAR_ENDINGS, Files

ARCHIVES = (".zip", *TAR_ENDINGS, *OPENERS)


class Origin(NamedTuple):
    """What is downloaded, and which file inside is the benchmark."""

    source: Source
    member: str


CBT_URL = "http://www.thespermwhale.com/jaseweston/babi/CBTest.tgz"
HELLASWAG_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
_CBT = Source(CBT_URL, 120_547_669, "932df0cadc1337b2a12b4c696b1041c1d1c6d4b6bd319874c6288f02e4a61e92")
_HELLASWAG = Source(HELLASWAG_URL, 12_246_618, "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588")
ORIGINS = {
    "lambada": Origin(LAMBADA["original"], "lambada_test_plain_text.txt"),
    "lambada-openai": Origin(LAMBADA["openai"], "lambada_test.jsonl"),
    "hellaswag": Origin(_HELLASWAG, "hellaswag_val.jsonl"),
    # GPT-2's figures are of the validation files: a book of the test files is in WebText (Radford 2019, section 3.2).
    "cbt-cn": Origin(_CBT, "cbtest_CN_valid_2000ex.txt"),
    "cbt-ne": Origin(_CBT, "cbtest_NE_valid_2000ex.txt"),
}


def benchmark_file(benchmark: str) -> Path:
    """The official file or its archive, downloaded once; its SHA-256 is checked. Raises MinilmError where it cannot be
    had."""
    source = ORIGINS[benchmark].source
    name = benchmark.partition("-")[0]
    return download(source, data_folder() / "downloads" / name).path


def benchmark_lines(benchmark: str, file: str | Path) -> Iterator[str]:
    """Lines of a benchmark from its file, or from an archive or folder that holds it under its official name.

    Raises UsageError where it is not there or not UTF-8.
    """
    path, member = Path(file).expanduser(), ORIGINS[benchmark].member
    if not path.exists():
        raise UsageError(f"{path} cannot be read (No such file or directory): name the benchmark's file")
    inside = path.is_dir() or path.name.lower().endswith(ARCHIVES)
    for found in Files.at(path).find(member if inside else "*"):
        yield from found.lines()
        return
    raise UsageError(f"{path} holds no {member}, which is the file of {benchmark}")
