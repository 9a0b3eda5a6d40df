"""WikiText-2: good and featured Wikipedia articles, raw (every word kept), one article a document."""

from collections.abc import Iterator

from minilm.text.clean import wikitext_articles
from minilm.text.download import Source
from minilm.text.scripts import Dataset, script_main
from minilm.text.sources import Files

FILES = {"train": "wiki.train.raw", "val": "wiki.valid.raw", "test": "wiki.test.raw"}


def documents(files: Files, split: str) -> Iterator[str]:
    for file in files.find(FILES[split]):
        yield from wikitext_articles(file.lines())


DATASET = Dataset(
    name="wikitext2",
    description="720 good and featured articles of the English Wikipedia, raw (13 MB).",
    licence="CC BY-SA 3.0 and GFDL",
    citation="Merity et al. 2016, Pointer Sentinel Mixture Models, arXiv:1609.07843",
    documents=documents,
    sources=(
        Source(
            "https://wikitext.smerity.com/wikitext-2-raw-v1.zip",
            bytes=4_721_645,
            sha256="ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        ),
    ),
)

if __name__ == "__main__":
    script_main(DATASET)
