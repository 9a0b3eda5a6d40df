"""What finetunes how fast: near and far, known and special text, little and much; against training it from scratch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minilm.lab.finetune import FORGOTTEN, UNSEEN, base, finetuning, forgetting
from minilm.lab.measures import BITS, LOSS, STEPS_TO_REFERENCE
from minilm.lab.question import Arm, Claim, Question, Scale, grid
from minilm.lab.trial import Trained

DOMAINS: dict[str, dict[str, Any]] = {
    "known style": {"style": "fable"},
    "new style": {"style": UNSEEN},
    "harder tales": {"style": "plain", "level": 3},
    "manual": {"local": "manual"},
    "code": {"local": "code"},
}


def arms(scale: Scale) -> list[Arm]:
    found, run = [], scale.extra["finetune"]
    scratch = replace(base(scale), weights=False)
    for domain, options in DOMAINS.items():
        for megabytes in scale.extra["megabytes"]:
            data = {**options, "megabytes": megabytes, "vocabulary": "base"}
            group, measure = f"{domain}, {megabytes:g} MB", {"documents": scale.extra["documents"]}
            found.append(Arm("finetuned", run, grid(1e-3), group, data, measure, x=1e6 * megabytes))
            found.append(Arm("from scratch", run, grid(1e-2), group, data, {}, scratch, x=1e6 * megabytes))
    return found


def forgotten(trained: Trained) -> dict[str, float]:
    return forgetting(trained) if trained.cell.arm.startswith("finetuned") else {}


QUESTION = Question(
    name="domains",
    asks="On which text does finetuning pay, how much and how fast, beside training from scratch on it?",
    varied="The domain (a style the base knows, one it does not, harder tales, the Python manual, Python code), "
    "how much "
    "text there is, and whether training starts from the base.",
    fixed="The base (tales in three styles), its tokenizer, model, steps, batches; as many rates tried for each.",
    would_change="A domain where starting from the base loses: the preset finetune would warn of it.",
    measures=(LOSS, STEPS_TO_REFERENCE, BITS, FORGOTTEN),
    margin=0.02,
    reference="from scratch",
    arms=arms,
    scales=finetuning({"megabytes": (0.02,)}, {"megabytes": (0.03, 0.3)}, {"megabytes": (0.03, 0.4)}, n_stories=0),
    minutes=30,
    published=(
        Claim(
            "Pretraining on text of another domain still helps, the more the nearer it is.",
            "Gururangan 2020, arXiv:2004.10964",
            {"finetuned": "better"},
        ),
    ),
    threats=(
        "The base has read only tales, with a tokenizer made for them: what is far is spelt in short pieces.",
        "Equal steps: from scratch would gain more from more of them.",
        "Manual and code are those of the Python that runs: their fingerprint is in the results.",
    ),
    base=base,
    measure=forgotten,
)
