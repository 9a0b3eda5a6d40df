"""Haiku-shaped lines cut from the poetry of Project Gutenberg, three lines a document."""

from minilm.text.records import records
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

COMMIT = "082f0e0708a721d405accd597bed418c7e09a25a"
URL = f"https://raw.githubusercontent.com/docmarionum1/haikurnn/{COMMIT}/input/poems/raw/gutenberg.csv"


def documents(files: Files, split: str) -> Documents:
    return (row["haiku"] for row in records(files, "gutenberg.csv"))


DATASET = Dataset(
    name="haiku",
    description="Three-line poems cut from old poetry.",
    licence="public domain",
    citation="Markum 2018, haikurnn",
    documents=documents,
    sources=(Source(URL, 541_231, "43d2fa272b97145f7aa812d0d0ebda96356dd27b22fd344866f324d50557d20a"),),
    splits=("train",),
)

if __name__ == "__main__":
    script_main(DATASET)
