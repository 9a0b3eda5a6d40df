"""WikiText-103: good and featured Wikipedia articles, one a document.

`--form` raw (every word kept) or tokenized (rare words are <unk>); `--detokenize` restores plain spacing.
"""

from typing import Literal

from minilm.text.detokenize import DETOKENIZERS
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main
from minilm.text.upstream import wikitext_files

HOME = "https://wikitext.smerity.com/wikitext-103-"
SOURCES = {
    "raw": Source(f"{HOME}raw-v1.zip", 191_984_949, "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"),
    "tokenized": Source(
        f"{HOME}v1.zip", 190_229_076, "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590"
    ),
}
Form = Literal["raw", "tokenized"]


def documents(files: Files, split: str, *, form: Form = "raw", detokenize: bool = False) -> Documents:
    articles = wikitext_files(files, split, form)
    yield from map(DETOKENIZERS["wikitext"], articles) if detokenize else articles


DATASET = Dataset(
    name="wikitext103",
    description="28,595 good and featured articles of the English Wikipedia.",
    licence="CC BY-SA 3.0 and GFDL",
    citation="Merity et al. 2016, Pointer Sentinel Mixture Models, arXiv:1609.07843",
    documents=documents,
    sources=lambda form, detokenize: (SOURCES[form],),
)

if __name__ == "__main__":
    script_main(DATASET)
