"""FineWeb-Edu: the pages of FineWeb that a classifier found educational. `--subset` is a folder of the repository:
sample/10BT, sample/100BT, data/CC-MAIN-2024-10, ..."""

from dataclasses import replace

from minilm.datasets import fineweb

from minilm.text.scripts import HubFiles, script_main

COMMIT = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"

DATASET = replace(
    fineweb.DATASET,
    name="fineweb_edu",
    description="FineWeb's most educational pages; by default the sample of 10 billion tokens.",
    sources=lambda subset: (HubFiles("HuggingFaceFW/fineweb-edu", (f"{subset}/*.parquet",), COMMIT),),
    about_bytes=28_518_193_415,
)

if __name__ == "__main__":
    script_main(DATASET)
