"""BookCorpus: 74 million sentences of 11,038 self-published novels, in lower case.

The original site is gone; this is Hugging Face's copy, whose authors were never asked: `pg19` is the open replacement.
The borders of books are lost in it, so a document is `--sentences` in a row.
"""

from minilm.text.records import joined, lines, records
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

URL = "https://storage.googleapis.com/huggingface-nlp/datasets/bookcorpus/bookcorpus.tar.bz2"


def documents(files: Files, split: str, *, sentences: int = 1000) -> Documents:
    rows = records(files, "train/*.parquet", columns=("text",))
    yield from joined(lines(files, "books_large_p*.txt"), sentences)
    yield from joined((row["text"] for row in rows), sentences)


DATASET = Dataset(
    name="bookcorpus",
    description="74 million sentences of self-published novels (a copy; pg19 is the open replacement).",
    licence="none: the authors' copyright",
    citation="Zhu et al. 2015, Aligning Books and Movies, arXiv:1506.06724",
    documents=documents,
    sources=(Source(URL, 1_179_510_242, "03a29333b2b35e98a375b6ad7d2f1651835655cd348fb89c864136bce69a964c"),),
    splits=("train",),
)

if __name__ == "__main__":
    script_main(DATASET)
