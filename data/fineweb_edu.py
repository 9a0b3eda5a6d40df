"""FineWeb-Edu: the pages of FineWeb that a classifier found educational. `--subset` is a folder of the repository:
sample/10BT, sample/100BT, data/CC-MAIN-2024-10, ..."""

from minilm.text.records import records
from minilm.text.scripts import Dataset, Documents, Files, HubFiles, script_main

COMMIT = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"


def documents(files: Files, split: str, *, subset: str = "sample/10BT") -> Documents:
    for row in records(files, "*.parquet", columns=("text",)):
        yield row["text"]


DATASET = Dataset(
    name="fineweb_edu",
    description="FineWeb's most educational pages; by default the sample of 10 billion tokens.",
    licence="ODC-BY 1.0",
    citation="Penedo et al. 2024, The FineWeb Datasets, arXiv:2406.17557",
    documents=documents,
    sources=lambda subset: (HubFiles("HuggingFaceFW/fineweb-edu", (f"{subset}/*.parquet",), COMMIT),),
    about_bytes=28_518_193_415,
    in_gpt2="partly",
    splits=("train",),
    parts="row_groups",
)

if __name__ == "__main__":
    script_main(DATASET)
