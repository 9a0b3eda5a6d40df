"""Few rows by rows.cpp: its products against float64, decoding against the model's own code, eager until built."""

from __future__ import annotations

import argparse
import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from minilm import sample_cli
from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.decoding import rows
from minilm.decoding.contexts import Contexts
from minilm.decoding.engine import generate, generate_ids, stream_batch
from minilm.decoding.fused import Fused
from minilm.decoding.graphs import Graphs
from minilm.decoding.rows import Fast, Rows, accelerate, fast, round_weights, unsupported
from minilm.decoding.strategies import Strategy, choose, choose_unseen
from minilm.errors import MinilmError
from minilm.model.cache import Cache
from minilm.model.geometry import locate
from minilm.model.gpt import GPT
from minilm.text.tales import stories
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
TOLERANCE = 1e-4  # of the logits of both paths: sums in another order; logits are of the order of 1
INT8_TOLERANCE = 2e-3  # inputs are rounded to 16 bits too
KINDS = ("fp32", "bf16", "int8")
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
    {"skip_mlp": (0,), "skip_attn": (1,)},
    {"attn_bias": False, "mlp_bias": False, "norm_bias": False, "attn_scale_by_layer": True, "n_unique_layer": 1},
    {"norm_scale": False, "attn_scale": False, "position": "sinusoidal", "n_embd": 40, "n_inner": 52},
]
FUSED = (0, 6, 7)  # of these


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rows.cpp, built once."""
    if why := unsupported():
        pytest.skip(why)
    path = tmp_path_factory.mktemp("rows") / "rows.so"
    _, said = rows._build(path, rows.subprocess.PIPE).communicate()
    assert path.is_file(), said.decode()
    return path


@pytest.fixture
def built(library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "library_path", lambda: library)
    return library


def tiny(**changes: Any) -> GPT:
    torch.manual_seed(0)
    values: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "vocab_size": 257}
    return GPT(GPTConfig(**{**values, "init_std": 0.3, **changes})).eval()


def both(model: GPT, quick: Fast, n_rows: int) -> list[tuple[Tensor, Tensor]]:
    """Logits of some tokens by the model and by rows.cpp, each with its own cache."""
    found = []
    with torch.inference_mode():
        caches = [Cache(model.config, n_rows, 24, model.wte.weight.dtype) for _ in range(2)]
        for cache in caches:
            model.hidden(torch.tensor([[1, 2, 3]] * n_rows), cache=cache)
        for token in (7, 200, 9, 4):
            ids = torch.tensor([[token + i] for i in range(n_rows)])
            slow = model.used_logits(model.hidden(ids, cache=caches[0])[:, -1])
            found.append((slow, quick.head(model, model.hidden(ids, cache=caches[1], blocks=quick.blocks)[:, -1])))
    return found


@given(
    M=st.integers(1, 19),
    N=st.integers(1, 21),
    K=st.integers(1, 150) | st.sampled_from((767, 768, 769, 1600, 8200)),
    kind=st.sampled_from(KINDS),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_products_are_float64_s(library: Path, M: int, N: int, K: int, kind: str, bias: bool, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "library_path", lambda: library)
        random = torch.Generator().manual_seed(seed)
        linear = nn.Linear(K, N, bias=bias).requires_grad_(False)
        linear.weight.copy_(torch.randn(N, K, generator=random))
        round_weights(nn.ModuleList([linear]), kind)
        x = torch.randn(M, K, generator=random)
        y = Rows(linear.weight, linear.bias, kind)(x[None])
        expected = x.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0.0)
        sizes = x.double().abs() @ linear.weight.double().abs().T + 1.0
        # Of int8 inputs are rounded to 32,767 steps each way of their row's largest.
        half_step = x.abs().amax(1, keepdim=True) / 32767 / 2 * linear.weight.abs().sum(1) if kind == "int8" else 0.0
        assert y.shape == (1, M, N)
        assert ((y[0] - expected).abs() <= 2e-6 * sizes + half_step).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 3, 9])
def test_products_of_extremes(built: Path, kind: str, n: int) -> None:
    """The largest sums that bytes can come to; inputs of zeros, and some that are no numbers."""
    K = 9001  # beyond what sums of 31 bits hold
    linear = nn.Linear(K, 5, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.tensor([1.0, -1.0, 127.0, 0.5, 0.0])[:, None].expand(5, K))
    layer, x = Rows(linear.weight, None, kind), torch.ones(n, K)
    torch.testing.assert_close(layer(x), torch.tensor([1.0, -1.0, 127.0, 0.5, 0.0]).expand(n, 5) * K)
    assert (layer(torch.zeros(n, K)) == 0).all()
    for odd in (math.nan, math.inf):
        x[-1, K // 2] = odd
        assert not layer(x)[-1].isfinite().any()
        assert layer(x)[:-1].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_model(built: Path, variant: dict[str, Any], kind: str) -> None:
    model = tiny(**variant)
    round_weights(model, kind)
    found = Fast(model, kind)
    assert all(isinstance(block, Fused) == (variant in [VARIANTS[i] for i in FUSED]) for block in found.blocks)
    for n_rows in (1, 5):
        tolerance = INT8_TOLERANCE if kind == "int8" else TOLERANCE
        for slow, quick in both(model, found, n_rows):
            torch.testing.assert_close(quick, slow, atol=tolerance, rtol=tolerance)


def test_rounded_inputs_cost_no_perplexity(built: Path) -> None:
    """Of a model that was trained; the rounding of its weights is on both sides."""
    model = GPT.from_pretrained("tales-smallest").eval()
    round_weights(model, "int8")
    quick, tokenizer = Fast(model, "int8"), get_tokenizer("tales-smallest")
    nats = []
    with torch.inference_mode():
        for told in stories(n=40, split="fresh"):
            ids = torch.tensor([[tokenizer.eot, *tokenizer.encode(told)]])
            hidden = model.hidden(ids[:, :-1], blocks=quick.blocks)[0]
            both = model(ids[:, :-1])[0], quick.head(model, hidden)
            nats.append([F.cross_entropy(logits, ids[0, 1:]) for logits in both])
    eager, fast_path = torch.tensor(nats, dtype=torch.float64).mean(0)
    assert abs(float(fast_path - eager)) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_card_replays_is_the_model(variant: dict[str, Any]) -> None:
    """Captured nowhere here, and compiled without generating code: one graph for every length, without a break."""
    same_by_graphs(tiny(**variant), "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_card_replays_is_the_model_compiled(variant: dict[str, Any]) -> None:
    same_by_graphs(tiny(**variant), "inductor")


def same_by_graphs(model: GPT, backend: str) -> None:
    torch._dynamo.reset()  # it compiles one function so often and no more
    quick = Graphs(model, backend)
    ids = torch.tensor([[0, 0, 3], [4, 5, 6]])
    with torch.inference_mode():
        caches = [Cache(model.config, 2, 24, starts=torch.tensor([2, 0])) for _ in range(2)]
        for cache in caches:
            model.hidden(ids, cache=cache)
        counters = torch._dynamo.utils.counters
        counters.clear()
        for token in (7, 200, 9, 4):
            new = torch.tensor([[token], [token + 1]])
            expected = model.hidden(new, cache=caches[0])
            torch.testing.assert_close(quick.hidden(model, new, caches[1]), expected, atol=TOLERANCE, rtol=TOLERANCE)
        assert counters["stats"]["unique_graphs"] == 1
        torch.testing.assert_close(caches[1].keys, caches[0].keys, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("use_cache", [True, False])
def test_tokens_read_ahead_are_those_read_later(monkeypatch: pytest.MonkeyPatch, use_cache: bool) -> None:
    """Rows that leave, join, or fill their context take back what was read too early."""
    torch._dynamo.reset()
    model, prompts = tiny(), [[1, 2, 3], [4, 5], [6, 7, 8]]
    n_slots = model.config.block_size
    plain, early = (Contexts(model, prompts, n_slots, use_cache) for _ in range(2))
    monkeypatch.setitem(rows._READY, model, Graphs(model, "eager"))  # of both: they read alike
    n_ahead = 0
    for step in range(2 * n_slots):
        logits = plain.logits()
        torch.testing.assert_close(early.logits(), logits, atol=TOLERANCE, rtol=TOLERANCE)
        tokens = logits.argmax(-1)
        early.ahead(tokens)
        n_ahead += early.read_ahead is not None
        kept = [1, 2] if step == 3 else list(range(len(tokens)))
        joining = [[9, 10, 11, 12]] if step == 6 else []
        for contexts in (plain, early):
            contexts.advance(kept, [int(tokens[i]) for i in kept], joining)
    assert (n_ahead > n_slots) == use_cache


def test_a_card_chooses_what_a_cpu_does() -> None:
    logits, uniforms = torch.randn(4, 50), torch.rand(4, dtype=torch.float64)
    for strategy in (Strategy(temperature=0.0), Strategy(top_p=0.9)):
        history = strategy.history([[1]] * 4, 50, "cpu", (), None)
        expected = choose(logits, strategy, uniforms, history)
        assert torch.equal(choose_unseen(logits, strategy, uniforms, history), expected)
        broken = logits.clone()
        broken[1, 3], broken[2] = math.nan, -math.inf
        told = choose_unseen(broken, strategy, uniforms, history)
        assert told.tolist() == [int(expected[0]), -1, -1, int(expected[3])]


def test_a_model_in_bf16_keeps_its_own_weights(built: Path) -> None:
    model = tiny().bfloat16()
    assert accelerate(model) == "products of rows.cpp"
    quick = fast(model, 1)
    assert quick is not None
    layer = quick.blocks[0].attn.c_attn
    assert layer.narrow.data_ptr() == model.h[0].attn.c_attn.weight.data_ptr()  # type: ignore[union-attr, operator]
    for slow, found in both(model, quick, 2):
        torch.testing.assert_close(found, slow, atol=0.1, rtol=0.1)  # bf16 has three digits


def test_int8_is_the_nearest_step_of_each_row(built: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 12)
    with torch.no_grad():
        linear.weight[3] = 0.0  # a row of zeros stays one
        linear.weight[5] *= 1e-3  # a scale of its own
    model = nn.ModuleList([linear])
    before = linear.weight.detach().clone()
    round_weights(model, "int8")
    step = before.abs().amax(dim=1, keepdim=True) / 127
    assert ((linear.weight - before).abs() <= step * 0.5001 + 1e-12).all()
    assert (linear.weight[3] == 0).all()
    layer = Rows(linear.weight, linear.bias, "int8")
    assert layer.narrow.dtype == torch.int8
    assert int(layer.narrow.abs().max()) == 127
    assert layer.scale is not None
    torch.testing.assert_close(layer.narrow * layer.scale[:, None], linear.weight.detach())
    again = linear.weight.detach().clone()
    round_weights(model, "int8")
    torch.testing.assert_close(linear.weight.detach(), again)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_texts_are_those_of_the_model(built: Path, kind: str) -> None:
    model = tiny()
    round_weights(model, kind)
    options: dict[str, Any] = {"max_new_tokens": 40, "stop_at_eot": False, "temperature": 0.8}  # past the context
    prompts, seeds = ["ab", "the cat", "x" * 30], [3, 4, 5]
    plain = generate(model, BYTES, prompts, seed=seeds, **options)
    ids = torch.tensor([[5, 6, 7]])
    greedy = generate_ids(model, ids, 40, temperature=0.0)
    assert accelerate(model, kind) == "products of rows.cpp"
    assert generate(model, BYTES, prompts, seed=seeds, **options) == plain
    assert [generate(model, BYTES, [p], seed=[s], **options)[0] for p, s in zip(prompts, seeds, strict=True)] == plain
    assert torch.equal(generate_ids(model, ids, 40, temperature=0.0), greedy)


@pytest.mark.parametrize("how", ["draft", "lookup", "contrastive", "beams", "guidance"])
def test_every_way_of_decoding_reads_by_it(built: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, draft, used = tiny(), tiny(n_layer=1), list[int]()
    ways: dict[str, dict[str, Any]] = {
        "draft": {"draft": draft, "n_ahead": 3},
        "lookup": {"lookup": 3},
        "contrastive": {"strategy": "contrastive"},
        "beams": {"n_beams": 3, "temperature": 0.0},
        "guidance": {"guidance": 1.5},
    }
    options = {"max_new_tokens": 30, "seed": 1, "stop_at_eot": False, **ways[how]}
    plain = generate(model, BYTES, "abcabc", **options)
    accelerate(model)
    accelerate(draft)
    call = Fused.__call__
    monkeypatch.setattr(Fused, "__call__", lambda self, x, *rest: (used.append(len(x)), call(self, x, *rest))[1])  # type: ignore[func-returns-value]
    assert generate(model, BYTES, "abcabc", **options) == plain
    assert len(used) > 30


def test_eager_until_it_is_there_then_not(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, started, used = tiny(), list[Path](), list[int]()
    path = tmp_path / "rows.so"
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": 3, "stop_at_eot": False}
    plain = generate(model, BYTES, "ab", **options)
    monkeypatch.setattr(rows, "library_path", lambda: path)
    monkeypatch.setattr(rows, "_build", lambda path, errors: started.append(path))
    assert accelerate(model, when="cached") == "eager"
    assert not started
    assert accelerate(model) == "eager until rows.cpp is built, for this text or the next"
    assert started == [path]
    assert fast(model, 1) is None

    class Counted(Fast):
        def head(self, model: GPT, x: Tensor) -> Tensor:
            used.append(1)
            return super().head(model, x)

    monkeypatch.setattr(rows, "Fast", Counted)
    text = ""
    for n, piece in enumerate(stream_batch(model, BYTES, ["ab"], **options)):
        text += piece.text
        if n == 5:
            path.symlink_to(library)  # the compiler is done
    assert text == plain
    assert len(used) == 12 - 6
    used.clear()
    many = rows.MAX_ROWS + 1
    assert generate(model, BYTES, ["ab"] * many, **{**options, "seed": [3] * many}) == [plain] * many
    assert not used  # so many rows are torch's


def test_building_puts_it_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := unsupported():
        pytest.skip(why)
    model = tiny()
    assert accelerate(model, when="now") == "products of rows.cpp"
    (path,) = (tmp_path / "cache" / "compiled").iterdir()  # conftest.py's cache; nothing beside it is left
    assert path == rows.library_path()
    monkeypatch.setenv("CXX", "no-such-compiler")
    other = tiny()
    assert accelerate(other).startswith("eager (no C++ compiler: no-such-compiler")  # another compiler, another library


def test_what_it_does_not_serve() -> None:
    assert str(unsupported(tiny().half())).startswith("rows.cpp serves fp32")
    assert accelerate(tiny().half()).startswith("eager (rows.cpp serves")


def test_two_builds_at_once_leave_a_whole_library(tmp_path: Path) -> None:
    if why := unsupported():
        pytest.skip(why)
    path = tmp_path / "rows.so"
    for process in [rows._build(path, rows.subprocess.DEVNULL) for _ in range(2)]:
        process.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["rows.so"]
    rows._library(path)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILM_CACHE", str(tmp_path / "file" / "cache"))
    if why := unsupported():
        pytest.skip(why)
    assert "cannot be written: Not a directory; set MINILM_CACHE" in accelerate(tiny())


def test_a_model_goes_when_nothing_else_holds_it(built: Path) -> None:
    model = tiny()
    accelerate(model)
    assert fast(model, 1) is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_other_layers_and_hooks_are_kept(built: Path) -> None:
    model, heard = tiny(), list[int]()
    model.h[0].register_forward_hook(lambda *_: heard.append(0))
    model.h[1].mlp.c_fc.register_forward_hook(lambda *_: heard.append(1))  # type: ignore[union-attr]

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model.h[1].attn.c_proj.__class__ = Doubled  # type: ignore[union-attr]
    for slow, quick in both(model, Fast(model, "fp32"), 1):
        torch.testing.assert_close(quick, slow, atol=TOLERANCE, rtol=TOLERANCE)
    assert heard == [0, 1] * 10  # of two prompts and of four tokens by each


def test_weights_that_are_replaced_do_not_become_foreign_memory(built: Path) -> None:
    model = tiny()
    quick, before = Fast(model, "fp32"), tiny()
    model.load_state_dict({name: torch.full_like(x, math.nan) for name, x in model.state_dict().items()}, assign=True)
    x = torch.randn(1, 1, 32)
    caches = [Cache(model.config, 1, 24) for _ in range(2)]
    with torch.inference_mode():
        geometry = locate(model.config, before.wpe, torch.tensor([[1]]), None, caches[1])
        y = quick.blocks[0](x, 0, geometry, caches[0])
        torch.testing.assert_close(y, before.h[0](x, 0, geometry, caches[1]), atol=TOLERANCE, rtol=TOLERANCE)


def test_failing_to_build_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(MinilmError, match=r"building rows\.cpp failed"):
        accelerate(tiny(), when="now")


def test_a_broken_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rows.so").write_bytes(b"no library")
    monkeypatch.setattr(rows, "library_path", lambda: tmp_path / "rows.so")
    model = tiny()
    assert accelerate(model) == "products of rows.cpp"
    with pytest.raises(MinilmError, match="--compile off"):
        generate(model, BYTES, "ab", max_new_tokens=3)


def test_the_door_says_how_it_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "model", BYTES)
    words = ["--checkpoint", str(tmp_path / "model"), "--prompt", "ab", "--seed", "1", "--max_new_tokens", "5"]
    assert run_door("sample", [*words, "--device", "cpu", "--precision", "int8"]) == 0
    out, err = capsys.readouterr()
    assert "int8 weights, eager, seed 1" in err
    assert not (tmp_path / "cache" / "compiled").exists()  # too small to be worth building for
    round_weights(model, "int8")
    assert out == generate(model, BYTES, "ab", max_new_tokens=5, seed=1) + "\n"


@pytest.mark.parametrize(("compile", "said"), [("on", "bf16 weights, products of rows.cpp"), ("off", "float32, eager")])
def test_a_large_model_is_read_in_bf16(
    compile: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := unsupported():
        pytest.skip(why)
    monkeypatch.setattr(sample_cli, "SMALL", 1)
    monkeypatch.setattr("minilm.runtime.matmul_flops", lambda device, dtype, width: 1e9)  # bf16 is no faster
    tiny().save_pretrained(tmp_path / "model", BYTES)
    words = ["--checkpoint", str(tmp_path / "model"), "--prompt", "ab", "--seed", "1", "--max_new_tokens", "5"]
    assert run_door("sample", [*words, "--device", "cpu", "--compile", compile]) == 0
    assert said in capsys.readouterr().err


def test_a_door_without_compile_computes_in_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilm.runtime.matmul_flops", lambda device, dtype, width: 1e9)
    tiny().save_pretrained(tmp_path / "model", BYTES)
    options = argparse.Namespace(checkpoint=str(tmp_path / "model"), tokenizer=None, device="cpu", precision="bf16")
    model, _, what = sample_cli.load(options)  # as `minilm eval` does
    assert model.wte.weight.dtype == torch.bfloat16
    assert what.endswith("cpu, bfloat16")
