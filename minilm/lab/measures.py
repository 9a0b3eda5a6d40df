"""Measures that several questions share. A line's metrics hold them by name; those of the analysis are worked out."""

from __future__ import annotations

from minilm.lab.question import Measure

LOSS = Measure("val_loss", "validation loss", "nats per token", digits=4)
BITS = Measure("bits_per_byte", "validation loss", "bits per byte", digits=4)
COHERENT = Measure("coherent", "coherent stories", "%", "higher", 1)
BEFORE = Measure("before", "sentences before the first broken rule", "%", "higher", 1)
WRITES = (BEFORE, COHERENT, LOSS)
SPEED = Measure("tokens_per_second", "training speed", "tokens per second", "higher", 0)
STATE = Measure("state_megabytes", "optimizer state", "MB", digits=2)
TRAINED = Measure("trained", "trained parameters", "", digits=0)
PARAMETERS = Measure("parameters", "parameters", "", digits=0)
TERAFLOPS = Measure("teraflops", "training compute", "TFLOP", digits=1)
SECONDS_ALONE = Measure("seconds_alone", "training time at the timed speed", "s", digits=0)
STEPS_TO_REFERENCE = Measure("steps_to_reference", "steps to the reference's last loss", "", digits=0)
STORY_LOSS = Measure("story_loss", "loss of stories, each from its beginning", "nats per token", digits=4)
TRAIN_LOSS = Measure("train_loss", "loss of the training rows", "nats per token", digits=4)
COPIED = Measure("copied", "stories copied from the training text", "%", digits=1)
OBEYED = Measure("obeyed", "stories whose first sentence is of the style asked for", "%", "higher", 1)
