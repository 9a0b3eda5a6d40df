"""FineWeb: 15 trillion tokens of filtered web pages. `--subset` is a folder of the repository: sample/10BT,
sample/100BT, data/CC-MAIN-2024-10, ..."""

from minilm.text.records import records
from minilm.text.scripts import Dataset, Documents, Files, HubFiles, script_main

COMMIT = "9bb295ddab0e05d785b879661af7260fed5140fc"


def documents(files: Files, split: str, *, subset: str = "sample/10BT") -> Documents:
    yield from (row["text"] for row in records(files, "*.parquet", columns=("text",)))


DATASET = Dataset(
    name="fineweb",
    description="Web pages of Common Crawl, filtered and deduplicated; by default the sample of 10 billion tokens.",
    licence="ODC-BY 1.0",
    citation="Penedo et al. 2024, The FineWeb Datasets, arXiv:2406.17557",
    documents=documents,
    sources=lambda subset: (HubFiles("HuggingFaceFW/fineweb", (f"{subset}/*.parquet",), COMMIT),),
    about_bytes=30_600_000_000,
    in_gpt2="partly",
    splits=("train",),
    parts="row_groups",
)

if __name__ == "__main__":
    script_main(DATASET)
