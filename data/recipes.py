"""Cooking recipes in markdown, one a document: its title as a heading, then ingredients and directions."""

from minilm.text.records import whole
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main
from minilm.text.upstream import markdown_page

COMMIT = "61b488ee25afd3abacc7aec408752f3987a9f8b3"


def documents(files: Files, split: str) -> Documents:
    for file in files.find("*.md"):
        text = whole(files, file)
        if "## Directions" in text:
            yield markdown_page(text)


DATASET = Dataset(
    name="recipes",
    description="400 cooking recipes in markdown.",
    licence="Unlicense (public domain)",
    citation="public-domain-recipes",
    documents=documents,
    sources=(Source(f"https://github.com/ronaldl29/public-domain-recipes/archive/{COMMIT}.zip"),),
    about_bytes=60_000_000,
    splits=("train",),
)

if __name__ == "__main__":
    script_main(DATASET)
