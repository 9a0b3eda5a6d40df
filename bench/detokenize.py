"""How much of real tokenised text the detokenizers bring back.

    python bench/detokenize.py FOLDER_OF_TEST_DATA

Penn Treebank: NLTK's 5 % sample has the newspaper's own sentences (raw) beside the tokens (combined), so detokenized
tokens are compared with what was printed: sentences equal to the character, and words equal. The others' originals are
not at hand: there the text is tokenized again by rules below that imitate each tokenizer, and what comes back is
compared with what was given: a lower bound, since the imitation errs too.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path

from minilm.text.detokenize import DETOKENIZERS

LINES = 2000
LEAF = re.compile(r"\(([^\s()]+) ([^\s()]+)\)")
ENDINGS = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)", re.IGNORECASE)


def wikitext(text: str) -> str:
    text = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", text)
    text = re.sub(r"(?<=\d)([,.])(?=\d)", r" @\1@ ", text)
    text = re.sub(r"(?<=\d)–(?=\d)", " – ", text)
    return moses(text, '[!?;:,()\\[\\]"%$£/]')


def moses(text: str, marks: str = '[!?;:()\\[\\]"%$£]|,(?!\\d)') -> str:
    """Spaces around punctuation, a full stop split off at the line's end or before a blank and a capital."""
    text = re.sub(f"({marks})", r" \1 ", text)
    text = re.sub(r"(?<=[\w)”\"' ])\.(?=\s*(?:$|[\"')]))|(?<=[a-z\d)]{2})\.(?= +[A-Z\"])", " .", text)
    text = re.sub(r"\.{3}", " ... ", text)
    text = ENDINGS.sub(r" \1", text)
    return " ".join(text.split())


def quoted(text: str) -> str:
    """Straight quotes as `` and ''."""
    parts = text.split('"')
    return "".join(part + (("`` ", " ''")[i % 2] if i + 1 < len(parts) else "") for i, part in enumerate(parts))


def compare(pairs: Iterable[tuple[str, str]]) -> tuple[int, float, float]:
    """(lines, share that are equal, share of the truth's words that come back in their places)."""
    n = equal = words = found = 0
    for got, truth in pairs:
        mine, right = got.split(), truth.split()
        n += 1
        equal += mine == right
        words += len(right)
        found += sum(block.size for block in SequenceMatcher(None, mine, right, autojunk=False).get_matching_blocks())
    return n, equal / n, found / words


def treebank(folder: Path) -> Iterator[tuple[str, str]]:
    """(detokenized, printed) sentences of the files in which both have as many."""
    with zipfile.ZipFile(folder / "nltk_data" / "treebank.zip") as archive:
        names = [Path(name).stem for name in archive.namelist() if name.startswith("treebank/combined/wsj")]
        for name in names:
            raw = archive.read(f"treebank/raw/{name}").decode("latin-1").replace(".START", "")
            printed = [" ".join(line.split()) for line in raw.splitlines() if line.strip()]
            trees = re.split(r"\n(?=\( ?\()", archive.read(f"treebank/combined/{name}.mrg").decode("latin-1").strip())
            leaves = [[word for tag, word in LEAF.findall(tree) if tag != "-NONE-"] for tree in trees]
            if len(printed) == len(leaves):
                yield from (
                    (DETOKENIZERS["ptb"](" ".join(words)), line) for words, line in zip(leaves, printed, strict=True)
                )


def again(style: str, lines: Iterable[str], tokenize: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if line.strip():
            yield tokenize(DETOKENIZERS[style](line)), line


def main() -> None:
    folder = Path(sys.argv[1])
    wiki = (folder / "wikitext-2-raw" / "wiki.valid.raw").read_text(encoding="utf-8").splitlines()[:LINES]
    with zipfile.ZipFile(folder / "hf_dummy" / "lm1b__plain_text.zip") as archive:
        news = [
            line
            for name in archive.namelist()
            if "news.en" in name
            for line in archive.read(name).decode().splitlines()
        ]
    prompts = (folder / "writingPrompts" / "valid.wp_source").read_text(encoding="utf-8").splitlines()
    rows = {
        "ptb, against the printed newspaper": treebank(folder),
        "wikitext, tokenized again": again("wikitext", wiki, wikitext),
        "lm1b, tokenized again": again("lm1b", news, moses),
        "reviews (WritingPrompts' prompts), tokenized again": again(
            "reviews", prompts, lambda text: moses(quoted(text))
        ),
    }
    print("| text | lines | lines equal | words in place |\n|---|---|---|---|")
    for name, pairs in rows.items():
        n, equal, words = compare(pairs)
        print(f"| {name} | {n:,} | {equal:.1%} | {words:.1%} |")


if __name__ == "__main__":
    main()
