"""Writes text with a trained model. `python sample.py --help` lists every option; the newest run is the default."""

from minilm.cli import run_door

if __name__ == "__main__":
    raise SystemExit(run_door("sample"))
