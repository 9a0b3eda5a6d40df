"""Wikipedia of any `--language`: the Hub's plain text of November 2023, an article a document under its title.

`--source` also takes a raw dump (simplewiki-...-pages-articles.xml.bz2); its markup is turned into text here.
"""

from minilm.text.records import records
from minilm.text.scripts import Dataset, Documents, Files, HubFiles, script_main
from minilm.text.wikipedia import dump_articles

COMMIT = "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"


def documents(files: Files, split: str, *, language: str = "en") -> Documents:
    for row in records(files, "*.parquet", columns=("title", "text")):
        yield f"{row['title']}\n\n{row['text']}"
    for file in files.find("*.xml", "*pages-articles*"):
        yield from (f"{title}\n\n{text}" for title, text in dump_articles(file))


DATASET = Dataset(
    name="wikipedia",
    description="Every article of a Wikipedia, as plain text.",
    licence="CC BY-SA 4.0 and GFDL",
    citation="Wikimedia Foundation, dumps.wikimedia.org",
    documents=documents,
    sources=lambda language: (HubFiles("wikimedia/wikipedia", (f"20231101.{language}/*.parquet",), COMMIT),),
    about_bytes=11_600_000_000,
    splits=("train",),
    parts="row_groups",
)

if __name__ == "__main__":
    script_main(DATASET)
