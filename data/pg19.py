"""PG-19: 28,752 books of Project Gutenberg from before 1919, the open replacement of BookCorpus.

`--source` takes the makers' folders (train, validation, test, a book a file) or the parquet files of the Hub's copy.
"""

from minilm.text.records import records, whole
from minilm.text.scripts import Dataset, Documents, Files, HubFiles, script_main


def documents(files: Files, split: str) -> Documents:
    name = "validation" if split == "val" else split
    yield from (whole(files, file) for file in files.find(f"{name}/*.txt"))
    yield from (row["text"] for row in records(files, f"{name}-*.parquet", columns=("text",)))


DATASET = Dataset(
    name="pg19",
    description="28,752 books from before 1919, whole.",
    licence="Apache-2.0; the books are in the public domain",
    citation="Rae et al. 2019, Compressive Transformers, arXiv:1911.05507",
    documents=documents,
    sources=(HubFiles("emozilla/pg19", ("data/*.parquet",), "c021754c8e01c5b1cc83a1f549c1f97fbbb756b8"),),
    about_bytes=6_600_000_000,
    in_gpt2="partly",
    parts="row_groups",
)

if __name__ == "__main__":
    script_main(DATASET)
