"""Every question by name. Each is a file of this room whose `QUESTION` says all of it."""

from __future__ import annotations

from importlib import import_module

from minilm.config import nearest
from minilm.errors import UsageError
from minilm.lab.question import Question

QUESTIONS: tuple[str, ...] = ("optimizers", "freeze", "chunking", "context", "sampling", "model_size")
QUESTIONS += ("loss", "schedules", "warmup", "epochs", "data_size", "components", "leak", "precision")
QUESTIONS += ("double_descent", "overfit", "mixing", "order", "domains", "small_vs_large", "budget", "steer")
QUESTIONS += ("metrics", "transfer", "theory", "defaults")


def load_question(name: str) -> Question:
    """Raises UsageError with the nearest name where there is none of that name."""
    if name not in QUESTIONS:
        raise UsageError(f"the lab has no question {name!r}{nearest(name, QUESTIONS)}: it has {', '.join(QUESTIONS)}")
    question: Question = import_module(f"minilm.lab.{name}").QUESTION
    return question
