"""enwik8: the first 100 MB of a Wikipedia dump of 2006, markup and all; 90, 5 and 5 MB, each one document."""

from minilm.text.scripts import Dataset, Documents, Files, Source, script_main
from minilm.text.upstream import portion


def documents(files: Files, split: str) -> Documents:
    for file in files.find("enwik8"):
        yield portion(file.open(), split, (90_000_000, 5_000_000, 5_000_000))


DATASET = Dataset(
    name="enwik8",
    description="100 MB of raw Wikipedia, counted in bytes.",
    licence="GFDL",
    citation="Mahoney 2006, About the Test Data",
    documents=documents,
    sources=(
        Source(
            "https://mattmahoney.net/dc/enwik8.zip",
            bytes=36_445_475,
            sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            # The host's page states the size above; datasets 2.3.2 is said to have listed this packing.
            others=((35_012_219, "9591b88a79ef28eeef58b6213ffbbc1b793db83d67b7d451061829b38e0dcc69"),),
        ),
    ),
    tokenizer="bytes",
)

if __name__ == "__main__":
    script_main(DATASET)
