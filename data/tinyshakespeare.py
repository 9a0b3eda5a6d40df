"""Tiny Shakespeare: 40,000 lines from the plays, the smallest real corpus, in one file.

The first 90 % of its characters train, the rest validates, each as one document: Karpathy's split in char-rnn and
nanoGPT, so that losses compare.
"""

from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def documents(files: Files, split: str) -> Documents:
    for file in files.find("*.txt"):
        text = file.text()
        border = int(len(text) * 0.9)
        yield text[:border] if split == "train" else text[border:]


DATASET = Dataset(
    name="tinyshakespeare",
    description="40,000 lines of Shakespeare in one file (1.1 MB).",
    licence="public domain",
    citation="Karpathy 2015, The Unreasonable Effectiveness of Recurrent Neural Networks",
    documents=documents,
    sources=(Source(URL, 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),),
    splits=("train", "val"),
)

if __name__ == "__main__":
    script_main(DATASET)
