"""WikiText-2: good and featured Wikipedia articles, one a document.

`--form` raw (every word kept) or tokenized (rare words are <unk>); `--detokenize` restores plain spacing.
"""

from dataclasses import replace

from minilm.datasets import wikitext103

from minilm.text.scripts import Source, script_main

HOME = "https://wikitext.smerity.com/wikitext-2-"
SOURCES = {
    "raw": Source(f"{HOME}raw-v1.zip", 4_721_645, "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"),
    "tokenized": Source(f"{HOME}v1.zip", 4_475_746, "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"),
}

DATASET = replace(
    wikitext103.DATASET,
    name="wikitext2",
    description="720 good and featured articles of the English Wikipedia.",
    sources=lambda form, detokenize: (SOURCES[form],),
)

if __name__ == "__main__":
    script_main(DATASET)
