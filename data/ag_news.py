"""AG News: titles and first sentences of 127,600 news articles in four classes, which are their labels."""

import html

from minilm.text.records import records
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

LABELS = ("world", "sports", "business", "science")
HOME = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/"


def documents(files: Files, split: str) -> Documents:
    for row in records(files, f"{split}.csv", columns=("class", "title", "text"), has_header=False):
        text = f"{row['title']}\n{row['text']}".replace("\\", " ")  # a backslash stands for a line end
        yield html.unescape(text.replace(" #", " &#")), LABELS[int(row["class"]) - 1]  # entities lost their ampersand


DATASET = Dataset(
    name="ag_news",
    description="127,600 short news items in four classes.",
    licence="non-commercial research",
    citation="Zhang et al. 2015, Character-level Convolutional Networks, arXiv:1509.01626",
    documents=documents,
    labels=LABELS,
    sources=(
        Source(f"{HOME}train.csv", 29_470_338, "76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e"),
        Source(f"{HOME}test.csv", 1_857_427, "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699"),
    ),
    in_gpt2="partly",
    splits=("train", "test"),
)

if __name__ == "__main__":
    script_main(DATASET)
