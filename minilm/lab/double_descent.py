"""Double descent: whether loss falls, rises and falls again, by width or by epochs, with and without label noise."""

from __future__ import annotations

from typing import Any

from minilm.lab.measures import LOSS, PARAMETERS, TRAIN_LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Measure, Picture, Question, Scale, prose
from minilm.lab.statistics import ALPHA, holm, paired_effect, told_p
from minilm.lab.trial import Trained, loss_of_rows


def arms(scale: Scale) -> list[Arm]:
    return [
        Arm(
            "widest" if width == scale.extra["widths"][-1] else f"width {width}",
            # The best rate falls about with the root of the width: a law that is given, not tuned.
            {"n_embd": width, "n_head": 2, "lr": 1e-2 * (192 / width) ** 0.5},
            group=f"{100 * noise:g} % noise",
            data={"noise": noise} if noise else {},
            measure={"train_loss": "rows"},
            x=width,
        )
        for noise in (0.0, 0.2)
        for width in scale.extra["widths"]
    ]


def by_epochs(trained: Trained) -> dict[str, float]:
    """How far the curve rose above its lowest, how far it then fell again; and the loss of training text."""
    losses = [loss for _, loss in trained.metrics["curve"]]
    lowest = losses.index(min(losses))
    peak = max(losses[lowest:])
    split = trained.data.splits["train"]
    return {
        "rise": peak - losses[lowest],
        "fall": peak - losses[-1],
        "train_loss": loss_of_rows(trained.model, trained.cell.config, split),
        "epochs": trained.metrics["tokens"] / split.n_tokens,
    }


def peak(analysis: Any) -> str:
    """Whether an inner width's loss stands above the narrowest's and the widest's: p is the larger of the two, after
    Holm's correction over the inner widths, of which the highest is told."""
    found = []
    for group in dict.fromkeys(r.arm.group for r in analysis.arms):
        low, *inner, high = sorted((r for r in analysis.arms if r.arm.group == group), key=lambda r: r.arm.x)
        pairs = [[paired_effect(r.values["val_loss"], end.values["val_loss"]) for end in (low, high)] for r in inner]
        adjusted = holm([max(e.p if e.mean > 0 else 1.0 for e in both) for both in pairs])
        p, r, both = max(zip(adjusted, inner, pairs, strict=True), key=lambda one: one[1].mean("val_loss"))
        each = zip(both, ("narrowest", "widest"), strict=True)
        beside = ", ".join(f"{e.mean:+.3f} beside the {end} ({e.interval(3)})" for e, end in each)
        verdict = "agrees" if p < ALPHA else "disagrees" if any(e.high < 0 for e in both) else "undecided here"
        found.append(f"{group}: highest at {r.arm.name}, {beside}, p {told_p(p)}, {verdict}")
    return "; ".join(found)


def told(analysis: Any) -> list[str]:
    """Both descents: over widths, and along a run, where an arm's fall after its peak lies above zero."""
    falls = {r.arm.label: paired_effect(r.values["fall"], [0.0] * len(r.values["fall"])) for r in analysis.arms}
    found = [f"{label} ({e.mean:.4f}, {e.interval(4)})" for label, e in falls.items() if e.low > 0]
    along = f"Along a run the loss fell again after its rise in {len(found)} of {len(falls)} arms"
    return [f"By width, {peak(analysis)}. {along}{': ' if found else ''}{', '.join(found)}."]


def _scale(scale: Scale, megabytes: float, widths: tuple[int, ...], **run: Any) -> Scale:
    run = {"schedule": "constant", "weight_decay": 0.0, "position": "learned", **run}
    return scale.but(run, {"megabytes": megabytes}, extra={"widths": widths})


QUESTION = Question(
    **prose("double_descent"),
    measures=(
        LOSS,
        TRAIN_LOSS,
        Measure("rise", "rise of the loss above its lowest during training", "nats per token", digits=4),
        Measure("fall", "its fall after that peak", "nats per token", "higher", 4),
        Measure("epochs", "passes over the text", "", digits=0),
        PARAMETERS,
    ),
    margin=0.02,
    reference="widest",
    arms=arms,
    scales={
        "smoke": _scale(SMOKE.but(n_stories=0), 0.02, (8, 16, 24)),
        "laptop": _scale(LAPTOP.but(n_stories=0), 0.05, (8, 16, 32, 64, 128), max_steps=400, eval_every_steps=20),
        "gpu": _scale(GPU.but(n_stories=0), 0.5, (32, 64, 128, 256, 512), max_steps=20_000),
    },
    pictures=(
        Picture("lines", "width", "val_loss", log=True),
        Picture("lines", "width", "train_loss", log=True),
        Picture("curves", "passes over the text", "val_loss"),
    ),
    measure=by_epochs,
    tells=told,
    tells_first=True,
    judges={"Nakkiran 2019": peak},
)
