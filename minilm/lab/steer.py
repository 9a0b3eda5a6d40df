"""How to make a model write in a style: control codes learnt in pretraining, guidance by them, or finetuning."""

from __future__ import annotations

from typing import Any

from minilm.decoding.attributes import bag_of_words, steering
from minilm.decoding.engine import generate
from minilm.evaluation.text_metrics import judge
from minilm.lab.finetune import LEFT_ALONE, STYLES, UNSEEN, base, finetuning, unseen
from minilm.lab.measures import BEFORE, COHERENT, OBEYED, TERAFLOPS
from minilm.lab.question import Arm, Measure, Picture, Question, Scale, grid, prose
from minilm.lab.stories import obeyed
from minilm.lab.texts import without_code
from minilm.lab.trial import Trained, copies_of
from minilm.text.tales.grammar import grammar

WORDS = ("I", "my", "me", "reader", "Dear", "you", "write")  # a letter's own, for PPLM


def arms(scale: Scale) -> list[Arm]:
    """Every arm asks for stories of one style; `options` are decoding's, `code` whether the code is given."""
    tune, data = scale.extra["finetune"], unseen(scale.extra["megabytes"])
    alone, n = {**tune, **LEFT_ALONE}, scale.extra["told"]
    knows = base(scale, f"{STYLES},{UNSEEN}")
    ways: dict[str, dict[str, Any]] = {
        "control code": {"code": True, "options": {}},
        "control code, guided 1.5": {"code": True, "options": {"guidance": 1.5}},
        "control code, guided 3": {"code": True, "options": {"guidance": 3.0}},
        "no code": {"code": False, "options": {}},
        "PPLM, bag of words": {"code": False, "options": {}, "words": WORDS},
    }
    found = [Arm(name, alone, (), "", data, {**way, "told": n}, knows) for name, way in ways.items()]
    return [*found, Arm("finetuned", tune, grid(1e-3), "", data, {"code": True, "options": {}, "told": n})]


def told(trained: Trained) -> dict[str, float]:
    """Stories asked for in the style: whether they are of it, whether they hold together, forward passes a token."""
    measure, level = trained.cell.measure, trained.cell.data["level"]
    code = grammar(level, UNSEEN).code
    prompt, options = code.rstrip() if measure["code"] else "", dict(measure["options"])
    T = trained.model.config.block_size
    steer = steering([bag_of_words(measure["words"], trained.tokenizer)[0]], None, "") if "words" in measure else None
    texts = generate(
        trained.model,
        trained.tokenizer,
        [prompt] * measure["told"],
        begin_document=True,
        max_new_tokens=T - 8,
        seed=trained.cell.seed,
        temperature=1.0,
        top_p=1.0,
        steering=steer,
        **options,
    )
    stories = [without_code((prompt + text).strip()) for text in texts]
    graded = judge([code + story for story in stories], train=copies_of(trained.data), level=level, style=UNSEEN)
    return {
        "obeyed": obeyed(stories, level, UNSEEN),
        "coherent": 100 * graded.share,
        "before": 100 * graded.mean_before,
        # A backward pass counts as two forward ones.
        "passes_per_token": 2.0 + 3.0 * steer.n_iterations if steer else 2.0 if "guidance" in options else 1.0,
    }


QUESTION = Question(
    **prose("steer"),
    measures=(
        OBEYED,
        BEFORE,
        COHERENT,
        TERAFLOPS,
        Measure("passes_per_token", "forward passes a token", "", digits=0),
    ),
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
