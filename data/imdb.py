"""IMDB: 50,000 film reviews, half for testing, the label neg or pos; `--unlabelled` adds 50,000 more to train."""

from minilm.text.records import records, whole
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"


def documents(files: Files, split: str, *, unlabelled: bool = False) -> Documents:
    kinds = ["neg", "pos", *(["unsup"] if unlabelled and split == "train" else [])]
    for file in files.find(*(f"{split}/{kind}/*.txt" for kind in kinds)):
        label = file.name.split("/")[-2]
        yield whole(files, file).replace("<br /><br />", "\n\n").replace("<br />", "\n"), label.replace("unsup", "")
    for row in records(files, f"{split}-*.parquet", columns=("text", "label")):
        yield row["text"].replace("<br />", "\n"), ("neg", "pos", "")[row["label"]]


DATASET = Dataset(
    name="imdb",
    description="50,000 film reviews with their verdict.",
    licence="research use",
    citation="Maas et al. 2011, Learning Word Vectors for Sentiment Analysis",
    documents=documents,
    labels=("neg", "pos"),
    sources=(Source(URL, 84_125_825, "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"),),
    in_gpt2="partly",
    splits=("train", "test"),
    parts="row_groups",
)

if __name__ == "__main__":
    script_main(DATASET)
