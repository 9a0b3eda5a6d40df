"""One Billion Word: news sentences, shuffled, each a document; `--detokenize` restores plain spacing.

Of the held-out parts the first is the test set, as in Jozefowicz et al. 2016, and the others validate.
"""

from minilm.text.detokenize import DETOKENIZERS
from minilm.text.records import lines
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

URL = "https://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz"
PARTS = {
    "train": ("news.en-*-of-00100",),
    "val": ("news.en.heldout-0000[1-9]-of-00050", "news.en.heldout-000[1-4]?-of-00050"),
    "test": ("news.en.heldout-00000-of-00050",),
}


def documents(files: Files, split: str, *, detokenize: bool = False) -> Documents:
    sentences = lines(files, *PARTS[split])
    yield from map(DETOKENIZERS["lm1b"], sentences) if detokenize else sentences


DATASET = Dataset(
    name="lm1b",
    description="30 million shuffled sentences of news, 0.8 billion words.",
    licence="research use (WMT 2011 news)",
    citation="Chelba et al. 2013, One Billion Word Benchmark, arXiv:1312.3005",
    documents=documents,
    sources=(Source(URL, 1_792_209_805, "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e"),),
    in_gpt2="partly",
)

if __name__ == "__main__":
    script_main(DATASET)
