"""docs/generation_measured.md: strategies, PPLM and int8 measured on a model of real text.

    python train.py --config tiny --data ag_news --tokenizer bpe:2048 ...       # any model of ag_news
    python bench/generation.py measure --checkpoint runs/tiny-ag_news --data PREPARED --source CSV_FOLDER
    python bench/generation.py report

`measure` adds to bench/results/generation.json what it does not hold yet; `report` writes the page from it. Steering is
judged by a classifier that shares nothing with the model (tf-idf and logistic regression of scikit-learn) and never saw
the documents that the bags and the discriminator come from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minilm.decoding.attributes import bag_of_words, steering
from minilm.decoding.engine import stream_batch
from minilm.decoding.rows import round_weights
from minilm.evaluation.intervals import wilson
from minilm.evaluation.perplexity import perplexity
from minilm.evaluation.repetition import distinct_n, seq_rep_n
from minilm.model.gpt import GPT
from minilm.runtime import versions
from minilm.sample_compare import nats_of
from minilm.text.shards import open_shards
from minilm.text.tokenizer import Tokenizer, get_tokenizer
from minilm.training.discriminator import labelled, train_discriminator

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "bench" / "results" / "generation.json", ROOT / "docs" / "generation_measured.md"
STRATEGIES: dict[str, dict[str, Any]] = {
    **{name: {"strategy": name} for name in ("sample", "greedy", "top_k", "nucleus", "min_p", "typical", "epsilon")},
    **{name: {"strategy": name} for name in ("eta", "mirostat", "ctrl", "contrastive")},
    "temperature 0.7": {"temperature": 0.7},
    "no_repeat_ngram 3": {"no_repeat_ngram": 3},
    "presence 0.5, frequency 0.5": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "beam 4": {"n_beams": 4},
    "diverse beam 4 in 2": {"n_beams": 4, "n_beam_groups": 2},
    "guidance 1.5": {"guidance": 1.5},
    "lookup 3": {"lookup": 3},
}
N_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 24, 10, 60
ROUNDED_TOKENS = 200_000
BAG_WORDS, N_STEERED, STEERED_TOKENS = 40, 24, 40
STRENGTHS = {"bag": ("", "step_size=0.1", "step_size=0.3"), "discriminator": ("", "step_size=0.3")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("measure").add_argument
    add("--checkpoint", type=Path, required=True, help="a step folder")
    add("--data", type=Path, required=True, help="the prepared ag_news that it was trained on")
    add("--source", type=Path, required=True, help="ag_news in upstream form, for its labels")
    add = commands.add_parser("round", help="what narrower weights cost a model in perplexity").add_argument
    add("--checkpoint", type=Path, required=True, help="a step folder")
    add("--data", type=Path, required=True, help="the prepared data that it was trained on")
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.checkpoint, options.data, options.source)
    if options.command == "round":
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
        found["rounded"] = of_rounded(GPT.from_pretrained(options.checkpoint), options.data)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    report()


def measure(checkpoint: Path, data: Path, source: Path) -> None:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    model, tokenizer = GPT.from_pretrained(checkpoint), get_tokenizer(checkpoint)
    split = open_shards(data).splits["val"]
    documents = [[tokenizer.eot, *split.document(i).tolist()] for i in range(split.n_documents)]

    def part(name: str, make: Callable[[], Any]) -> None:
        if name not in found:
            found[name] = make()
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps(found[name])[:300])

    part("setting", lambda: {"parameters": model.num_params(), "block_size": model.config.block_size, **versions()})
    for name, settings in STRATEGIES.items():
        part(f"strategy: {name}", lambda s=settings: of_strategy(model, tokenizer, documents, s))
    part("strategy: real text", lambda: of_real_text(model, documents))
    halves, judge = judged(source)
    bags = bags_of(halves)
    part("judge", lambda: {"accuracy": judge.accuracy, "n": judge.n})
    trained = train_discriminator(model, tokenizer, "ag_news", halves)
    part("head", lambda: str(trained))
    part("bags", lambda: bags)
    for label in trained.head.labels:
        tokens = bag_of_words(bags[label], tokenizer)[0]
        part(f"steered: none: {label}", lambda b=label: of_steering(model, tokenizer, judge, b, bags[b], None))
        for kind, strengths in STRENGTHS.items():
            for words in strengths:
                how = steering([tokens], None, "", words) if kind == "bag" else steering((), trained.head, label, words)
                name = f"steered: {kind} {words or 'published'}: {label}"
                part(name, lambda b=label, h=how: of_steering(model, tokenizer, judge, b, bags[b], h))


def written(
    model: GPT, tokenizer: Tokenizer, prompts: list[list[int]], **settings: Any
) -> tuple[list[list[int]], list[str]]:
    texts = [tokenizer.decode(prompt[1:]) for prompt in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    for piece in stream_batch(model, tokenizer, texts, begin_document=True, seed=0, **settings):
        rows[piece.row].append(piece.token)
    return rows, [tokenizer.decode([t for t in row if t != tokenizer.eot]) for row in rows]


def measured(model: GPT, prompts: list[list[int]], rows: list[list[int]]) -> dict[str, float]:
    nats = sum(sum(nats_of(model, prompt, row)) for prompt, row in zip(prompts, rows, strict=True))
    n = sum(map(len, rows))
    repeated = [seq_rep_n(row, 4) for row in rows if len(row) > 3]
    return {
        "tokens": n / len(rows),
        "seq_rep_4": sum(repeated) / len(repeated),
        "distinct_2": distinct_n(rows, 2),
        "perplexity": math.exp(nats / n),
    }


def of_strategy(model: GPT, tokenizer: Tokenizer, documents: list[list[int]], settings: dict[str, Any]) -> Any:
    prompts = [row[:PROMPT_TOKENS] for row in documents[:N_PROMPTS]]
    prompts = [[tokenizer.eot, *map(int, tokenizer.encode(tokenizer.decode(row[1:])))] for row in prompts]
    rows, texts = written(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, **settings)
    return {**measured(model, prompts, rows), "prompt": tokenizer.decode(prompts[0][1:]), "text": texts[0]}


def of_real_text(model: GPT, documents: list[list[int]]) -> Any:
    rows = [row[PROMPT_TOKENS : PROMPT_TOKENS + NEW_TOKENS] for row in documents[:N_PROMPTS]]
    return measured(model, [row[:PROMPT_TOKENS] for row in documents[:N_PROMPTS]], rows)


def of_rounded(model: GPT, data: Path) -> Any:
    """Perplexity of the validation text by the default protocol, by what weights are rounded to."""
    found = {}
    for kind in ("fp32", "bf16", "int8"):
        rounded = GPT(model.config).eval()
        rounded.load_state_dict(model.state_dict())
        round_weights(rounded, kind)
        found[kind] = perplexity(rounded, data, max_tokens=ROUNDED_TOKENS)
    kinds = {kind: result.token_perplexity for kind, result in found.items()}
    protocol = found["fp32"].protocol
    return {"data": data.name, "parameters": model.num_params(), "protocol": protocol.name, "kinds": kinds}


class Judge:
    """Which label a text has, by words alone."""

    def __init__(self, train: list[tuple[str, str]], test: list[tuple[str, str]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self.pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
        self.pipeline.fit([text for text, _ in train], [label for _, label in train])
        self.n = len(test)
        self.accuracy = float(self.pipeline.score([text for text, _ in test], [label for _, label in test]))

    def labels(self, texts: list[str]) -> list[str]:
        return [str(label) for label in self.pipeline.predict(texts)]


def judged(source: Path) -> tuple[list[tuple[str, str]], Judge]:
    """Half of the documents, for bags and discriminator, and a judge of the other half."""
    documents = labelled("ag_news", source, 0)
    order = np.random.default_rng(0).permutation(len(documents)).tolist()
    mine, theirs = order[: len(order) // 2], order[len(order) // 2 :]
    return [documents[i] for i in mine], Judge([documents[i] for i in theirs], [documents[i] for i in mine])


def words_of(text: str) -> Iterator[str]:
    return (word for word in "".join(c.lower() if c.isalpha() else " " for c in text).split() if len(word) > 3)


def bags_of(documents: list[tuple[str, str]]) -> dict[str, list[str]]:
    """For each label the words whose documents have it most surely: by the log-odds with one added, times how many."""
    counts = {label: Counter[str]() for _, label in documents}
    for text, label in documents:
        counts[label].update(set(words_of(text)))
    everywhere = sum(counts.values(), Counter[str]())

    def score(label: str, word: str) -> float:
        n = counts[label][word]
        return math.sqrt(n) * math.log((n + 1) / (everywhere[word] - n + 1))

    return {
        label: sorted(counts[label], key=lambda word, b=label: -score(b, word))[:BAG_WORDS] for label in sorted(counts)
    }


def of_steering(model: GPT, tokenizer: Tokenizer, judge: Judge, label: str, bag: list[str], how: Any) -> Any:
    """What the judge says of the texts, also without the bag's own words, and what the unsteered model says."""
    prompts = [[tokenizer.eot]] * N_STEERED
    extra = {"steering": how} if how is not None else {}
    rows, texts = written(
        model, tokenizer, prompts, max_new_tokens=STEERED_TOKENS, top_k=10, stop_at_eot=False, **extra
    )
    without = [" ".join(w for w in words_of(text) if w not in bag) for text in texts]
    right = sum(found == label for found in judge.labels(texts))
    unnamed = sum(found == label for found in judge.labels(without))
    return {
        "n": len(texts),
        "on_topic": right,
        "without_bag": unnamed,
        **measured(model, prompts, rows),
        "text": texts[0],
    }


