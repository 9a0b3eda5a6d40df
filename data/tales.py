"""Tales: short stories made here from a seed, that a grader can check. The default data; nothing is downloaded.

`--megabytes` of training text in stories of one `--level` (1 to 4); `--style` is plain, fable, news, letter, diary or
dialogue, or several of them, told in turn: plain,fable. Validation has 0.5 MB from seeds that training never uses.
"""

import hashlib

from minilm.text.scripts import Dataset, Documents, Files, Made, script_main
from minilm.text.tales.stream import parallel_stories

VAL_MEGABYTES = 0.5


def documents(
    files: Files, split: str, *, level: int = 1, style: str = "plain", seed: int = 0, megabytes: float = 50.0
) -> Documents:
    return parallel_stories(style, megabytes if split == "train" else VAL_MEGABYTES, seed, level, split)


def made(*, level: int, style: str, seed: int, megabytes: float) -> Made:
    sample = "\n".join(parallel_stories(style, min(megabytes, 0.2), seed, level))
    return Made(hashlib.sha256(sample.encode()).hexdigest(), text_bytes=int((megabytes + VAL_MEGABYTES) * 1e6))


DATASET = Dataset(
    name="tales",
    description="Short stories from a small simulated world, made here from a seed.",
    licence="MIT, as minilm",
    citation="minilm's docs/tales.md",
    documents=documents,
    splits=("train", "val"),
    tokenizer="words",
    made=made,
)

if __name__ == "__main__":
    script_main(DATASET)
