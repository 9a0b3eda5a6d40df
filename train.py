"""Trains a model. `python train.py --help` lists every option; without any, `tiny` learns to tell tales."""

from minilm.cli import run_door

if __name__ == "__main__":
    raise SystemExit(run_door("train"))
