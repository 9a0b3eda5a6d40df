"""CC-Stories: story-like pages of Common Crawl, a line a document.

The original was removed by its makers; this is spacemanidol's re-creation after their recipe.
"""

from minilm.text.records import lines, records
from minilm.text.scripts import Dataset, Documents, Files, HubFiles, script_main


def documents(files: Files, split: str) -> Documents:
    yield from lines(files, "cc-stories*.txt")
    yield from (row["text"] for row in records(files, "*.parquet", columns=("text",)))


DATASET = Dataset(
    name="cc_stories",
    description="2.1 million story-like pages of Common Crawl (a re-creation).",
    licence="Common Crawl's terms",
    citation="Trinh and Le 2018, A Simple Method for Commonsense Reasoning, arXiv:1806.02847",
    documents=documents,
    sources=(HubFiles("spacemanidol/cc-stories", ("cc-stories.txt",)),),
    about_bytes=855_000_000,
    in_gpt2="partly",
    splits=("train",),
    parts="row_groups",
)

if __name__ == "__main__":
    script_main(DATASET)
