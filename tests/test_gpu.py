"""Training on a card: what a CPU cannot show. bench/gpu_training.py runs it; MINILM_CARD=cpu what a CPU can of it."""

from __future__ import annotations

import os
import statistics
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rank_helpers import torchrun
from training_helpers import prepared, tiny_config

from minilm import bench, runtime
from minilm.config import GPTConfig, Parallel, TrainConfig
from minilm.decoding.engine import generate
from minilm.decoding.rows import accelerate
from minilm.lab.plan import tensor_bytes
from minilm.log import read_metrics
from minilm.model import losses
from minilm.model.cache import Cache
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer
from minilm.training import loop
from minilm.training.loop import Result, train
from minilm.training.muon import product_dtype
from minilm.training.objective import Objective
from minilm.training.optim import OPTIMIZERS, build_optimizers
from minilm.training.setup import Setup, loss_function, settle

CARD = os.environ.get("MINILM_CARD", "cuda")
ON_CARD = CARD == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_CARD and not torch.cuda.is_available(), reason="no CUDA device"),
]
PRECISIONS = [p for p in runtime.PRECISIONS if p not in (() if ON_CARD else ("tf32",))]
NARROW: dict[str, Any] = {"n_layer": 1, "n_embd": 16, "block_size": 16} if not ON_CARD else {}
# On a CPU Triton interprets them where TRITON_INTERPRET is 1.
needs_kernels = pytest.mark.skipif(
    find_spec("triton") is None or not (ON_CARD or os.environ.get("TRITON_INTERPRET")), reason="no Triton"
)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data") / "sums")


def config_of(sums: Path, out_dir: Path, **changes: Any) -> TrainConfig:
    return tiny_config(sums, out_dir, **{"device": CARD, **NARROW, **changes})


def missing(precision: str) -> bool:
    return precision in runtime.missing_precisions(torch.device(CARD))


def same(a: Result, b: Result, from_step: int = 0) -> None:
    assert b.losses == a.losses[from_step:]
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_fp32_losses_are_the_cpu_s(sums: Path, tmp_path: Path) -> None:
    card = train(config_of(sums, tmp_path / "card"))
    cpu = train(config_of(sums, tmp_path / "cpu", device="cpu"))
    assert card.losses == pytest.approx(cpu.losses, abs=1e-3)
    assert card.model.device.type == CARD


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_learns_and_resumes_to_the_bit(sums: Path, tmp_path: Path, precision: str) -> None:
    if missing(precision):
        pytest.skip(f"this machine has no {precision}")
    rounding = "stochastic" if precision.startswith("pure") else "nearest"
    changes: dict[str, Any] = {"precision": precision, "rounding": rounding, "schedule": "constant"}
    changes |= {"resid_dropout": 0.1, "max_steps": 24, "save_every_steps": 0} if ON_CARD else {}
    config = config_of(sums, tmp_path / "whole", **changes)
    whole = train(config)
    assert statistics.median(whole.losses[-5:]) < whole.losses[0] - 0.2  # a step or two of this rate go astray
    broken = replace(config, out_dir=str(tmp_path / "broken"))
    half = config.max_steps // 2
    train(replace(broken, max_steps=half))
    same(whole, train(replace(broken, existing="resume")), half)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_learns(sums: Path, tmp_path: Path, optimizer: str) -> None:
    result = train(config_of(sums, tmp_path / "run", optimizer=optimizer, lr=1e-2, max_steps=8, warmup_steps=0))
    assert result.losses[-1] < result.losses[0]


