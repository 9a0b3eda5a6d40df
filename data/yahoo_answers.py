"""Yahoo! Answers: 1.46 million questions, each with its best answer; the label is one of ten topics."""

from minilm.text.records import records
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

URL = "https://s3.amazonaws.com/fast-ai-nlp/yahoo_answers_csv.tgz"
LABELS = ("society", "science", "health", "education", "computers", "sports", "business", "entertainment", "family",
          "politics")  # fmt: skip


def documents(files: Files, split: str) -> Documents:
    for row in records(files, f"{split}.csv", columns=("class", "title", "content", "answer"), has_header=False):
        question = "\n".join(part for part in (row["title"], row["content"]) if part)
        text = f"{question}\n\n{row['answer']}".replace("\\n", "\n").replace("<br />", "\n")
        yield text, LABELS[int(row["class"]) - 1]


DATASET = Dataset(
    name="yahoo_answers",
    description="1.46 million questions with their best answers, in ten topics.",
    licence="research use (Yahoo! Webscope)",
    citation="Zhang et al. 2015, Character-level Convolutional Networks, arXiv:1509.01626",
    documents=documents,
    labels=LABELS,
    sources=(Source(URL, 319_476_345, "2d4277855faf8b35259009425fa8f7fe1888b5644b47165508942d000f4c96ae"),),
    in_gpt2="partly",
    splits=("train", "test"),
)

if __name__ == "__main__":
    script_main(DATASET)
