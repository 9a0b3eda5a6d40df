"""Every named protocol and benchmark on one small model trained here, and what the sets' files hold: docs/protocols.md.

python bench/protocols.py DATA [STEPS [RUN]]; DATA has real files (a folder as MINILM_TEST_DATA names it); RUN is one
that this script trained before. Where a set is too large to be there, a piece of the same kind stands in, and the page
says so. Needs GPT-2's vocabulary.
"""

from __future__ import annotations

import bz2
import io
import json
import os
import re
import sys
import tempfile
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

from minilm.cli import run_door
from minilm.evaluation.protocols import TEXTS
from minilm.text.tokenizer import get_tokenizer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "protocols.md"
EVAL_TOKENS, QUESTIONS = 50_000, 200
STEPS, TRAIN_CHARS = 1_000, 3_000_000  # characters of each kind of text, at most
MODEL = ["--n_layer=3", "--n_head=3", "--n_embd=192", "--block_size=256", "--position=alibi", "--tokenizer=bpe:4096"]
MODEL += ["--batch_size=16", "--lr=3e-3", "--warmup_steps=50", "--eval_tokens=10000"]
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STAND_INS = {
    "wikitext2": "WikiText-2's validation text, the last 30 of its 60 articles (WikiText-103's is the same text)",
    "ptb": "Mikolov's validation text",
    "enwik8": "a Wikipedia dump of 2016 in the same XML, its second half",
    "text8": "the same, put through text8's rules",
    "lm1b": "rows of the held-out part",
    "openwebtext": "articles of the web",
    "lambada": "its development split",
    "lambada-openai": "the first 500 lines of the test set",
    "hellaswag": "a few rows",
    "cbt-ne": "one question",
}


def text8_of(xml: str) -> str:
    """Letters and single blanks, digits spelled: what Mahoney's filter leaves, on text with its tags taken out."""
    text = re.sub(r"&\w+;|\{\{.*?\}\}|\[\[[^\]|]*\|", " ", re.sub(r"<[^>]*>", " ", xml)).lower()
    text = re.sub(r"\d", lambda digit: f" {NUMBERS[int(digit[0])]} ", text)
    return re.sub(r"[^a-z]+", " ", text)


