"""Compiled tokens: the pieces against the model's own code, int8 against its definition, eager until compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilm import sample_cli
from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.decoding import compiled
from minilm.decoding.compiled import After, Before, Head, Rows, accelerate, fast, packed, round_to_int8, unsupported
from minilm.decoding.engine import generate, generate_ids
from minilm.errors import MinilmError
from minilm.model.cache import Cache
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
TOLERANCE = 1e-4  # of compiled and eager logits: sums in another order; logits are of the order of 1
VARIANTS: list[dict[str, Any]] = [
    {},
    {
        "position": "rope",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "n_kv_head": 1,
        "attn_bias": False,
        "qk_norm": True,
    },
    {"parallel_residual": True, "position": "alibi", "n_unique_layer": 1, "n_factor": 8, "logit_softcap": 2.0},
    {"norm_position": "sandwich", "tie_embeddings": False, "vocab_used": 250, "norm": "dyt"},
    {"norm_position": "post", "norm": "fixed", "mlp_bias": False, "window": 5, "qk_norm": True},
]


def tiny(**changes: Any) -> GPT:
    torch.manual_seed(0)
    values: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "vocab_size": 257}
    return GPT(GPTConfig(**{**values, "init_std": 0.3, **changes})).eval()


class Uncompiled:
    """`Fast` with the pieces that would be compiled, run as they are."""

    def __init__(self, model: GPT, int8: bool) -> None:
        self.blocks = [self.block(b, packed(Before(b), int8), packed(After(b), int8)) for b in model.h]
        head = packed(Head(model), int8)
        self.head: Callable[[torch.Tensor], torch.Tensor] = lambda x: head(x.reshape(-1))[None]

    @staticmethod
    def block(block: Any, before: nn.Module, after: nn.Module) -> Any:
        def run(x: Any, layer: int, geometry: Any, cache: Any) -> Any:
            flat = x.reshape(-1)
            mixed = block.attn.mix(before(flat).view(1, 1, -1).split(block.attn.widths, dim=-1), layer, geometry, cache)
            return after(flat, mixed.reshape(-1)).view_as(x)

        return run


def both(model: GPT, quick: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits of some tokens by the model and by the pieces, each with its own cache."""
    found = []
    with torch.inference_mode():
        caches = [Cache(model.config, 1, 24) for _ in range(2)]
        for cache in caches:
            model.hidden(torch.tensor([[1, 2, 3]]), cache=cache)
        for token in (7, 200, 9, 4):
            ids = torch.tensor([[token]])
            slow = model.used_logits(model.hidden(ids, cache=caches[0])[:, -1])
            found.append((slow, quick.head(model.hidden(ids, cache=caches[1], blocks=quick.blocks)[:, -1])))
    return found


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_pieces_are_the_model(variant: dict[str, Any], int8: bool) -> None:
    model = tiny(**variant)
    if int8:
        round_to_int8(model)
    for slow, quick in both(model, Uncompiled(model, int8)):
        torch.testing.assert_close(quick, slow, atol=TOLERANCE, rtol=TOLERANCE)


def test_int8_is_the_nearest_step_of_each_row() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 12)
    with torch.no_grad():
        linear.weight[3] = 0.0  # a row of zeros stays one
        linear.weight[5] *= 1e-3  # a scale of its own
    model = nn.ModuleList([linear])
    before = linear.weight.detach().clone()
    round_to_int8(model)  # type: ignore[arg-type]
    step = before.abs().amax(dim=1, keepdim=True) / 127
    assert ((linear.weight - before).abs() <= step * 0.5001 + 1e-12).all()
    assert (linear.weight[3] == 0).all()
    rows = Rows(linear, int8=True)
    weight = rows.get_buffer("weight")
    assert weight.dtype == torch.int8
    assert int(weight.abs().max()) == 127
    torch.testing.assert_close(weight * rows.get_buffer("scale")[:, None], linear.weight.detach())
    x = torch.randn(40)
    torch.testing.assert_close(rows(x), F.linear(x, linear.weight, linear.bias))
    again = linear.weight.detach().clone()
    round_to_int8(model)  # type: ignore[arg-type]
    torch.testing.assert_close(linear.weight.detach(), again)


def test_eager_until_it_is_there_then_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, started, used = tiny(), list[Path](), list[int]()
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": 3, "stop_at_eot": False}
    plain = generate(model, BYTES, "ab", **options)
    monkeypatch.setattr(compiled, "_compile_beside", lambda config, int8, folder, errors: started.append(folder))
    assert accelerate(model, when="cached") == "eager"
    assert not started
    assert accelerate(model) == "eager until it is compiled, for this text or the next"
    (folder,) = started
    assert fast(model, 1) is None

    class Fake(Uncompiled):
        def __init__(self, model: GPT, folder: Path, int8: bool) -> None:
            super().__init__(model, int8)
            head = self.head

            def counted(x: torch.Tensor) -> torch.Tensor:
                used.append(1)
                return head(x)

            self.head = counted

    monkeypatch.setattr(compiled, "Fast", Fake)
    text = ""
    from minilm.decoding.engine import stream_batch

    for n, piece in enumerate(stream_batch(model, BYTES, ["ab"], **options)):
        text += piece.text
        if n == 5:
            folder.mkdir(parents=True)  # the compiler is done
    assert text == plain
    assert len(used) == 12 - 6
    used.clear()
    assert accelerate(model, when="cached") == "compiled"
    assert generate(model, BYTES, ["ab", "ab"], **{**options, "seed": [3, 3]}) == [plain, plain]
    assert not used  # two rows stay eager


def test_what_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unsupported(tiny(skip_mlp=(0,))) == "its blocks are not all of the config's kind"
    assert accelerate(tiny().bfloat16()).startswith("eager (only fp32")
    monkeypatch.setattr("minilm.runtime.compiler_missing", lambda: "no compiler")
    assert accelerate(tiny()) == "eager (no compiler)"


def test_failing_to_compile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.sys, "executable", "/bin/false")
    with pytest.raises(MinilmError, match="compiling failed"):
        accelerate(tiny(), when="now")


def test_the_door_says_how_it_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "model", BYTES)
    words = ["--checkpoint", str(tmp_path / "model"), "--prompt", "ab", "--seed", "1", "--max_new_tokens", "5"]
    assert run_door("sample", [*words, "--device", "cpu", "--precision", "int8"]) == 0
    out, err = capsys.readouterr()
    assert "int8 weights, eager, seed 1" in err
    round_to_int8(model)
    assert out == generate(model, BYTES, "ab", max_new_tokens=5, seed=1) + "\n"
    assert model.num_params() < sample_cli.WORTH_COMPILING  # or a process would have been started


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_compiled_is_eager(int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "reads_int8", lambda: True)
    model = tiny()
    if int8:
        round_to_int8(model)
    ids = torch.tensor([[5, 6, 7]])
    greedy = generate_ids(model, ids, 40, temperature=0.0)  # past the context
    assert accelerate(model, int8, "now") == "compiled"
    quick = fast(model, 1)
    assert isinstance(quick, compiled.Fast)
    for slow, found in both(model, quick):
        torch.testing.assert_close(found, slow, atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(generate_ids(model, ids, 40, temperature=0.0), greedy)
    other = tiny(n_layer=3)  # another checkpoint of the same shape needs no compiler
    assert accelerate(other, int8, "cached") == "compiled"
