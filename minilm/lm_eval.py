"""lm-evaluation-harness on minilm's models: `python -m minilm.lm_eval --model_args path=runs/x --tasks ...`.

The command line is lm-eval's own; `run` and `--model minilm` are filled in. model_args: path (as `--checkpoint`),
tokenizer, device, batch_tokens.
"""

from __future__ import annotations

import sys

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


if __name__ == "__main__":
    raise SystemExit(main())
