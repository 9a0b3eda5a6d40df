"""WritingPrompts: 303,358 stories that people wrote for a prompt on Reddit; the label is its tag (wp, eu, ...)."""

import re
from itertools import chain

from minilm.text.detokenize import DETOKENIZERS
from minilm.text.records import lines, records
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main
from minilm.text.upstream import prompt_tag

NEWLINE = re.compile(r" ?<newline> ?")
NAMES = {"train": ("train", "train"), "val": ("valid", "validation"), "test": ("test", "test")}


def documents(files: Files, split: str, *, detokenize: bool = False) -> Documents:
    fairseq, hub = NAMES[split]
    prompts = list(lines(files, f"{fairseq}.wp_source"))
    pairs = zip(prompts, lines(files, f"{fairseq}.wp_target"), strict=True) if prompts else iter(())
    more = ((row["prompt"], row["story"]) for row in records(files, f"{hub}-*.parquet"))
    for prompt, story in chain(pairs, more):
        text = f"{prompt}\n\n{NEWLINE.sub(chr(10), story)}"
        yield DETOKENIZERS["reviews"](text) if detokenize else text, prompt_tag(prompt)


DATASET = Dataset(
    name="writing_prompts",
    description="303,358 stories written for a prompt.",
    licence="Reddit users' text, released for research",
    citation="Fan et al. 2018, Hierarchical Neural Story Generation, arXiv:1805.04833",
    documents=documents,
    sources=(Source("https://dl.fbaipublicfiles.com/fairseq/data/writingPrompts.tar.gz"),),
    about_bytes=370_000_000,
)

if __name__ == "__main__":
    script_main(DATASET)
