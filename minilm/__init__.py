"""minilm: GPT-2-class language models, exact, switchable, finetuned and measured.

    import minilm
    model = minilm.GPT.from_pretrained("gpt2")
    tokenizer = minilm.get_tokenizer("gpt2")
    print(minilm.generate(model, tokenizer, "Once upon a time"))

Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilm.config import GPTConfig as GPTConfig
    from minilm.config import TrainConfig as TrainConfig
    from minilm.decoding.engine import generate as generate
    from minilm.decoding.engine import generate_ids as generate_ids
    from minilm.decoding.engine import stream as stream
    from minilm.evaluation.perplexity import perplexity as perplexity
    from minilm.model.gpt import GPT as GPT
    from minilm.text.prepare import prepare as prepare
    from minilm.text.tokenizer import get_tokenizer as get_tokenizer
    from minilm.training.loop import train as train

__version__ = "0.1.0"

_HOME = {
    "GPT": "minilm.model.gpt",
    "GPTConfig": "minilm.config",
    "TrainConfig": "minilm.config",
    "generate": "minilm.decoding.engine",
    "generate_ids": "minilm.decoding.engine",
    "get_tokenizer": "minilm.text.tokenizer",
    "perplexity": "minilm.evaluation.perplexity",
    "prepare": "minilm.text.prepare",
    "stream": "minilm.decoding.engine",
    "train": "minilm.training.loop",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"minilm has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
