"""Project Gutenberg: books by `--author`, `--language`, `--ids` (84,1342), or all 70,000; the label is the author.

Books are asked for one every two seconds, as the site wants it; `--source` takes a folder or mirror of them, with its
catalogue pg_catalog.csv where books are chosen by author or language.
"""

from minilm.text.gutenberg import book_sources, chosen_books, strip_boilerplate
from minilm.text.records import whole
from minilm.text.scripts import Dataset, Documents, Files, script_main


def documents(files: Files, split: str, *, author: str = "", language: str = "en", ids: str = "") -> Documents:
    for file, book in chosen_books(files, author, language, ids):
        yield strip_boilerplate(whole(files, file)), book.author


DATASET = Dataset(
    name="gutenberg",
    description="Books in the public domain, by author, language, number, or all.",
    licence="public domain in the USA",
    citation="Project Gutenberg, gutenberg.org",
    documents=documents,
    sources=book_sources,
    about_bytes=25_000_000_000,
    in_gpt2="partly",
    splits=("train",),
)

if __name__ == "__main__":
    script_main(DATASET)
