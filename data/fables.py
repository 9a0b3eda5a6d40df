"""Aesop's fables, one a document, its title the first line."""

from minilm.text.records import lines
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main
from minilm.text.upstream import titled_sections

URL = "https://raw.githubusercontent.com/peterhogan/story-generator/b9366c7398d311b16f592b3d7f4ed79a4efb392e/aesop.txt"


def documents(files: Files, split: str) -> Documents:
    for title, text in titled_sections(lines(files, "aesop.txt")):
        yield f"{title}\n\n{text}"


DATASET = Dataset(
    name="fables",
    description="Aesop's fables.",
    licence="public domain",
    citation="Aesop, translated by George Fyler Townsend 1867",
    documents=documents,
    sources=(Source(URL, 188_374, "a8c44d730d6e34b19e3e8910a83cfe3f7d1585f6e94cea4323d252be010931d9"),),
    in_gpt2="partly",
    splits=("train",),
)

if __name__ == "__main__":
    script_main(DATASET)
