"""Where a vocabulary comes from: a `tokenizer.json`, GPT-2's two files, tiktoken's download."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from minilm.errors import UsageError
from minilm.log import read_json
from minilm.text.vocabulary import END_TOKENS, EOT, Spec, bpe_spec, byte_chars, merges_from_ranks

GPT2_VARIABLE = "MINILM_GPT2_TOKENIZER"
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
"""OpenAI's names and Hugging Face's for the same two files."""


def read(path: Path) -> tuple[Spec, str | None]:
    """The spec in a `tokenizer.json`, or in a folder that holds one or GPT-2's two files, and the end token stated
    in `tokenizer_config.json` beside it. Raises UsageError where there is none or it is damaged."""
    if path.is_dir():
        if not (path / "tokenizer.json").exists():
            return _read_pair(path), None
        path = path / "tokenizer.json"
    spec = read_json(path)
    config = path.with_name("tokenizer_config.json")
    stated = read_json(config).get("eos_token") if config.exists() else None
    return spec, stated.get("content") if isinstance(stated, dict) else stated


def _read_pair(folder: Path) -> Spec:
    for names in GPT2_FILES:
        vocab_path, merges_path = (folder / name for name in names)
        if vocab_path.exists() and merges_path.exists():
            break
    else:
        pairs = " or ".join(" and ".join(names) for names in GPT2_FILES)
        raise UsageError(f"{folder} holds no tokenizer: it needs a tokenizer.json, or {pairs}")
    vocab = read_json(vocab_path)
    lines = merges_path.read_text(encoding="utf-8", errors="replace").split("\n")
    merges = [line for line in lines[lines[0].startswith("#version") :] if line.strip()]
    tokens = (part for merge in merges for part in (*merge.split(" "), merge.replace(" ", "")))
    if not merges or any(merge.count(" ") != 1 for merge in merges) or any(t not in vocab for t in tokens):
        raise UsageError(
            f"{vocab_path.name} and {merges_path.name} in {folder} do not belong together: copy both again"
        )
    return bpe_spec(vocab, merges, end=next((t for t in END_TOKENS if t in vocab), EOT))


def gpt2_folder() -> Path | None:
    """Where GPT-2's vocabulary should lie: $MINILM_GPT2_TOKENIZER, else ~/.cache/minilm/gpt2 where that exists."""
    named = os.environ.get(GPT2_VARIABLE)
    folder = Path(named).expanduser() if named else Path.home() / ".cache" / "minilm" / "gpt2"
    if named and not folder.exists():
        raise UsageError(f"{folder}, which {GPT2_VARIABLE} names, does not exist: {what_to_put()}")
    return folder if folder.exists() else None


def what_to_put() -> str:
    pairs = ", or ".join(" and ".join(reversed(names)) for names in GPT2_FILES)
    return (
        f"put {pairs}, or tokenizer.json of openai-community/gpt2 into ~/.cache/minilm/gpt2, or name the folder that "
        f"holds them in the environment variable {GPT2_VARIABLE}"
    )


def download_gpt2(limit_s: float = 30.0) -> Spec:
    """GPT-2's vocabulary as tiktoken has it in its cache or downloads it; UsageError after `limit_s` seconds."""
    # tiktoken asks without a time limit, which a network that drops packets turns into minutes: a daemon thread can
    # be left behind.
    import tiktoken

    got: list[Any] = []

    def ask() -> None:
        try:
            got.append(tiktoken.get_encoding("gpt2"))
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not got or isinstance(got[0], Exception):
        why = type(got[0]).__name__ if got else f"no answer in {limit_s:g} s"
        raise UsageError(
            f"GPT-2's vocabulary is not on this machine and tiktoken could not download it ({why}): {what_to_put()}"
        )
    chars = byte_chars()
    rank = {got[0].decode_single_token_bytes(i): i for i in range(got[0].eot_token)}
    vocab = {"".join(chars[b] for b in token): i for token, i in rank.items()}
    merges = merges_from_ranks(rank)
    assert merges is not None, "tiktoken's gpt2 is not GPT-2"
    return bpe_spec(vocab, merges)
