"""How to make a model write in a style: control codes learnt in pretraining, guidance by them, or finetuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minilm.decoding.attributes import Head, Steering, bag_of_words, steering
from minilm.decoding.engine import generate
from minilm.evaluation.text_metrics import judge
from minilm.lab.finetune import LEFT_ALONE, STYLES, UNSEEN, base, finetuning, unseen
from minilm.lab.measures import BEFORE, COHERENT, OBEYED, TERAFLOPS
from minilm.lab.question import Arm, Measure, Picture, Question, Scale, grid, prose
from minilm.lab.stories import obeyed
from minilm.lab.texts import without_code
from minilm.lab.trial import Trained, copies_of
from minilm.text.tales import stories
from minilm.text.tales.grammar import grammar
from minilm.training.discriminator import train_discriminator

WORDS = ("I", "my", "me", "reader", "Dear", "you", "write")  # a letter's own, for PPLM
PASSES = Measure("passes_per_token", "forward passes a token", "", digits=0)


def arms(scale: Scale) -> list[Arm]:
    """Every arm asks for stories of one style; `options` are decoding's, `code` whether the code is given."""
    tune, data = scale.extra["finetune"], unseen(scale.extra["megabytes"])
    alone, n = {**tune, **LEFT_ALONE}, scale.extra["told"]
    knows = base(scale, f"{STYLES},{UNSEEN}", "-letter")
    ways: dict[str, dict[str, Any]] = {
        "control code": {"code": True, "options": {}},
        "control code, guided 1.5": {"code": True, "options": {"guidance": 1.5}},
        "control code, guided 3": {"code": True, "options": {"guidance": 3.0}},
        "no code": {"code": False, "options": {}},
        "PPLM, bag of words": {"code": False, "options": {}, "words": WORDS},
        "PPLM, classifier": {"code": False, "options": {}, "styles": (*STYLES.split(","), UNSEEN)},
    }
    for name, step in (("PPLM, bag of words", 0.3), ("PPLM, classifier", 0.4)):
        ways[f"{name}, 10 x step"] = {**ways[name], "settings": f"step_size={step}"}
    found = [Arm(name, alone, (), "", data, {**way, "told": n}, knows) for name, way in ways.items()]
    return [*found, Arm("finetuned", tune, grid(1e-3), "", data, {"code": True, "options": {}, "told": n})]


def told(trained: Trained) -> dict[str, float]:
    """Stories asked for in the style: whether they are of it, whether they hold together, forward passes a token."""
    measure, level = trained.cell.measure, trained.cell.data["level"]
    code = grammar(level, UNSEEN).code
    prompt, options = code.rstrip() if measure["code"] else "", dict(measure["options"])
    T = trained.model.config.block_size
    steer, settings = None, measure.get("settings", "")
    if "words" in measure:
        steer = steering([bag_of_words(measure["words"], trained.tokenizer)[0]], None, "", settings)
    if "styles" in measure:
        steer = steering([], classifier(trained, level, measure["styles"], 2 * measure["told"]), UNSEEN, settings)
    drawn = {"max_new_tokens": T - 8, "seed": trained.cell.seed, "temperature": 1.0, "top_p": 1.0, **options}
    asked = [prompt] * measure["told"]
    texts = generate(trained.model, trained.tokenizer, asked, begin_document=True, steering=steer, **drawn)
    texts = [without_code((prompt + text).strip()) for text in texts]
    graded = judge([code + story for story in texts], train=copies_of(trained.data), level=level, style=UNSEEN)
    return {
        "obeyed": obeyed(texts, level, UNSEEN),
        "coherent": 100 * graded.share,
        "before": 100 * graded.mean_before,
        "passes_per_token": passes(steer) if steer else 2.0 if "guidance" in options else 1.0,
    }


def classifier(trained: Trained, level: int, styles: Sequence[str], n: int) -> Head:
    """PPLM's, trained to tell the styles apart by so many training stories of each, without their codes."""
    documents = [(without_code(text), s) for s in styles for text in stories(n=n, level=level, style=s, split="train")]
    return train_discriminator(trained.model, trained.tokenizer, "styles", documents, trained.cell.seed).head


def passes(steer: Steering) -> float:
    """Forward passes a token, a backward pass as two: a head reads the expected next token too."""
    return 2.0 + 3.0 * steer.n_iterations * (1 + (steer.horizon if steer.head else 0))


QUESTION = Question(
    **prose("steer"),
    measures=(OBEYED, BEFORE, COHERENT, TERAFLOPS, PASSES),
    margin=2.0,
    reference="finetuned",
    arms=arms,
    scales=finetuning(
        {"megabytes": 0.02, "told": 2}, {"megabytes": 0.3, "told": 200}, {"megabytes": 5.0, "told": 500}, n_stories=0
    ),
    pictures=(Picture("points", "obeyed", "before"),),
    base=base,
    measure=told,
)
