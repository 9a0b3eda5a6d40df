"""Amazon reviews of one product category, the label its stars; as published in `--year` 2018 or 2023."""

from minilm.text.records import records
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

HOME = "https://mcauleylab.ucsd.edu/public_datasets/data/"


def sources(category: str, year: int) -> tuple[Source, ...]:
    path = {2018: f"amazon_v2/categoryFilesSmall/{category}_5.json.gz",
            2023: f"amazon_2023/raw/review_categories/{category}.jsonl.gz"}  # fmt: skip
    return (Source(HOME + path[year]),)


def documents(files: Files, split: str, *, category: str = "All_Beauty", year: int = 2023) -> Documents:
    for row in records(files, f"{category}*.json", f"{category}*.jsonl"):
        title, text = row.get("title", row.get("summary")), row.get("text", row.get("reviewText"))
        stars = int(row["rating"] if "rating" in row else row["overall"])
        yield "\n\n".join(part for part in (title, text) if part).replace("<br />", "\n"), f"{stars} stars"


DATASET = Dataset(
    name="amazon_reviews",
    description="Product reviews of one category, with stars.",
    licence="academic use",
    citation="Hou et al. 2024, Bridging Language and Items, arXiv:2403.03952; Ni et al. 2019",
    documents=documents,
    labels=tuple(f"{n} stars" for n in range(1, 6)),
    sources=sources,
    about_bytes=90_000_000,
    splits=("train",),
)

if __name__ == "__main__":
    script_main(DATASET)
