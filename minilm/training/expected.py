"""How far presets got where they were trained, and whether a run lags behind: the curves in presets/*.json.

`bench/expected.py` measures and writes them. A curve stands for the runs from scratch on the same text with as many
layers, as wide and with as long a context, whatever else they switch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from minilm.config import TrainConfig
from minilm.options import PRESETS
from minilm.text.shards import ShardFolder

SLACK = 4.0  # a switched component or another schedule rarely costs as much; a wrong rate does


@dataclass(frozen=True)
class Curve:
    """Validation loss of a preset, nats per token, by optimizer step."""

    preset: str
    tokens_per_step: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]

    def best_until(self, step: float) -> float | None:
        """The lowest loss up to a step; None before the first validation."""
        return min((loss for at, loss in zip(self.steps, self.losses, strict=True) if at <= step), default=None)

    def lag(self, step: int, tokens_per_step: int, loss: float) -> str | None:
        """Says that a run is far behind, or None: its loss after `step` steps is above what the preset had after a
        quarter of them (of its tokens, where its batch is smaller)."""
        done = min(step, step * tokens_per_step / self.tokens_per_step)
        then = self.best_until(done / SLACK)
        if then is None or loss <= then:
            return None
        now = self.best_until(done)
        return f"the preset {self.preset} had {then:.4f} after a quarter of this and now {now:.4f}"


def expected(config: TrainConfig, shards: ShardFolder) -> Curve | None:
    """The curve that a run from scratch can be held against, or None."""
    model, train = config.model, shards.splits["train"]
    mine = (shards.meta.name, train.n_tokens, model.vocab_size, model.n_layer, model.n_embd, model.block_size)
    keys = ("data", "train_tokens", "vocab_size", "n_layer", "n_embd", "block_size")
    for path in sorted(PRESETS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not config.init and mine == tuple(record[key] for key in keys):
            preset = path.name.partition(".")[0]
            return Curve(preset, record["tokens_per_step"], tuple(record["steps"]), tuple(record["losses"]))
    return None
