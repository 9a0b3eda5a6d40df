"""text8: the first 100 MB of Wikipedia's text of 2006 in a-z and blanks; 90, 5 and 5 MB, each one document."""

from minilm.text.scripts import Dataset, Documents, Files, Source, script_main
from minilm.text.upstream import portion

URL = "https://mattmahoney.net/dc/text8.zip"


def documents(files: Files, split: str) -> Documents:
    for file in files.find("text8"):
        yield portion(file.open(), split, (90_000_000, 5_000_000, 5_000_000))


DATASET = Dataset(
    name="text8",
    description="100 MB of Wikipedia's text in 27 characters.",
    licence="GFDL",
    citation="Mahoney 2006, About the Test Data",
    documents=documents,
    sources=(Source(URL, 31_344_016, "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"),),
    tokenizer="chars",
)

if __name__ == "__main__":
    script_main(DATASET)
