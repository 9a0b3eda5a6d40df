"""Every toggle, and every pair of them: against formulas, as one graph, causal, by document, cached, in bf16."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from itertools import combinations, product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from reference_gpt import GATED, PLAIN, Reference
from tiny_models import CONSTANTS, SINGLE, SIZES, TOGGLES, close, covering, tiny, tokens
from torch import Tensor

from minilm import config as settings
from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.model import geometry
from minilm.model.cache import Cache
from minilm.model.gpt import GPT
from minilm.model.layers import ACTIVATIONS, NORMS, POSITIONS, GatedMLP, NoNorm
from minilm.model.losses import IGNORE, cross_entropy

ROWS = range(len(covering()))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- registries and the covering array itself


def test_registries_hold_what_the_config_lists() -> None:
    assert tuple(ACTIVATIONS) == get_args(settings.Activation)
    assert tuple(NORMS) == get_args(settings.Norm)
    assert tuple(POSITIONS) == get_args(settings.Position)
    assert {*PLAIN, *GATED} == set(ACTIVATIONS)
    assert {name for name, (kind, _) in ACTIVATIONS.items() if kind is GatedMLP} == set(GATED)


def test_norm_positions_are_slots() -> None:
    slots = ["ln_1", "ln_1_out", "ln_1_post", "ln_2", "ln_2_out", "ln_2_post"]
    filled = {
        where: [not isinstance(getattr(tiny(norm_position=where).h[0], slot), NoNorm) for slot in slots]
        for where in get_args(settings.NormPosition)
    }
    assert filled == {
        "pre": [True, False, False] * 2,
        "post": [False, False, True] * 2,
        "sandwich": [True, True, False] * 2,
    }


def test_every_field_is_tried() -> None:
    names = {f.name for f in fields(GPTConfig)}
    assert set(TOGGLES) == names - set(SIZES) - set(CONSTANTS)
    defaults = GPTConfig()
    assert all(values[0] == getattr(defaults, name) for name, values in TOGGLES.items())


def test_every_pair_is_covered_or_refused() -> None:
    met = {pair for row in covering() for pair in combinations(sorted(row.items()), 2)}
    missing = []
    for a, b in combinations(sorted(TOGGLES), 2):
        missing += [{a: i, b: j} for i, j in product(TOGGLES[a], TOGGLES[b]) if ((a, i), (b, j)) not in met]
    for pair in missing:
        with pytest.raises(UsageError):
            GPTConfig(**SIZES, **pair)
    assert missing == [{"n_unique_layer": 1, "skip_attn": (1,)}, {"n_unique_layer": 1, "skip_mlp": (0, 1)}]
    assert len(covering()) < 80


# --- against the formulas


def inexact(config: GPTConfig) -> float:
    """Relative tolerance in float64: angles, slopes and upcast scores are fp32 whatever the weights are."""
    return 1e-5 if config.attn_upcast or config.position in ("rope", "sinusoidal", "alibi") else 1e-9


def check_formulas(model: GPT) -> None:
    ids = tokens(1, 10)
    reference = Reference(asdict(model.config), {name: t.numpy() for name, t in model.state_dict().items()})
    expected = torch.from_numpy(reference.logits(ids[0, :-1].tolist()))
    assert close(model(ids[:, :-1])[0], expected, inexact(model.config))
    nats = reference.loss(ids[0, :-1].tolist(), ids[0, 1:].tolist())
    assert close(
        model.loss(ids[:, :-1], ids[:, 1:], reduction="none")[0], torch.tensor(nats, dtype=torch.float64), 1e-5
    )
    assert model.loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(np.mean(nats), rel=1e-5)


@pytest.mark.parametrize("toggle", SINGLE, ids=str)
def test_each_value_follows_its_formula(toggle: dict[str, Any]) -> None:
    check_formulas(tiny(**toggle))


@pytest.mark.parametrize("row", ROWS)
def test_every_pair_follows_the_formulas(row: int) -> None:
    check_formulas(tiny(**covering()[row]))


@pytest.mark.parametrize("heads", [1, 3, 6, 12])
def test_alibi_with_heads_that_are_no_power_of_two(heads: int) -> None:
    check_formulas(tiny(position="alibi", n_head=heads, n_embd=24))


@pytest.mark.parametrize("constant", [{"norm_eps": 0.3}, {"norm_eps": 0.0}, {"rope_base": 50.0}, {"init_std": 0.5}])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_constants_are_used(constant: dict[str, Any], norm: str) -> None:
    position = {"rope_base": "rope", "init_std": "sinusoidal"}.get(next(iter(constant)), "learned")
    check_formulas(tiny(**constant, norm=norm, position=position, qk_norm=True))


# --- forward, backward, one graph


def fresh(**toggles: Any) -> GPT:
    """As initialised, but for a wider spread, in fp32."""
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SIZES, "init_std": 0.2, **toggles}))


@pytest.mark.parametrize("row", ROWS)
def test_every_parameter_gets_a_gradient(row: int) -> None:
    model, documents = fresh(**covering()[row]).train(), torch.arange(10).expand(3, -1) // 4
    loss = model.loss(tokens(3, 10), tokens(3, 10, seed=2), documents if row % 2 else None)
    loss.backward()
    assert loss.isfinite()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} is idle"
        assert p.grad.isfinite().all(), name


def rows_with_every_value() -> set[int]:
    """The first rows of the covering array until each value was met: tracing a row costs a third of a second."""
    seen: set[tuple[str, Any]] = set()
    rows = set()
    for i, row in enumerate(covering()):
        if not row.items() <= seen:
            rows.add(i)
            seen |= row.items()
    return rows


FEW = rows_with_every_value()


@pytest.mark.parametrize("row", [i if i in FEW else pytest.param(i, marks=pytest.mark.slow) for i in ROWS])
def test_one_full_graph(row: int) -> None:
    model, ids = tiny(**covering()[row]), tokens(2, 10)
    documents = torch.arange(10, dtype=torch.int32).expand(2, -1) // 4 if row % 2 else None
    torch._dynamo.reset()
    traced = torch.compile(model.loss, fullgraph=True, backend="eager", dynamic=False)
    assert torch.equal(traced(ids, ids, documents), model.loss(ids, ids, documents))


@pytest.mark.slow
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("toggle", SINGLE, ids=str)
def test_compiled_equals_eager(toggle: dict[str, Any], documents: bool) -> None:
    """Loss, logits and gradients in fp32, within 1e-4 of their spread."""
    from torch._inductor import config as inductor

    if documents and not (set(toggle) <= {"position", "window", "attn_upcast", "n_kv_head", "attn_dropout"}):
        pytest.skip("documents meet attention and positions only")
    torch._dynamo.reset()
    model, ids, targets = fresh(**toggle).train(), tokens(2, 10), tokens(2, 10, seed=2)
    boundaries = torch.arange(10).expand(2, -1) // 4 if documents else None

    def run(ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        hidden = model.hidden(ids, boundaries)
        return model.head(hidden), cross_entropy(model.used_logits(hidden), targets)

    results = []
    for function in (run, torch.compile(run, fullgraph=True)):
        torch.manual_seed(3)
        model.zero_grad()
        with inductor.patch(fallback_random=True):  # the same dropout in both
            logits, loss = function(ids, targets)
            loss.backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((logits.detach(), loss.detach(), grads))
    (logits, loss, grads), (logits_compiled, loss_compiled, grads_compiled) = results
    assert close(logits_compiled, logits, 1e-4)
    assert loss_compiled.item() == pytest.approx(loss.item(), rel=1e-5)
    assert all(close(a, b, 1e-4) for a, b in zip(grads_compiled, grads, strict=True))


# --- what a token sees


@pytest.mark.parametrize("row", ROWS)
def test_nothing_before_a_changed_token_changes(row: int) -> None:
    model, ids, at = tiny(**covering()[row]), tokens(2, 10), 6
    other = ids.clone()
    other[:, at] = (ids[:, at] + 1) % 23
    before, after = model.hidden(ids), model.hidden(other)
    assert torch.equal(before[:, :at], after[:, :at])
    c = model.config
    attends = c.window != 1 and any(i not in c.skip_attn for i in range(c.unique_layers))
    changed = [not torch.equal(before[:, t], after[:, t]) for t in (at, at + 1)]
    assert changed == [True, attends]


@pytest.mark.parametrize("row", ROWS)
def test_documents_equal_each_alone(row: int) -> None:
    model, ids = tiny(**covering()[row]), tokens(3, 12)
    targets = tokens(3, 12, seed=2)
    targets[0, 4] = IGNORE
    # Numbers of documents mean nothing but "the same as my neighbour's".
    cuts = [[(0, 5, 9), (5, 8, 2), (8, 9, 2_000_000_000), (9, 12, 0)], [(0, 12, 0)], [(0, 1, 1), (1, 12, 0)]]
    documents = torch.empty(3, 12, dtype=torch.int32)
    for r, begin, end, number in ((r, *cut) for r, row_cuts in enumerate(cuts) for cut in row_cuts):
        documents[r, begin:end] = number
    together, nats = model(ids, documents), 0.0
    for r, begin, end, _ in ((r, *cut) for r, row_cuts in enumerate(cuts) for cut in row_cuts):
        part = slice(begin, end)
        assert close(together[r, part], model(ids[r : r + 1, part])[0], inexact(model.config))
        nats += model.loss(ids[r : r + 1, part], targets[r : r + 1, part], reduction="sum").item()
    assert model.loss(ids, targets, documents, reduction="sum").item() == pytest.approx(nats, rel=1e-6)


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_cached_equals_uncached(row: int) -> None:
    model, ids = tiny(**covering()[row]), tokens(2, 12)
    cache = Cache(model.config, 2, 12, torch.float64)
    expected = model(ids)
    for pieces in ([1] * 12, [5, 1, 1, 4, 1], [12]):
        cache.reset()
        logits = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
        assert close(logits, expected, inexact(model.config)), pieces
    cache.reset(7)
    assert close(model(ids[:, 7:], cache=cache), expected[:, 7:], inexact(model.config))


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_padded_on_the_left_equals_each_alone(row: int) -> None:
    model, ids, starts = tiny(**covering()[row]), tokens(3, 12), [0, 4, 2]
    cache = Cache(model.config, 3, 12, torch.float64, starts=torch.tensor(starts))
    logits = torch.cat([model(piece, cache=cache) for piece in ids.split([6, 1, 1, 4], dim=1)], dim=1)
    for r, start in enumerate(starts):
        assert close(logits[r, start:], model(ids[r : r + 1, start:])[0], inexact(model.config))


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_both_attention_kernels_agree(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(**covering()[row]), tokens(2, 10)
    documents = torch.arange(10).expand(2, -1) // 4 if row % 2 else None
    by_hand = model(ids, documents)
    monkeypatch.setattr(geometry, "CPU_BY_HAND_ROWS", 3)
    assert close(model(ids, documents), by_hand, inexact(model.config))
    monkeypatch.setattr(geometry, "CPU_BY_HAND_TOKENS", 0)
    assert close(model(ids, documents), by_hand, inexact(model.config))


@pytest.mark.parametrize("position", ["learned", "alibi"])
@torch.no_grad()
def test_rows_behind_a_cache_see_what_is_cached(position: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(position=position), tokens(2, 10)
    whole = model(ids)
    monkeypatch.setattr(geometry, "CPU_BY_HAND_ROWS", 2)
    cache = Cache(model.config, 2, 12, torch.float64)
    pieces = [model(piece, cache=cache) for piece in ids.split([3, 5, 2], dim=1)]
    assert close(torch.cat(pieces, dim=1), whole, inexact(model.config))


@pytest.mark.parametrize("T", [1, 7, 8, 20])
def test_reading_in_rows_is_attention(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, where nothing is rounded; and that it is bf16 without gradients which takes this way."""
    q, k, v = torch.randn(3, 2, 7, T, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(geometry, "CPU_READING_ROWS", 8)
    monkeypatch.setattr(geometry, "CPU_READING_HEADS", 3)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.6)
    assert torch.allclose(geometry._read(q, k, v, 0.6), exact, atol=1e-6)
    causal = geometry.Geometry(torch.arange(T), None, None, is_causal=T > 1)
    half = q.bfloat16()
    assert not geometry._reads_fast(half, half, causal, 0.0)
    with torch.no_grad():
        assert geometry._reads_fast(half, half, causal, 0.0) == (T > 1)
        assert not geometry._reads_fast(q, q, causal, 0.0)
        assert not geometry._reads_fast(half, half, causal, 0.1)