def report() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    setting = found["setting"]
    lines = [
        "# Generation, measured",
        "",
        "Written by `python bench/generation.py`; numbers are in bench/results/generation.json.",
        "",
    ]
    lines += [
        f"One model of {setting['parameters']:,} parameters with a context of {setting['block_size']}, trained on AG "
        f"News (non-commercial research use), on {setting['processor']}, torch {setting['torch']}. It is small and "
        "hardly trained, so its texts are poor: what can be compared is the strategies.",
        "",
        "## Strategies",
        "",
        f"{N_PROMPTS} held-out news items, continued behind their first {PROMPT_TOKENS} tokens for at most "
        f"{NEW_TOKENS} tokens. Perplexity is of the texts by the model itself without filters; seq-rep-4 is the share "
        "of a text's 4-grams that it had before, distinct-2 that of different 2-grams over all texts.",
        "",
        "| strategy | tokens | seq-rep-4 | distinct-2 | perplexity |",
        "|---|---|---|---|---|",
    ]
    rows = {name.removeprefix("strategy: "): row for name, row in found.items() if name.startswith("strategy: ")}
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['tokens']:.1f} | {row['seq_rep_4']:.3f} | {row['distinct_2']:.3f} | "
            f"{row['perplexity']:.1f} |"
        )
    first = rows["greedy"]
    lines += ["", f"The first prompt, {first['prompt']!r}, continued:", ""]
    lines += [f"- **{name}**: {row['text']!r}" for name, row in rows.items() if "text" in row]
    lines += ["", "## PPLM", ""]
    lines += [
        f"New documents of {STEERED_TOKENS} tokens, top_k 10, {N_STEERED} for each topic. On topic: what a "
        f"judge says that knows the words of half the data ({100 * found['judge']['accuracy']:.1f} % right on "
        f"the other {found['judge']['n']:,}), with the 95 % Wilson interval; *without the bag's words*: the same after "
        f"they are taken out. Bags ({BAG_WORDS} words; those of one token are used) and discriminator come from the "
        f"other half. The discriminator, {found['head']}.",
        "",
        "| steering | texts | on topic | without the bag's words | perplexity |",
        "|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys(name.rsplit(": ", 1)[0] for name in found if name.startswith("steered: "))
    for kind in kinds:
        of_kind = [row for name, row in found.items() if name.rsplit(": ", 1)[0] == kind]
        n, right = sum(r["n"] for r in of_kind), sum(r["on_topic"] for r in of_kind)
        low, high = wilson(right, n)
        nats = sum(math.log(r["perplexity"]) for r in of_kind) / len(of_kind)
        lines.append(
            f"| {kind.removeprefix('steered: ')} | {n} | {100 * right / n:.1f} % ({100 * low:.1f} to {100 * high:.1f}) "
            f"| {100 * sum(r['without_bag'] for r in of_kind) / n:.1f} % | {math.exp(nats):.1f} |"
        )
    lines += ["", "Beginnings:", ""]
    lines += [
        f"- {name.removeprefix('steered: ')}: {row['text'][:110]!r}"
        for name, row in found.items()
        if name.startswith("steered: ")
    ]
    rounded = found["rounded"]
    fp32 = rounded["kinds"]["fp32"]
    lines += [
        "",
        "## Narrower weights",
        "",
        f"Perplexity a token by protocol `{rounded['protocol']}`, by what weights are rounded to: a model of "
        f"{rounded['parameters']:,} parameters, the first {ROUNDED_TOKENS:,} validation tokens of {rounded['data']}.",
        "",
        "| weights | perplexity | change |",
        "|---|---|---|",
    ]
    lines += [f"| {k} | {x:.4f} | {100 * (x / fp32 - 1):+.3f} % |" for k, x in rounded["kinds"].items()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    torch.set_num_threads(1)  # a model this small only loses by more
    main()
