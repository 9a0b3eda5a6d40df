"""WikiText-2: good and featured Wikipedia articles, one a document.

`--form` raw (every word kept) or tokenized (rare words are <unk>); `--detokenize` restores plain spacing.
"""

from typing import Literal

from minilm.text.detokenize import DETOKENIZERS
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main
from minilm.text.upstream import wikitext_files

HOME = "https://wikitext.smerity.com/wikitext-2-"
SOURCES = {
    "raw": Source(f"{HOME}raw-v1.zip", 4_721_645, "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"),
    "tokenized": Source(f"{HOME}v1.zip", 4_475_746, "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"),
}
Form = Literal["raw", "tokenized"]


def documents(files: Files, split: str, *, form: Form = "raw", detokenize: bool = False) -> Documents:
    articles = wikitext_files(files, split, form)
    yield from map(DETOKENIZERS["wikitext"], articles) if detokenize else articles


DATASET = Dataset(
    name="wikitext2",
    description="720 good and featured articles of the English Wikipedia.",
    licence="CC BY-SA 3.0 and GFDL",
    citation="Merity et al. 2016, Pointer Sentinel Mixture Models, arXiv:1609.07843",
    documents=documents,
    sources=lambda form, detokenize: (SOURCES[form],),
)

if __name__ == "__main__":
    script_main(DATASET)
