"""What a step of the loop must not do: break or recompile its graph, or wait for the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_helpers import prepared, tiny_config

from minilm import bench
from minilm.training import guard, loop
from minilm.training.loop import train

CASES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "accumulated, dropout, validations": {"micro_batch_size": 2, "dropout": 0.1, "eval_every_steps": 2},
    "tiny's parts": {"position": "rope", "qk_norm": True, "optimizer": "muon", "attend": "document"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data") / "sums")


def config_of(data: Path, out: Path, **changes: Any) -> Any:
    if share := changes.pop("dropout", 0.0):
        changes |= dict.fromkeys(("embd_dropout", "attn_dropout", "resid_dropout"), share)
    return tiny_config(data, out, **{"log_every_steps": 1, **changes})


def counted(data: Path, out: Path, **changes: Any) -> list[tuple[int, int]]:
    """(graph breaks, graphs) so far, before each step and after the last."""
    torch._dynamo.reset()
    breaks, graphs = bench.compilations()
    seen: list[tuple[int, int]] = []

    def look() -> None:
        now = bench.compilations()
        seen.append((now[0] - breaks, now[1] - graphs))

    with pytest.MonkeyPatch.context() as patch:
        step = loop.train_step

        def watched(*arguments: Any) -> Any:
            look()
            return step(*arguments)

        patch.setattr(loop, "train_step", watched)
        train(config_of(data, out, compile="on", **changes))
    look()
    return seen


@pytest.mark.parametrize("case", CASES)
def test_no_graph_break_and_one_compilation(
    data: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo alone decides both, so that the compiler behind it need not run."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    seen = counted(data, tmp_path / "run", max_steps=6, **CASES[case])
    assert seen[0] == (0, 0)
    assert seen[1:] == [(0, 1)] * 6  # one graph serves all blocks and all steps


def test_the_counts_see_breaks_and_recompilations() -> None:
    breaks, graphs = bench.compilations()

    @partial(torch.compile, backend="eager", dynamic=False)
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    broken(torch.ones(3))
    assert bench.compilations() == (breaks + 1, graphs + 2)
    broken(torch.ones(4))
    assert bench.compilations()[1] == graphs + 4


class Reads(TorchDispatchMode):
    """Counts what on a card waits for the device: a value read back."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion"])
def test_steps_between_logs_read_nothing_back(
    data: Path, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU every step is judged, which costs nothing; here the guard looks when the loop logs, as on a card."""
    before = guard.Guard.__init__

    def as_on_a_card(self: guard.Guard, config: Any, device: torch.device) -> None:
        before(self, config, torch.device("cuda"))

    monkeypatch.setattr(guard.Guard, "__init__", as_on_a_card)
    reads, seen = Reads(), list[int]()
    factor = loop.lr_factor

    def begins(step: int, config: Any) -> float:
        seen.append(reads.n)
        return factor(step, config)

    monkeypatch.setattr(loop, "lr_factor", begins)
    with reads:
        train(
            config_of(
                data, tmp_path / "run", max_steps=8, log_every_steps=4, optimizer=optimizer, eval_every_steps=0,
                save_every_steps=0,
            )
        )  # fmt: skip
    in_steps = [b - a for a, b in zip(seen, [*seen[1:], reads.n], strict=True)]
    assert [i + 1 for i, n in enumerate(in_steps) if n] == [1, 4, 8]  # the first, and those that are logged
