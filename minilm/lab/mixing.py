"""Whether other data sets beside one's own help or hurt; control codes, and whether they are obeyed."""

from __future__ import annotations

from typing import Any

from minilm.evaluation.text_metrics import sample_documents
from minilm.lab.measures import OBEYED
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Measure, Question, Scale, grid, prose
from minilm.lab.stories import behind_code, obeyed
from minilm.lab.texts import without_code
from minilm.lab.trial import Trained
from minilm.model.hub import step_folders
from minilm.model.weights import load_pretrained
from minilm.text.tales import stories
from minilm.text.tales.grammar import grammar

OWN, OTHERS = "letter", ("plain", "fable", "news")
OWN_LOSS = Measure("own_loss", "lowest loss of one's own style, its code given", "nats per token", digits=4)
LAST_LOSS = Measure("last_loss", "the same at the end of the run", "nats per token", digits=4)
LOOKS = 10  # checkpoints of a run, of which the best counts


def arms(scale: Scale) -> list[Arm]:
    few, many = scale.extra["few"], scale.extra["many"]
    own = {"style": OWN, "megabytes": few}
    words = {"vocabulary": {"style": ",".join((*OTHERS, OWN)), "megabytes": many}}
    run = {"save_every_steps": max(scale.run["max_steps"] // LOOKS, 1), "keep_checkpoints": LOOKS}
    found = []
    for codes in (True, False):
        how = "codes" if codes else "no codes"
        plain: dict[str, Any] = {**words, **({} if codes else {"codes": False})}
        for name, share in (("half others", 0.5), ("nine tenths others", 0.9)):
            parts = [{**own, "weight": round(1 - share, 3)}]
            parts += [{"style": s, "megabytes": many / 3, "weight": round(share / 3, 3)} for s in OTHERS]
            found.append(Arm(f"{name}, {how}", run, grid(1e-2), data={**plain, "parts": parts}))
    alone = Arm("own alone", run, grid(1e-2), data={**words, **own})
    measure = {"documents": scale.extra["documents"], "kept": "lowest"}
    return [Arm(a.name, a.run, a.rates, data=a.data, measure=measure) for a in (alone, *found)]


def own_style(trained: Trained) -> dict[str, float]:
    """The loss of fresh stories of one's own style, their code given, and whether stories asked for are of it: by the
    checkpoint whose loss of that style's validation stories is the lowest, as stopping early would have kept it."""
    cell, tokenizer = trained.cell, trained.tokenizer
    level, n = cell.data["level"], cell.measure["documents"]
    code = grammar(level, OWN).code if cell.data.get("codes", True) else ""
    val, fresh = ([without_code(t) for t in stories(n=n, level=level, style=OWN, split=s)] for s in ("val", "fresh"))
    found = []
    for folder in step_folders(trained.checkpoint.parent):
        model = load_pretrained(folder)[0].to(trained.model.device).eval()
        found.append((behind_code(model, tokenizer, val, code), folder.name, model))
    _, name, best = min(found, key=lambda one: one[:2])
    told = sample_documents(best, tokenizer, code, n, max_new_tokens=40, seed=cell.seed)
    return {
        "own_loss": behind_code(best, tokenizer, fresh, code),
        "last_loss": behind_code(trained.model, tokenizer, fresh, code),
        "kept_step": float(name.removeprefix("step_")),
        "obeyed": obeyed([without_code(text.strip()) for text in told], level, OWN),
    }


QUESTION = Question(
    **prose("mixing"),
    measures=(OWN_LOSS, LAST_LOSS, Measure("kept_step", "step of the lowest", "", digits=0), OBEYED),
    margin=0.01,
    reference="own alone",
    chosen_by="own_loss",
    arms=arms,
    scales={
        "smoke": SMOKE.but(n_rates=1, n_stories=0, extra={"few": 0.02, "many": 0.03, "documents": 2}),
        "laptop": LAPTOP.but(n_stories=0, extra={"few": 0.1, "many": 3.0, "documents": 200}),
        "gpu": GPU.but(n_stories=0, extra={"few": 1.0, "many": 60.0, "documents": 500}),
    },
    measure=own_style,
)
