"""Vocabularies in the form of Hugging Face's `tokenizer.json`: how one is made, what it is, what its ids depend on.

Whatever the source (GPT-2's two files, tiktoken's download, a `tokenizer.json`, training), a vocabulary is one
`Spec`: the parsed `tokenizer.json`. The fingerprint covers what decides ids and nothing else, so one tokenizer
written by two programs has one fingerprint. Format: https://huggingface.co/docs/tokenizers/api/tokenizer
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

from minilm.errors import UsageError

Spec = dict[str, Any]

EOT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
END_TOKENS = (EOT, "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>")
"""Known names of an end-of-text token. `EOT` is taken before a token stated beside the file, the rest after."""

GPT2_FINGERPRINT = "e311c571f62b38ad"
"""Of the 50,257 tokens that OpenAI published in 2019."""

WORDS_SPLIT = r"['’](?i:[sdmt]|ll|ve|re)(?![\p{L}\p{M}])| ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}]|\s"
"""Contractions, words, single digits, punctuation and symbols, each with the one space before it; other white space
one character at a time. Single characters keep the vocabulary closed: no "!!!?" to be missing. A space can only open
a token, so text may be cut before any space without changing its tokens."""
CHARS_SPLIT = r"[\s\S]"


def byte_chars() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford 2019, encoder.py)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(spare)) for byte in range(256)]


# Making a spec


def _spec(model: Spec, split: Spec, decoder: Spec, special: dict[str, int]) -> Spec:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": token, **flags, "special": True} for token, i in special.items()]
    spec: Spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    return spec | {"pre_tokenizer": split, "post_processor": None, "decoder": decoder, "model": model}


def _byte_level(use_regex: bool) -> Spec:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def bpe_spec(vocab: dict[str, int], merges: list[str], *, end: str = EOT, use_regex: bool = True) -> Spec:
    """Byte-level BPE over GPT-2's split (none where `use_regex` is off). `end` gets the next id where it has none."""
    vocab = vocab if end in vocab else {**vocab, end: len(vocab)}
    model: Spec = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": ""}
    model |= {"end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges}
    return _spec(model, _byte_level(use_regex), _byte_level(True), {end: vocab[end]})


def bytes_spec() -> Spec:
    """Token i is byte i; 256 ends a text."""
    return bpe_spec({char: byte for byte, char in enumerate(byte_chars())}, [], use_regex=False)


def _split(pattern: str) -> Spec:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def listed_spec(tokens: list[str], pattern: str) -> Spec:
    """The `tokens` as ids 0, 1, ...; then one for whatever is not among them; then end-of-text."""
    vocab = {token: i for i, token in enumerate([*tokens, UNKNOWN, EOT])}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN}
    return _spec(model, _split(pattern), {"type": "Fuse"}, {t: vocab[t] for t in (UNKNOWN, EOT)})


# Reading a spec


def _added(spec: Spec) -> list[Spec]:
    return spec.get("added_tokens") or []