def copies_of(data: Path, folder: Path) -> dict[str, str]:
    """Writes a copy of each set under its name; the text to train on, and each set's test text."""

    def write(name: str, file: str, text: str) -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_text(text, encoding="utf-8")

    def member(archive: str, pattern: str) -> str:
        with zipfile.ZipFile(data / "hf_dummy" / archive) as file:
            return "".join(file.read(name).decode() for name in file.namelist() if re.search(pattern, name))

    wiki = (data / "wikitext-2-raw" / "wiki.valid.raw").read_text(encoding="utf-8")
    heads = [m.start() for m in re.finditer(r"^ = [^=].* = $", wiki, re.MULTILINE)]
    seen, held = wiki[: heads[len(heads) // 2]], wiki[heads[len(heads) // 2] :]
    for name in ("wikitext2", "wikitext103"):
        write(name, "wiki.test.raw", held)
    ptb = (data / "ptb" / "ptb.valid.txt").read_text(encoding="utf-8")
    write("ptb", "ptb.test.txt", ptb)
    (dump,) = (data / "wikipedia").glob("*.bz2")
    xml = bz2.decompress(dump.read_bytes()).decode()
    half = xml[len(xml) // 2 :][:400_000]
    write("enwik8", "enwik8", half * 20)  # a twentieth of the file is its test split
    spelled = text8_of(half)
    write("text8", "text8", spelled * 20)
    lm1b = member("lm1b__plain_text.zip", r"heldout")
    write("lm1b", "news.en.heldout-00000-of-00050", lm1b)
    pages = json.loads((data / "html_article_benchmark" / "ground-truth.json").read_text(encoding="utf-8"))
    bodies = [page["articleBody"] for page in pages.values() if page.get("articleBody")]
    for i, body in enumerate(bodies):
        write("openwebtext", f"{i:03}.txt", body)
    write(
        "lambada", "lambada_test_plain_text.txt", (data / "lambada" / "lambada_development_plain_text.txt").read_text()
    )
    write("lambada-openai", "lambada_test.jsonl", (data / "lambada" / "lambada_test.head500.jsonl").read_text())
    write("hellaswag", "hellaswag_val.jsonl", (data / "eval_small" / "hellaswag_small.jsonl").read_text())
    write("cbt-ne", "cbtest_NE_valid_2000ex.txt", member("cbt__NE.zip", r"NE_valid"))
    (folder / "cbt-cn").mkdir()
    ptb_train = (data / "ptb" / "ptb.train.txt").read_text(encoding="utf-8")[:TRAIN_CHARS]
    books = sorted((data / "gutenberg").glob("*.txt"))
    book = "".join(path.read_text(encoding="utf-8", errors="replace") for path in books)[:TRAIN_CHARS]
    train = {"wiki": seen, "ptb": ptb_train, "xml": xml[: len(xml) // 2][:TRAIN_CHARS], "book": book}
    (folder / "train").mkdir()
    for name, text in train.items():
        (folder / "train" / f"{name}.txt").write_text(text, encoding="utf-8")
    return {
        "wikitext2": held,
        "ptb": ptb,
        "enwik8": half,
        "text8": spelled,
        "lm1b": lm1b,
        "openwebtext": "\n".join(bodies),
    }


def holds(texts: dict[str, str]) -> list[str]:
    """What is in each text, counted."""
    gpt2 = get_tokenizer("gpt2")
    forms = {"wikitext2": "wikitext", "ptb": "ptb"}
    lines = [
        "| set | bytes a word | characters that occur | capitals | `<unk>` | in tags | markup | tokens a word | "
        "detokenized |"
    ]
    lines.append("|---" * 9 + "|")
    for name, whole in texts.items():
        text = whole[:300_000]
        n, words = len(text), text.split()
        unknown = sum(word == "<unk>" for word in words) / len(words)
        tags = sum(len(tag) for tag in re.findall(r"<(?!unk>)[a-z/!][^<>\n]*>", text)) / n
        marks = (
            sum(len(mark) for mark in re.findall(r"\[\[|\]\]|\{\{|\}\}|'''?|==+|&\w+;|^[*#:|!]+", text, re.MULTILINE))
            / n
        )
        per_word = len(gpt2.encode(text)) / len(words)
        plain = f"{len(gpt2.encode(TEXTS[forms[name]](text))) / len(words):.2f}" if name in forms else ""
        lines.append(
            f"| {name} | {len(text.encode()) / len(words):.2f} | {len(set(text)):,} | "
            f"{100 * sum(map(str.isupper, text)) / n:.1f} % | {100 * unknown:.1f} % | {100 * tags:.1f} % | "
            f"{100 * marks:.1f} % | {per_word:.2f} | {plain} |"
        )
    return lines


def main(data: str, steps: str = str(STEPS), run: str = "") -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MINILM_DATA"] = str(folder / "shards")
        texts = copies_of(Path(data).resolve(), folder / "copies")
        counted = holds(texts)
        os.chdir(folder)
        words = ["--data=copies/train", "--out_dir=runs/small", f"--max_steps={steps}", *MODEL]
        assert run or run_door("train", words) == 0
        shown = io.StringIO()
        words = ["--all", "--source", "copies", "--data", "copies/train", "--format", "json"]
        with redirect_stdout(shown):
            assert (
                run_door("eval", [run or "runs/small", *words, f"--eval_tokens={EVAL_TOKENS}", f"--limit={QUESTIONS}"])
                == 0
            )
    found = json.loads(shown.getvalue())
    names = [name for name in found["rows"][0] if name != "published"]  # no figure is published of this model
    table = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    table += [f"| {' | '.join(row[name] for name in names)} |" for row in found["rows"]]
    table += ["", f"The model has {found['notes'][0].partition(', ')[2]}."]
    stands = [f"- {set_name}: {what}." for set_name, what in STAND_INS.items()]
    PAGE.write_text(
        "\n".join(
            [
                "# Every protocol on one model",
                "",
                f"Made by `python bench/protocols.py DATA`. One small model, {steps} steps of 4,096 tokens of",
                "Wikipedia, newspaper, XML and books, on files of each kind: that its numbers differ as they do is",
                "what unit, text, context and beginning do ([evaluation](evaluation.md)). Of each text the first",
                f"{EVAL_TOKENS:,} bytes are scored (of a stream, tokens), of a benchmark {QUESTIONS} questions at",
                "most.",
                "",
                *table,
                "",
                "## What stands for what",
                "",
                *stands,
                "",
                "## What the files hold",
                "",
                "Of the first 300,000 characters of each; tokens are GPT-2's. *In tags*: characters of XML or HTML",
                "tags; *markup*: of a wiki's own marks.",
                "",
                *counted,
                "",
            ]
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