# --- bf16


def apart(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference over the spread of b, where both are finite."""
    finite = b.isfinite()
    assert torch.equal(a.isfinite(), finite)
    a, b = a.detach()[finite].double(), b.detach()[finite].double()
    return float((a - b).square().mean().sqrt() / b.std())


@pytest.mark.parametrize("row", ROWS)
def test_autocast_keeps_weights_and_residual_stream_in_fp32(row: int) -> None:
    model, ids = fresh(**covering()[row]).eval(), tokens(2, 10)
    kinds: set[torch.dtype] = set()
    for block in model.h:
        block.register_forward_hook(lambda module, inputs, output: kinds.update((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = model(ids), model.loss(ids, ids)
    loss.backward()
    assert kinds == {torch.float32}
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert apart(logits, model(ids)) < 0.05


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_weights_in_bf16(row: int) -> None:
    model, ids = fresh(**covering()[row]).eval(), tokens(2, 10)
    expected = model(ids)
    model.bfloat16()
    logits = model(ids)
    assert logits.dtype == torch.bfloat16
    assert apart(logits, expected) < 0.1
    cache = Cache(model.config, 2, 12, torch.bfloat16)
    cached = torch.cat([model(piece, cache=cache) for piece in ids.split([4, 1, 5], dim=1)], dim=1)
    assert cache.keys.dtype == torch.bfloat16
    assert apart(cached, expected) < 0.1


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("upcast", [True, False])
@torch.no_grad()
def test_upcast_attention_is_exact_in_what_it_was_given(
    upcast: bool, by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k and v come in bf16 under autocast; upcast scores, softmax and sum add no error of that size."""
    monkeypatch.setattr(geometry, "CPU_BY_HAND_TOKENS", 512 if by_hand else 0)
    model, seen = tiny(attn_upcast=upcast, n_layer=1).float(), []
    attn = model.get_submodule("h.0.attn")
    attn.get_submodule("c_attn").register_forward_hook(lambda module, inputs, output: seen.append(output))
    attn.get_submodule("c_proj").register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens(8, 12))
    assert seen[0].dtype == torch.bfloat16
    q, k, v = (x.unflatten(-1, (4, 4)).transpose(1, 2) for x in seen[0].double().split(16, dim=-1))
    scores = (q @ k.mT / 2).masked_fill(torch.ones(12, 12).triu(1).bool(), -math.inf)
    exact = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
    error = float((seen[1].double() - exact).abs().max() / exact.std())
    assert error < 1e-5 if upcast else error > 1e-3