def token_ids(spec: Spec) -> dict[str, int]:
    """Every token of the model and every added one, with its id."""
    vocab = spec["model"]["vocab"]
    ids = {t: i for i, (t, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return ids | {t["content"]: t["id"] for t in _added(spec)}


def model_type(spec: Spec) -> str:
    """BPE, WordLevel, WordPiece or Unigram. Early files, GPT-2's on the Hub among them, leave it out."""
    model = spec["model"]
    if "type" in model:
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def merge_list(spec: Spec) -> list[str]:
    """Merges as "left right", which is how early files have them; later ones have pairs."""
    return [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]


def end_token(spec: Spec, stated: str | None = None) -> str:
    """The token that ends a text: `<|endoftext|>` where it is special, else the one `stated`, else another usual one.
    Raises UsageError where there is none."""
    special = {t["content"] for t in _added(spec) if t.get("special")}
    for token in (EOT, stated, *END_TOKENS[1:]):
        if token in (token_ids(spec) if token == stated else special):
            return str(token)
    raise UsageError(
        'the tokenizer has no end-of-text token that is known or stated: put {"eos_token": "..."} with one of its '
        "tokens into tokenizer_config.json beside its tokenizer.json"
    )


def _deciding(value: Any) -> Any:
    """`value` without what changes no id: options that are off, offsets; ByteLevel's unstated default filled in."""
    if isinstance(value, list):
        return [_deciding(v) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "ByteLevel":
        value = {"use_regex": True, **value}
    off = (k for k, v in value.items() if v is None or v is False or v == "" or k == "trim_offsets")
    return {k: _deciding(value[k]) for k in value.keys() - off}


def splits_like_gpt2(spec: Spec) -> bool:
    """Byte-level BPE after GPT-2's split and with no other option on."""
    plain_model = set(_deciding({k: v for k, v in spec["model"].items() if k not in ("vocab", "merges", "type")}))
    return (
        model_type(spec) == "BPE"
        and not spec.get("normalizer")
        and _deciding(spec.get("pre_tokenizer")) == _deciding(_byte_level(True))
        and plain_model <= {"unk_token", "fuse_unk", "ignore_merges"}
        and all(t.get("special") for t in _added(spec))
        and set(byte_chars()) <= set(spec["model"]["vocab"])
    )


def fingerprint(spec: Spec, eot: int) -> str:
    """16 hexadecimal digits of a SHA-256 over what decides ids: split, vocabulary, merges, special tokens, the end."""
    model = {k: v for k, v in spec["model"].items() if k not in ("vocab", "merges", "type")}
    if splits_like_gpt2(spec):  # every byte has a token: nothing is ever unknown
        model = {k: v for k, v in model.items() if k not in ("unk_token", "fuse_unk")}
    normalizer = _deciding(spec.get("normalizer"))
    flags = ["special", "single_word", "lstrip", "rstrip", *(["normalized"] if normalizer else [])]
    decides = {
        "type": model_type(spec),
        "model": _deciding(model),
        "vocab": token_ids(spec),
        "scores": spec["model"]["vocab"] if isinstance(spec["model"]["vocab"], list) else None,
        "merges": merge_list(spec) if model_type(spec) == "BPE" else None,
        "normalizer": normalizer,
        "pre_tokenizer": _deciding(spec.get("pre_tokenizer")),
        "added": sorted([t["id"], t["content"], *(bool(t.get(f)) for f in flags)] for t in _added(spec)),
        "eot": eot,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def kind(spec: Spec, mark: str) -> str:
    """gpt2, bytes, chars, words, bpe (byte-level), or the model's type for another program's tokenizer."""
    if mark == GPT2_FINGERPRINT:
        return "gpt2"
    if mark == fingerprint(bytes_spec(), 256):
        return "bytes"
    if model_type(spec) == "WordLevel" and spec["model"].get("unk_token") == UNKNOWN and not spec.get("normalizer"):
        for name, pattern in (("chars", CHARS_SPLIT), ("words", WORDS_SPLIT)):
            if _deciding(spec.get("pre_tokenizer")) == _deciding(_split(pattern)):
                return name
    if model_type(spec) == "BPE" and (spec.get("decoder") or {}).get("type") == "ByteLevel":
        return "bpe"
    return model_type(spec).lower()


# Byte-level BPE as ranks, which is how tiktoken has it


def ranks(spec: Spec) -> dict[bytes, int]:
    """Bytes and id of each token of a byte-level vocabulary, special ones left out."""
    byte = {char: i for i, char in enumerate(byte_chars())}
    special = {t["content"] for t in _added(spec)}
    return {bytes(map(byte.__getitem__, t)): i for t, i in spec["model"]["vocab"].items() if t not in special}


def merges_from_ranks(rank: dict[bytes, int]) -> list[str] | None:
    """The merges behind tiktoken's ranks, in order: what each token is made of by the merges below its own rank.

    None where some token is not made of exactly two parts. Where the result equals a vocabulary's own merges, taking
    the adjacent pair whose union has the lowest rank (tiktoken) and taking the lowest-ranked merge (GPT-2, Hugging
    Face) come to the same: whatever two parts make up a token, they are these two by the time its rank is due.
    """
    chars = byte_chars()
    merges = []
    for token, own in sorted(rank.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 1:
            unions = [rank.get(left + right, own) for left, right in itertools.pairwise(parts)]
            lowest = min(unions)
            if lowest >= own:
                break
            i = unions.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) != 2:
            return None
        merges.append(" ".join("".join(chars[b] for b in part) for part in parts))
    return merges
