"""LAMBADA: passages whose last word needs the whole passage. `--variant openai` (plain, test only) or original
(tokenised, in lower case; train are 2,662 novels, val and test passages)."""

from typing import Literal

from minilm.text.records import lines, records, whole
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
ORIGINAL = "https://zenodo.org/record/2630551/files/lambada-dataset.tar.gz"
SOURCES = {
    "openai": Source(OPENAI, 1_819_752, "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226"),
    "original": Source(ORIGINAL, 334_527_694, "8fbe499096ddbdcbbd0cac406861b5026fb451d15b8fe04e0e4f3d082f2ad5d7"),
}
NAMES = {"val": "lambada_development_plain_text.txt", "test": "lambada_test_plain_text.txt"}


def documents(files: Files, split: str, *, variant: Literal["openai", "original"] = "openai") -> Documents:
    if split == "train":
        yield from (whole(files, file) for file in files.find("train-novels/*.txt"))
        return
    yield from lines(files, NAMES[split])
    yield from (row["text"] for row in records(files, f"lambada_{split}*.jsonl"))


DATASET = Dataset(
    name="lambada",
    description="Passages whose last word needs all of the context.",
    licence="CC BY 4.0; OpenAI's variant MIT",
    citation="Paperno et al. 2016, arXiv:1606.06031; Radford et al. 2019",
    documents=documents,
    sources=lambda variant: (SOURCES[variant],),
)

if __name__ == "__main__":
    script_main(DATASET)
