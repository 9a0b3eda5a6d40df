"""`sample.py --compare`: what is measured, against counting by hand and the model's own loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from minilm import sample_cli
from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.decoding.engine import generate, row_seeds
from minilm.errors import UsageError
from minilm.model.gpt import GPT
from minilm.sample_compare import measure, nats_of, parse_strategies
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257, init_std=0.3)).eval()
    monkeypatch.setattr(sample_cli, "load", lambda options: (model, BYTES, "a model"))
    monkeypatch.setattr(sample_cli, "_is_piped", lambda: False)
    return model


def test_names_of_strategies() -> None:
    known = {"top_p": float, "top_k": int}
    found = parse_strategies("greedy, top_p:0.9+top_k:5,nucleus+top_k:3", known)
    assert found == [
        ("greedy", {"strategy": "greedy"}),
        ("top_p:0.9+top_k:5", {"top_p": 0.9, "top_k": 5}),
        ("nucleus+top_k:3", {"strategy": "nucleus", "top_k": 3}),
    ]
    for text, said in (("greddy", "did you mean greedy"), ("topp:1", "did you mean top_p"), ("top_k:0.5", "no int")):
        with pytest.raises(UsageError, match=said):
            parse_strategies(text, known)


def test_what_is_measured(model: GPT) -> None:
    options: dict[str, Any] = {"max_new_tokens": 11, "seed": 4, "stop_at_eot": False, "top_k": 3}
    found = measure(model, BYTES, "x", "ab", 5, options)
    assert found.texts == generate(model, BYTES, ["ab"] * 5, **options)
    nats, repeated, pairs = [], [], []
    for seed in row_seeds(4, 5):
        ids = torch.tensor([[97, 98]])
        from minilm.decoding.engine import generate_ids

        row = generate_ids(model, ids, 11, seed=seed, top_k=3)[0]
        log_p = model(row[None, :-1]).detach()[0].log_softmax(-1)
        nats += [-float(log_p[i - 1, row[i]]) for i in range(2, 13)]
        new = row[2:].tolist()
        fours = [tuple(new[i : i + 4]) for i in range(8)]
        repeated.append(1 - len(set(fours)) / 8)
        pairs += [tuple(new[i : i + 2]) for i in range(10)]
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / 55), rel=1e-4)
    assert found.seq_rep_4 == pytest.approx(sum(repeated) / 5)
    assert found.distinct_2 == pytest.approx(len(set(pairs)) / 50)
    assert found.n_tokens == 11
    assert len(measure(model, BYTES, "x", "ab", 5, {**options, "temperature": 0.0}).texts) == 1


@pytest.mark.parametrize("n", [3, 14, 60])
def test_nats_past_the_context(model: GPT, n: int) -> None:
    tokens = torch.randint(256, (n,), generator=torch.Generator().manual_seed(1)).tolist()
    nats = nats_of(model, [1, 2, 3], tokens)
    assert len(nats) == n
    whole = model(torch.tensor([[1, 2, 3, *tokens][:16]])).detach()[0].log_softmax(-1)
    assert nats[0] == pytest.approx(-float(whole[2, tokens[0]]), abs=1e-4)
    text = [1, 2, 3, *tokens]
    last = [float(-model(torch.tensor([text[b : n + 2]])).detach()[0, -1].log_softmax(-1)[tokens[-1]])
            for b in range(max(0, n + 2 - 16), max(1, n + 2 - 7))]  # fmt: skip
    assert min(abs(nats[-1] - x) for x in last) < 1e-4


def test_the_door(model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "ab", "--max_new_tokens", "7", "--seed", "3", "--num_samples", "2", "--min_new_tokens", "7"]
    assert run_door("sample", [*words, "--compare", "greedy,top_k:5+temperature:0.8"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["strategy", "greedy", "top_k:5+temperature:0.8"]
    greedy: str = generate(model, BYTES, "ab", max_new_tokens=7, temperature=0.0, min_new_tokens=7)
    assert f"--- greedy\n{greedy}\n" in out
    assert run_door("sample", [*words, "--compare", "top_p:2"]) == 2
    assert "top_p must lie in (0, 1]" in capsys.readouterr().err
