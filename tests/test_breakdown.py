"""The loss divided by context, frequency and length: by hand, and that every token is in one bin of each."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import prepared, sums

from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.evaluation.breakdown import Bin, breakdown, draw
from minilm.evaluation.perplexity import Part, perplexity
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")


def part(document: int, nats: list[float], targets: list[int], first_context: int = 1) -> Part:
    context = np.arange(first_context, first_context + len(nats))
    return Part(document, np.array(nats, np.float32), np.array(targets), context)


def test_bins_by_hand() -> None:
    found = breakdown([part(0, [1, 2, 3, 4, 5], [7, 7, 7, 8, 7]), part(1, [6, 8], [8, 9])], by_document=True)
    assert found.by_context == [Bin(1, 1, 2, 3.5), Bin(2, 2, 2, 5.0), Bin(3, 4, 2, 3.5), Bin(5, 5, 1, 5.0)]
    assert found.by_frequency == [Bin(1, 4, 7, 29 / 7)]
    assert found.by_length == [Bin(2, 2, 2, 7.0), Bin(5, 5, 5, 3.0)]
    many = breakdown([part(0, [1.0] * 12 + [3.0], [5] * 12 + [6])], by_document=False)
    assert many.by_frequency == [Bin(1, 9, 1, 3.0), Bin(10, 12, 12, 1.0)]
    assert many.by_length == []
    assert "  10 to 12" in str(many)
    assert "by tokens of the document" not in str(many)
    with pytest.raises(UsageError, match="nothing was scored"):
        breakdown([], by_document=True)


@pytest.mark.parametrize("stride", [0, 5])
def test_every_token_is_in_one_bin(stride: int) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=20, vocab_size=257)).eval()
    texts = [*sums(10, 4), "a", "Once upon a time."]
    parts: list[Part] = []
    whole = perplexity(model, texts, tokenizer=BYTES, stride=stride, parts=parts)
    found = breakdown(parts, by_document=True)
    for bins in found:
        assert sum(one.n_tokens for one in bins) == whole.n_tokens
        assert sum(one.n_tokens * one.nats for one in bins) == pytest.approx(whole.nats, rel=1e-6)
        assert all(a.high < b.low for a, b in pairwise(bins))
    assert max(one.high for one in found.by_context) == 20
    assert found.by_length[0][:3] == (1, 1, 1)
    assert found.by_length[0].nats == pytest.approx(math.log(257), abs=1)
    ids = np.concatenate([one.targets for one in parts])
    assert sorted(ids.tolist()) == sorted(token for text in texts for token in BYTES.encode(text))


def test_the_door_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    GPT(GPTConfig(1, 1, 8, block_size=32, vocab_size=257)).save_pretrained(tmp_path / "m", BYTES)
    words = [str(tmp_path / "m"), "--data", str(prepared(tmp_path / "sums")), "--device=cpu", "--breakdown"]
    assert run_door("eval", [*words, "--picture", str(tmp_path / "loss.svg")]) == 0
    shown = capsys.readouterr().out
    assert "by frequency of the token" in shown
    assert "  17 to 32 " in shown
    assert 'id="axes_3"' in (tmp_path / "loss.svg").read_text()
    with pytest.raises(UsageError, match="cannot be written"):
        draw({"m": breakdown([part(0, [1.0, 2.0], [1, 2])], by_document=True)}, tmp_path / "loss.xyz")
