"""Yelp reviews with their stars (`--variant full`) or verdict (polarity) as label."""

from typing import Literal

from minilm.text.records import records
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

HOME = "https://s3.amazonaws.com/fast-ai-nlp/yelp_review_"
SOURCES = {
    "full": (196_146_755, "56006b0a17a370f1e366504b1f2c3e3754e4a3dda17d3e718a885c552869a559"),
    "polarity": (166_373_201, "528f22e286cad085948acbc3bea7e58188416546b0e364d0ae4ca0ce666abe35"),
}
LABELS = {"full": ("1 star", "2 stars", "3 stars", "4 stars", "5 stars"), "polarity": ("neg", "pos")}


def documents(files: Files, split: str, *, variant: Literal["full", "polarity"] = "full") -> Documents:
    for row in records(files, f"{split}.csv", columns=("label", "text"), has_header=False):
        yield row["text"].replace("\\n", "\n").replace('\\"', '"'), LABELS[variant][int(row["label"]) - 1]


DATASET = Dataset(
    name="yelp",
    description="700,000 reviews of businesses, with stars.",
    licence="Yelp's terms: academic use",
    citation="Zhang et al. 2015, Character-level Convolutional Networks, arXiv:1509.01626",
    documents=documents,
    labels=(*LABELS["full"], *LABELS["polarity"]),
    sources=lambda variant: (Source(f"{HOME}{variant}_csv.tgz", *SOURCES[variant]),),
    in_gpt2="partly",
    splits=("train", "test"),
)

if __name__ == "__main__":
    script_main(DATASET)
