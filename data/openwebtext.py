"""OpenWebText: 8 million pages that Reddit linked to, ready-made; `--build DUMPS` makes it (build_corpus.py)."""

import re

from minilm.text.records import records, whole
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

URL = "https://zenodo.org/record/3834942/files/openwebtext.tar.xz"


def documents(files: Files, split: str) -> Documents:
    for file in files.find("*.txt"):
        yield re.sub("\n\n\n+", "\n\n", whole(files, file)).strip()
    yield from (row["text"] for row in records(files, "*.parquet", "*.jsonl", columns=("text",)))


DATASET = Dataset(
    name="openwebtext",
    description="8 million web pages that Reddit users linked to, 38 GB of text.",
    licence="CC0 for the collection; the pages are their authors'",
    citation="Gokaslan and Cohen 2019, OpenWebText Corpus",
    documents=documents,
    sources=(Source(URL, 12_880_027_468, "9fe39d154c5bc67da8c359415372b79510eb1e2edb0d035fe4f7fc3a732b9336"),),
    in_gpt2="partly",
    splits=("train",),
    parts="row_groups",
    build="minilm.text.build_corpus",
)

if __name__ == "__main__":
    script_main(DATASET)
