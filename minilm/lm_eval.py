"""lm-evaluation-harness on minilm's models: `python -m minilm.lm_eval --model_args path=runs/x --tasks ...`.

The command line is lm-eval's own; `run` and `--model minilm` are filled in. model_args: path (as `--checkpoint`),
tokenizer, device, batch_tokens.
"""

from __future__ import annotations

import sys
from typing import Any

from minilm.errors import MinilmError, UsageError


def main() -> int:
    """Runs lm-eval's command line with our model registered; returns the exit code."""
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        words = ["run", *words]
    if words[0] == "run" and not {"--model", "-M", "-h", "--help"} & set(words):
        words = ["run", "--model", "minilm", *words[1:]]
    sys.argv = ["minilm.lm_eval", *words]
    try:
        try:
            from lm_eval.__main__ import cli_evaluate
        except ImportError:
            raise UsageError('other people\'s benchmarks need lm-eval: pip install "minilm[eval]"') from None
        import minilm.lm_eval_model  # noqa: F401  registers the model

        cli_evaluate()
    except MinilmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def check_model_args(path: Any, batch_tokens: Any) -> tuple[str, int]:
    """What lm-eval made of model_args, as what they should be. Raises UsageError where they are not."""
    if path in ("", None):
        raise UsageError("model_args names no model: pass --model_args path=runs/x")
    try:
        n = int(batch_tokens)
    except (TypeError, ValueError):
        n = 0
    if n < 1:
        raise UsageError(f"model_args: batch_tokens is a whole number, 1 or more, not {batch_tokens!r}")
    return str(path), n


if __name__ == "__main__":
    raise SystemExit(main())
