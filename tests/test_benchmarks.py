"""LAMBADA, HellaSwag and CBT: readers on real files, scores by brute force, the door; and lm-eval's own numbers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.evaluation.benchmarks import Question, continuation_scores, read_questions, run, words_of
from minilm.lm_eval import check_model_args
from minilm.model.gpt import GPT
from minilm.text.tokenizer import Tokenizer, get_tokenizer, train_tokenizer

BYTES = get_tokenizer("bytes")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(
        "bpe", ["the man walks the dog and the dog eats the bone " * 9, "a man sits. a dog runs."], 290
    )


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=tokenizer.vocab_size, init_std=0.3)
    return GPT(config).eval()


def brute_force(model: GPT, tokenizer: Tokenizer, context: str, continuation: str) -> tuple[float, int, bool]:
    """Token by token, each from a pass of its own over at most block_size tokens of the whole."""
    before = tokenizer.encode(context.rstrip()) or [tokenizer.eot]
    whole = (
        tokenizer.encode(context + continuation)
        if context.rstrip()
        else [tokenizer.eot, *tokenizer.encode(context + continuation)]
    )
    end = whole[len(before) :]
    read = [*before, *end][-model.config.block_size - 1 :]
    total, greedy = 0.0, True
    for i in range(len(read) - len(end), len(read)):
        with torch.no_grad():
            logits = model(torch.tensor([read[:i]]))[0, -1].double()
        total += float(logits.log_softmax(-1)[read[i]])
        greedy &= int(logits.argmax()) == read[i]
    return total, len(end), greedy


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_continuations_by_brute_force(model: GPT, tokenizer: Tokenizer, batch_tokens: int) -> None:
    pairs = [
        ("the man walks", " the dog"),
        ("the man walks ", "the dog"),
        ("", "the dog"),
        ("  ", "the dog"),
        ("the man walks the dog and the dog eats the bone and the man " * 3, " sits."),
        ("a", "b"),
    ]
    found = list(continuation_scores(model, tokenizer, pairs, batch_tokens=batch_tokens))
    for pair, scores in zip(pairs, found, strict=True):
        total, n, greedy = brute_force(model, tokenizer, *pair)
        assert scores.loglikelihood == pytest.approx(total, abs=1e-4)
        assert (scores.n_tokens, scores.is_greedy) == (n, greedy)
    with pytest.raises(UsageError, match=r"a continuation of .* tokens does not fit"):
        list(continuation_scores(model, tokenizer, [("a", "x" * 99)]))


def test_accuracies_and_perplexity(model: GPT, tokenizer: Tokenizer) -> None:
    questions = [
        Question("the man walks the", ("dog", "bone and the man", "x"), 0),
        Question("the dog eats", ("a man sits.", "the bone", "the dog and the dog"), 1),
        Question("", ("dog", "bone"), 1),
    ]
    lls = [[brute_force(model, tokenizer, q.context, f" {c}") for c in q.choices] for q in questions]
    expected = {
        "accuracy": np.mean(
            [int(np.argmax([s[0] for s in ll])) == q.gold for q, ll in zip(questions, lls, strict=True)]
        ),
        "accuracy_norm": np.mean(
            [
                int(np.argmax([s[0] / len(c) for s, c in zip(ll, q.choices, strict=True)])) == q.gold
                for q, ll in zip(questions, lls, strict=True)
            ]
        ),
        "accuracy_token": np.mean(
            [int(np.argmax([s[0] / s[1] for s in ll])) == q.gold for q, ll in zip(questions, lls, strict=True)]
        ),
    }
    found = run("hellaswag", model, tokenizer, questions)
    assert found.perplexity is None
    assert found.measures == pytest.approx({name: 100 * value for name, value in expected.items()})
    words = [Question("the man walks the", ("dog",)), Question("the dog eats the", ("bone",))]
    lls = [[brute_force(model, tokenizer, q.context, f" {q.choices[0]}")] for q in words]
    found = run("lambada", model, tokenizer, words)
    assert found.perplexity == pytest.approx(math.exp(-np.mean([ll[0][0] for ll in lls])), rel=1e-4)
    assert found.accuracy == np.mean([ll[0][2] for ll in lls])
    assert found.accuracy_norm is None
    assert "lambada: model, 2 questions" in str(found)
    with pytest.raises(UsageError, match="no question"):
        run("lambada", model, tokenizer, [])


def test_a_model_that_knows_the_word_is_right() -> None:
    """A model that always says what follows in its one text guesses every word, with perplexity near 1."""
    ids = BYTES.encode("0123456789")
    model = GPT(GPTConfig(1, 1, 8, block_size=16, vocab_size=257))

    def used_logits(x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 257)
        logits[torch.arange(len(x)), x[:, 0].long()] = 20.0
        return logits

    following = torch.zeros(257)
    for a, b in zip([ord(" "), *ids], [*ids, ord(" ")], strict=True):
        following[a] = b
    model.hidden = lambda ids, *a, **k: following[ids][..., None]  # type: ignore[method-assign]
    model.used_logits = used_logits  # type: ignore[method-assign]
    following[ord("9")] = ord(" ")
    found = run("lambada", model, BYTES, [Question("0123456789", ("0123",)), Question("0123456789", ("0124",))])
    assert found.accuracy == 0.5
    assert found.perplexity == pytest.approx(math.exp(10.0), rel=1e-3)  # -log p of the wrong end is 20


def test_lambadas_files(shared_data: Path) -> None:
    openai = read_questions("lambada-openai", shared_data / "lambada" / "lambada_test.head500.jsonl")
    assert len(openai) == 500
    assert openai[0].context.endswith("I don't care about")
    assert openai[0].choices == ("signs",)
    pairs = read_questions("lambada-openai", shared_data / "eval_small" / "lambada_openai_small.jsonl")
    assert pairs[0] == openai[0]
    original = read_questions("lambada", shared_data / "lambada" / "lambada_development_plain_text.txt")
    assert len(original) == 4869
    assert all(" " not in question.choices[0] for question in original)
    assert [*words_of(["", "\n", "one two\n"])] == [Question("one", ("two",))]


def test_hellaswags_files(shared_data: Path, tmp_path: Path) -> None:
    found = read_questions("hellaswag", shared_data / "eval_small" / "hellaswag_small.jsonl")
    assert {len(question.choices) for question in found} == {4}
    assert found[0].gold == 3
    official = tmp_path / "val.jsonl"
    raw = {"activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "label": 1}
    raw["endings"] = ["[header] x [title] y.", "gets  up [step] now.", " c", "d"]
    official.write_text(json.dumps(raw) + "\n")
    assert read_questions("hellaswag", official) == [
        Question("Roof: A man sits. He", (" x. y.", "gets up now.", "c", "d"), 1)
    ]


def test_cbts_file(shared_data: Path, tmp_path: Path) -> None:
    inside = "dummy_data/CBTest.tgz/CBTest/data/cbtest_NE_valid_2000ex.txt"
    text = zipfile.ZipFile(shared_data / "hf_dummy" / "cbt__NE.zip").read(inside).decode()
    path = tmp_path / "cbt.txt"
    path.write_text(text + "\n" + text, encoding="utf-8")
    first, second = read_questions("cbt-ne", path)
    assert first == second
    assert len(first.choices) == 10
    assert first.choices[first.gold] == "Chuck looked up to see a dog almost upon her."
    assert first.context.endswith("gave a little scream of fright. Johnny")
    assert first.context.startswith("At first she wouldn't go")
    assert len(read_questions("cbt-ne", path, limit=1)) == 1


@pytest.mark.parametrize(
    ("benchmark", "text", "message"),
    [
        ("hellaswagg", "", "there is no benchmark 'hellaswagg' .did you mean hellaswag"),
        ("hellaswag", "not json", "is no file of hellaswag .JSONDecodeError"),
        ("hellaswag", "{}", "is no file of hellaswag .KeyError"),
        *(
            ("hellaswag", json.dumps({"query": "a", "choices": ["b", "c"], "gold": 1} | wrong), message)
            for wrong, message in (
                ({"choices": []}, "question 1 of 0 choices"),
                ({"choices": ["", "b"]}, "question 1: write context and"),
                ({"choices": [5, "b"]}, "question 1: write context and"),
                ({"query": 3}, "question 1: write context and"),
                ({"gold": 7}, "question 1 of 2 choices: choice 7 cannot be the right one"),
            )
        ),
        ("lambada-openai", '{"context": null, "continuation": "x"}', "question 1: write context and"),
        ("cbt-ne", "1 a\n2 b", "is no file of cbt-ne .ValueError"),
        ("lambada", "", "holds no question of lambada"),
        ("lambada", None, "cannot be read .No such file"),
    ],
)
def test_wrong_files(benchmark: str, text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_questions(benchmark, path)


def test_the_door(
    model: GPT,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.save_pretrained(tmp_path / "gpt2", tokenizer)
    file = tmp_path / "lambada.txt"
    file.write_text("the man walks the dog\nthe dog eats the bone\n")
    monkeypatch.chdir(tmp_path)
    words = ["gpt2", "--benchmark=lambada-openai", "--source=lambada.txt", "--device=cpu"]
    assert run_door("eval", words) == 0
    shown = capsys.readouterr().out
    assert "lambada-openai: gpt2, 2 questions" in shown
    assert "published" not in shown  # two questions of 5,153
    monkeypatch.setattr("minilm.evaluation.reference.whole", lambda name: 2)
    assert run_door("eval", words) == 0
    assert "published accuracy, of as many questions: 45.99 (Radford et al. 2019" in capsys.readouterr().out
    assert run_door("eval", [*words, "--json", "--limit=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = run("lambada-openai", model, tokenizer, read_questions("lambada-openai", file, 1))
    assert found["perplexity"] == pytest.approx(expected.perplexity)
    assert run_door("eval", ["gpt2", "--benchmark=lambda"]) == 2
    assert "there is no benchmark 'lambda'" in capsys.readouterr().err


def test_model_args_of_lm_eval() -> None:
    assert check_model_args("runs/x", "64") == ("runs/x", 64)
    with pytest.raises(UsageError, match="model_args names no model: pass --model_args path="):
        check_model_args("", 64)
    for wrong in ("abc", 0, None):
        with pytest.raises(UsageError, match="batch_tokens is a whole number, 1 or more, not"):
            check_model_args("runs/x", wrong)


TASKS: dict[str, dict[str, Any]] = {
    "local_words": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity"},
            {"metric": "acc", "aggregation": "mean"},
        ],
    },
    "local_choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_pages": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "local_answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": " dog",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def local_tasks(folder: Path, texts: list[str], names: Iterable[str]) -> Path:
    """Writes documents and task files as lm-eval reads them; the tasks' folder."""
    yaml = pytest.importorskip("yaml")
    documents = [{"text": text, "choices": ["the dog", "a bone", "sits."], "label": i} for i, text in enumerate(texts)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "tasks").mkdir()
    for name in names:
        source: dict[str, Any] = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}},
        }
        task = {"task": name, "test_split": "test", **source, **TASKS[name]}
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder / "tasks"


