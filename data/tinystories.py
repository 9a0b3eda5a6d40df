"""TinyStories: 2.7 million short stories in the words of a small child, by GPT-4, with GPT-3.5 in `--version 1`."""

from typing import Literal

from minilm.text.records import separated
from minilm.text.scripts import Dataset, Documents, Files, HubFiles, script_main

COMMIT = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
NAMES = {1: "TinyStories", 2: "TinyStoriesV2-GPT4"}


def documents(files: Files, split: str, *, version: Literal[1, 2] = 2) -> Documents:
    for file in files.find(f"{NAMES[version]}-{'valid' if split == 'val' else split}.txt"):
        yield from (story for story in separated(files, file, "<|endoftext|>") if story)


DATASET = Dataset(
    name="tinystories",
    description="2.7 million simple stories written by GPT-4.",
    licence="CDLA-Sharing-1.0",
    citation="Eldan and Li 2023, TinyStories, arXiv:2305.07759",
    documents=documents,
    sources=lambda version: (HubFiles("roneneldan/TinyStories", (f"{NAMES[version]}-*.txt",), COMMIT),),
    about_bytes=2_250_000_000,
    splits=("train", "val"),
)

if __name__ == "__main__":
    script_main(DATASET)