def test_compiled_is_eager(sums: Path, tmp_path: Path) -> None:
    eager = train(config_of(sums, tmp_path / "eager", max_steps=4))
    compiled = train(config_of(sums, tmp_path / "compiled", max_steps=4, compile="on"))
    assert compiled.losses == pytest.approx(eager.losses, abs=1e-3)


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2, "resid_dropout": 0.1}, {"optimizer": "muon"}])
def test_the_loop_breaks_no_graph_and_compiles_once(sums: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    torch._dynamo.reset()
    breaks, graphs = bench.compilations()
    train(config_of(sums, tmp_path / "run", max_steps=6, compile="on", log_every_steps=1, **changes))
    assert bench.compilations() == (breaks, graphs + 1)


def test_logits_in_chunks_are_the_whole_and_break_no_graph(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"max_steps": 4, "vocab_size": 331, "log_every_steps": 1}
    whole = train(config_of(sums, tmp_path / "whole", **changes))
    for name in ("PLAIN_BYTES", "CARD_PLAIN_BYTES"):
        monkeypatch.setattr(losses, name, 0)
    for name in ("CHUNK_BYTES", "CARD_CHUNK_BYTES", "COMPILED_CHUNK_BYTES"):
        monkeypatch.setattr(losses, name, 64 * 331 * 4)
    eager = train(config_of(sums, tmp_path / "eager", **changes))
    torch._dynamo.reset()
    breaks, graphs = bench.compilations()
    compiled = train(config_of(sums, tmp_path / "compiled", compile="on", **changes))
    assert eager.losses == pytest.approx(whole.losses, abs=1e-4)
    assert compiled.losses == pytest.approx(whole.losses, abs=1e-3)
    assert bench.compilations() == (breaks, graphs + 1)  # a block; on a card a chunk's loss is a kernel


@pytest.mark.skipif(not ON_CARD, reason="a CPU waits for nothing")
@pytest.mark.parametrize("compile_", ["off", "on"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_between_logs_do_not_wait_for_the_card(
    sums: Path, tmp_path: Path, optimizer: str, compile_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises where something waits, from the third step to the end of the last but one; the first and the last
    read their loss back."""
    config = config_of(sums, tmp_path / "run", max_steps=8, log_every_steps=100, eval_every_steps=0,
                       save_every_steps=0, optimizer=optimizer, compile=compile_)  # fmt: skip
    begins = loop.lr_factor

    def watched(step: int, config: TrainConfig) -> float:
        torch.cuda.set_sync_debug_mode("error" if 2 <= step < config.max_steps - 1 else "default")
        return begins(step, config)

    monkeypatch.setattr(loop, "lr_factor", watched)
    try:
        assert len(train(config).losses) == 8
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not ON_CARD, reason="asks the card")
def test_muon_multiplies_in_bf16_where_the_card_does() -> None:
    native = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    assert (product_dtype(torch.device(CARD)) == torch.bfloat16) == native


def test_recomputing_and_micro_batches_change_nothing_but_memory(sums: Path, tmp_path: Path) -> None:
    plain = train(config_of(sums, tmp_path / "plain", max_steps=4, micro_batch_size=8))
    again = train(config_of(sums, tmp_path / "again", max_steps=4, micro_batch_size=8, recompute=True))
    cut = train(config_of(sums, tmp_path / "cut", max_steps=4, micro_batch_size=2))
    assert again.losses == pytest.approx(plain.losses, abs=1e-5)
    assert cut.losses == pytest.approx(plain.losses, abs=1e-4)


def test_an_overflow_is_told_on_a_card(sums: Path, tmp_path: Path) -> None:
    """A card does not wait for the loss of each step, so that a run that diverged is told when it logs."""
    from minilm.errors import MinilmError

    with pytest.raises(MinilmError, match="lower --lr"):
        train(config_of(sums, tmp_path / "run", lr=1e30, grad_clip=0.0, max_steps=10, optimizer="sgd"))


@pytest.mark.skipif(not ON_CARD, reason="asks the card's allocator")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_takes_the_memory_that_was_estimated(precision: str, recompute: bool) -> None:
    if missing(precision):
        pytest.skip(f"this card has no {precision}")
    model_config = GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=512, vocab_size=8192)
    config = TrainConfig(model=model_config, recompute=recompute, compile="off")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = GPT(model_config).cuda()
    optimizers = build_optimizers(model, config)
    loss_of = loss_function(Objective(model, config), Setup("cuda", precision, False, 8, 1.0, recompute))
    ids = torch.zeros(8, 512, dtype=torch.long, device="cuda")
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        loss_of(ids, ids).backward()
        for optimizer in optimizers:
            optimizer.step()
    taken = torch.cuda.max_memory_allocated() - before
    predicted, _ = tensor_bytes(model, config, precision, 8, card=True)
    assert predicted == pytest.approx(taken, rel=0.25)


@pytest.mark.skipif(not ON_CARD, reason="a card's choice")
def test_micro_batches_fill_the_card_without_running_out(sums: Path, tmp_path: Path) -> None:
    config = config_of(sums, tmp_path / "run", n_layer=6, n_embd=384, n_head=6, batch_size=4096, vocab_size=8192)
    setup = settle(config, GPT(config.model).cuda(), torch.device("cuda"))
    assert 1 <= setup.micro_batch_size <= 4096
    train(replace(config, max_steps=1, eval_every_steps=0, save_every_steps=0))


def test_sampling_and_validation_run_where_the_model_is(sums: Path, tmp_path: Path) -> None:
    result = train(config_of(sums, tmp_path / "run", max_steps=2, eval_every_steps=1, eval_samples=1))
    assert (result.run / "samples.jsonl").is_file()
    tuned = replace(config_of(sums, tmp_path / "tuned", max_steps=2, lora_rank=2), model=GPTConfig())
    assert train(replace(tuned, init=str(result.checkpoint))).val_loss


@pytest.mark.parametrize("n_rows", [1, 3])
def test_decoding_by_a_graph_is_eager(n_rows: int) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=257, init_std=0.3)).to(CARD).eval()
    prompts = [[5, 6, 7], [9], [1, 2, 3, 4, 5]][:n_rows]
    options: dict[str, Any] = {"max_new_tokens": 60, "seed": 1, "stop_at_eot": False}  # past the context: other caches
    texts = ["".join(map(chr, prompt)) for prompt in prompts]
    plain = generate(model, get_tokenizer("bytes"), texts, **options)
    assert accelerate(model, when="now") == ("compiled, a CUDA graph" if ON_CARD else "products of rows.cpp")
    assert generate(model, get_tokenizer("bytes"), texts, **options) == plain


@needs_kernels
@pytest.mark.parametrize(("n_columns", "n_used", "dtype"), [(64, 50, torch.float32), (9024, 8999, torch.bfloat16)])
def test_the_kernel_of_a_chunk_is_cross_entropy(n_columns: int, n_used: int, dtype: torch.dtype) -> None:
    from minilm.model.kernels import nats_and_gradient

    torch.manual_seed(0)
    logits = (4 * torch.randn(5, n_columns + 8, device=CARD)).to(dtype)[:, :n_columns]  # rows apart
    targets = torch.randint(n_used, (5,), device=CARD)
    targets[1] = losses.IGNORE
    plain = logits[:, :n_used].float().requires_grad_()
    expected = losses.cross_entropy(plain[None], targets[None], "sum")
    expected.backward()
    assert plain.grad is not None
    nats, gradient = nats_and_gradient(logits, targets, n_used)
    assert nats.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        gradient[:, :n_used].float(), plain.grad, atol=1e-6 if dtype.itemsize == 4 else 4e-3, rtol=0
    )
    assert not gradient[:, n_used:].any()


FORMS: list[dict[str, Any]] = [
    {"n_inner": 90},
    {"attn_bias": False, "mlp_bias": False, "norm_bias": False, "tie_embeddings": False},
    {"position": "sinusoidal", "attn_scale_by_layer": True, "embd_norm": True},
    {"norm_scale": False, "vocab_used": 90, "logit_softcap": 5.0, "n_factor": 16},
]


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_five_kernels_a_block_are_the_model(form: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from minilm.decoding import card

    monkeypatch.setattr(card, "COLUMNS", 32)  # so that a product takes several
    monkeypatch.setattr(card, "SLOTS", 4)
    torch.manual_seed(0)
    size: dict[str, Any] = {"n_layer": 2, "n_head": 3, "n_embd": 60, "block_size": 24, "vocab_size": 101}
    model = GPT(GPTConfig(**size, init_std=0.3, **form)).to(CARD).eval()
    one = card.one_row(model)
    assert one is not None
    ids = torch.randint(90, (1, 12), device=CARD)
    caches = [Cache(model.config, 1, 24, device=CARD) for _ in range(2)]
    with torch.inference_mode():
        for cache in caches:
            model.hidden(ids[:, :9], cache=cache)
        for at in range(9, 12):
            new, slot = ids[:, at : at + 1], torch.full((1,), at, device=CARD)
            expected = model.hidden(new, cache=caches[0])
            x = one(model, new, slot, slot, caches[1].keys, caches[1].values)
            torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)
            logits = one.head(model, x[:, 0])
            torch.testing.assert_close(logits, model.used_logits(expected[:, 0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(caches[1].keys, caches[0].keys, atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("other", [{"norm": "rmsnorm"}, {"position": "rope"}, {"n_kv_head": 1}, {"window": 4}])
def test_other_models_have_no_kernels_of_a_block(other: dict[str, Any]) -> None:
    from minilm.decoding.card import one_row
    from minilm.model.lora import add

    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "vocab_size": 11}
    assert one_row(GPT(GPTConfig(**sizes, **other))) is None
    adapted = GPT(GPTConfig(**sizes))
    add(adapted, ("attention",), 2, 2.0, 0.0)
    assert one_row(adapted) is None


@pytest.mark.skipif(ON_CARD and torch.cuda.device_count() < 2, reason="needs two cards")
@pytest.mark.parametrize("parallel", get_args(Parallel))
def test_two_cards_are_one_and_resume_on_one(sums: Path, tmp_path: Path, parallel: str) -> None:
    """NCCL on cards, gloo without."""
    one = train(config_of(sums, tmp_path / "one"))
    config = config_of(sums, tmp_path / "two", parallel=parallel)
    done = torchrun(tmp_path, config, 2)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(one.losses, abs=1e-3)
    longer = replace(config, max_steps=12, existing="resume", model=one.model.config)
    assert train(longer).step == 12
