"""Vocabularies made from text: its characters, its words, or a byte-level BPE trained on it.

Texts are read once, one at a time. Characters and words are counted here; the BPE is the tokenizers library's trainer,
which keeps the distinct words of the text in memory (Sennrich 2016, https://arxiv.org/abs/1508.07909).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from minilm.errors import UsageError
from minilm.text.vocabulary import CHARS_SPLIT, WORDS_SPLIT, Spec, bpe_spec, listed_spec, merge_list

N_SPECIAL = 2
"""Rows that characters and words give to the unknown and the end-of-text token."""


def check_text(text: str) -> None:
    """Raises UsageError where `text` is no Unicode string: not a str, or with half a surrogate pair in it."""
    if not isinstance(text, str):
        raise UsageError(f"a tokenizer encodes str, not {type(text).__name__}")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text has U+{ord(text[error.start]):04X} at character {error.start}, half of a surrogate pair, which "
            'is not valid Unicode: read its file again with errors="replace"'
        ) from None


def train_spec(kind: str, texts: Iterable[str], vocab_size: int = 0) -> Spec:
    """See `tokenizer.train_tokenizer`."""
    makers = {"chars": _chars, "words": _words, "bpe": _bpe}
    if kind not in makers:
        ready = " (it needs no training: get_tokenizer gives it)" if kind in ("gpt2", "bytes") else ""
        raise UsageError(f"no tokenizer of kind {kind!r} is made from text{ready}: choose {', '.join(makers)}")
    return makers[kind](_checked([texts] if isinstance(texts, str) else texts), vocab_size)


def _checked(texts: Iterable[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        check_text(text)
        if text:
            empty = False
            yield text
    if empty:
        raise UsageError("there is no text to make a vocabulary from: every document is empty, or there is none")


def _chars(texts: Iterator[str], vocab_size: int) -> Spec:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return listed_spec(sorted(_most_common(counts, vocab_size)), CHARS_SPLIT)


def _words(texts: Iterator[str], vocab_size: int) -> Spec:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    # A space only opens a token: the text may be cut before each, and each distinct piece is split once.
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for text in texts:
        head, *rest = text.split(" ")
        first[head] += 1
        later.update(rest)
    split = Split(Regex(WORDS_SPLIT), "isolated").pre_tokenize_str
    counts: Counter[str] = Counter()
    for space, chunks in (("", first), (" ", later)):
        for chunk, n in chunks.items():
            for word, _ in split(space + chunk):
                counts[word] += n
    return listed_spec(_most_common(counts, vocab_size), WORDS_SPLIT)


def _most_common(counts: Counter[str], vocab_size: int) -> list[str]:
    """The tokens by frequency, equals by code point: the same text gives the same ids on every machine."""
    if vocab_size and vocab_size <= N_SPECIAL:
        raise UsageError(f"vocab_size must be 0 (all) or more than {N_SPECIAL}, its special tokens, not {vocab_size}")
    tokens = sorted(counts, key=lambda token: (-counts[token], token))
    return tokens[: vocab_size - N_SPECIAL] if vocab_size else tokens


def _bpe(texts: Iterator[str], vocab_size: int) -> Spec:
    if vocab_size < 257:
        raise UsageError(
            f"a byte-level BPE has 256 bytes and an end-of-text token: vocab_size must be 257 or more, not {vocab_size}"
        )
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(texts, trainer)
    spec: Spec = json.loads(trained.to_str())
    return bpe_spec(spec["model"]["vocab"], merge_list(spec))