@pytest.mark.slow
def test_lm_evals_own_numbers(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Every kind of task, from local files, with our model and with lm-eval's own `hf` model on the exported
    checkpoint; and our own benchmarks and protocol on the same text."""
    pytest.importorskip("accelerate")  # which lm-eval's hf model needs
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import minilm.lm_eval_model  # noqa: F401  registers the model
    from minilm.evaluation.perplexity import perplexity

    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(checkpoint, tokenizer)
    texts = ["the man walks the dog", "the dog eats the bone and a man sits", "a dog runs and " * 9 + "sits"]
    tasks = local_tasks(tmp_path, texts, TASKS)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results, samples = {}, {}
    for kind, argument in (("minilm", f"path={checkpoint}"), ("hf", f"pretrained={checkpoint},dtype=float32")):
        found = simple_evaluate(
            kind, argument, list(TASKS), task_manager=manager, device="cpu", batch_size=2, bootstrap_iters=0
        )
        results[kind] = found["results"]
        rows = sorted(found["samples"]["local_answers"], key=lambda row: row["doc_id"])
        samples[kind] = [row["resps"] for row in rows]
    for name in TASKS:
        ours, theirs = (
            {k: v for k, v in results[kind][name].items() if isinstance(v, float) and "stderr" not in k}
            for kind in ("minilm", "hf")
        )
        assert ours == pytest.approx(theirs, rel=1e-4), name
        assert ours
    words = results["minilm"]["local_words"]
    asked = run("lambada", model, tokenizer, list(words_of(texts)))
    assert (asked.perplexity, asked.accuracy) == pytest.approx((words["perplexity,none"], words["acc,none"]), rel=1e-4)
    questions = [Question(text, ("the dog", "a bone", "sits."), label) for label, text in enumerate(texts)]
    asked, choices = run("hellaswag", model, tokenizer, questions), results["minilm"]["local_choices"]
    assert (asked.accuracy, asked.accuracy_norm) == (choices["acc,none"], choices["acc_norm,none"])
    page = results["hf"]["local_pages"]
    whole = perplexity(model, texts, "lm-eval", tokenizer=tokenizer, text="as_is")
    assert whole.word_perplexity == pytest.approx(page["word_perplexity,none"], rel=1e-4)
    assert whole.bits_per_byte == pytest.approx(page["bits_per_byte,none"], rel=1e-4)
    # Greedy text is lm-eval's too, but for the last: there our window moves on and theirs cannot.
    assert samples["minilm"][:2] == samples["hf"][:2]


@pytest.mark.slow
def test_lm_evals_command_line(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    model.save_pretrained(tmp_path / "checkpoint", tokenizer)
    local_tasks(tmp_path, ["the man walks the dog", "the dog eats the bone"], ("local_choices",))
    words = [
        sys.executable,
        "-m",
        "minilm.lm_eval",
        "--model_args",
        f"path={tmp_path / 'checkpoint'}",
        "--device",
        "cpu",
    ]
    words += [
        "--tasks",
        "local_choices",
        "--include_path",
        str(tmp_path / "tasks"),
        "--output_path",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "local_choices" in done.stdout
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert 0 <= json.loads(file.read_text())["results"]["local_choices"]["acc,none"] <= 1
    words[4] = "path=nowhere.bin"
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1][:6]) == (2, "error:")


@pytest.mark.slow
def test_the_detokenizer_is_lm_evals(shared_data: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    from minilm.evaluation.protocols import TEXTS

    text = (shared_data / "wikitext-2-raw" / "wiki.valid.raw").read_text(encoding="utf-8")
    assert TEXTS["wikitext"](text) == wikitext_detokenizer({"page": text})
