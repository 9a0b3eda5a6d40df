"""Cleaning documents on their way to a corpus: repair, language, exact and near duplicates, length.

A recipe is a list of steps, `"repair,language:en,near_duplicates:0.7,min_tokens:128"`, run in that order; what each
step changed and dropped is counted. Every step is deterministic: the same documents in the same order give the same
corpus.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from minilm.config import nearest
from minilm.errors import UsageError
from minilm.text.sources import needed

LANGUAGE_CHARS = 2_000  # of a document's middle: enough to be sure, and langdetect is slow
PERMUTATIONS = 128
SHINGLE_WORDS = 5
WORD = re.compile(r"\w+")
Step = Callable[[str], str | None]
"""Text in, text out, or None where the document is dropped."""


@dataclass
class Count:
    """What one step did."""

    seen: int = 0
    changed: int = 0
    dropped: int = 0


@dataclass
class Cleaner:
    """The steps of a recipe, each with its count. A cleaner remembers what it saw: one is for one corpus."""

    steps: list[tuple[str, Step]]
    min_tokens: int = 0
    """Documents of fewer tokens are dropped where they are encoded."""
    counts: dict[str, Count] = field(default_factory=dict)

    def __call__(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            if (cleaned := self.clean(text)) is not None:
                yield cleaned

    def clean(self, text: str) -> str | None:
        for name, step in self.steps:
            count = self.counts.setdefault(name, Count())
            count.seen += 1
            cleaned = step(text)
            if cleaned is None:
                count.dropped += 1
                return None
            count.changed += cleaned != text
            text = cleaned
        return text

    def report(self) -> str:
        """A line for each step."""
        lines = []
        for name, count in self.counts.items():
            share = count.dropped / max(count.seen, 1)
            changed = f", changed {count.changed:,}" if count.changed else ""
            lines.append(f"{name}: of {count.seen:,} documents dropped {count.dropped:,} ({share:.1%}){changed}")
        return "\n".join(lines)


def make_cleaner(recipe: str) -> Cleaner:
    """The cleaner of a recipe. Raises UsageError for an unknown step or a value that is none."""
    cleaner = Cleaner([])
    for part in filter(None, (part.strip() for part in recipe.split(","))):
        name, _, value = part.partition(":")
        if name == "min_tokens":
            cleaner.min_tokens = int(_number(part, value or "128", 1, 1 << 40))
        elif name in STEPS:
            cleaner.steps.append((part, STEPS[name](part, value)))
        else:
            known = [*STEPS, "min_tokens"]
            raise UsageError(f"there is no cleaning step {name!r}{nearest(name, known)}: choose {', '.join(known)}")
    return cleaner


def _number(part: str, value: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise UsageError(f"{part!r} needs a number from {low:g} to {high:g} behind its colon")
    return number


def _repair(part: str, value: str) -> Step:
    """Mojibake, control characters and line ends, by ftfy (Speer 2019); what an author may have meant (curly quotes,
    ligatures, wide letters, entities) stays."""
    ftfy = needed("ftfy")
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        normalization=None,
    )
    return lambda text: str(ftfy.fix_text(text, config))


def _language(part: str, value: str) -> Step:
    """language:en:0.8: keeps what langdetect (Nakatani 2010) calls English with at least that probability (0.5)."""
    name, _, threshold = value.partition(":")
    least = _number(part, threshold or "0.5", 0, 1)
    detector = needed("langdetect")
    known = needed("langdetect.detector_factory")
    known.init_factory()
    languages = known._factory.get_lang_list()
    if name not in languages:
        raise UsageError(f"langdetect knows no language {name!r}: write one of {', '.join(sorted(languages))}")

    def step(text: str) -> str | None:
        return text if language_share(text, name, detector) >= least else None

    return step


def language_share(text: str, language: str, detector: Any = None) -> float:
    """langdetect's probability of the language, from up to LANGUAGE_CHARS characters of the middle; 0 where it finds no
    language at all. Its random numbers are seeded for each text."""
    detector = detector or needed("langdetect")
    detector.DetectorFactory.seed = 0
    start = max((len(text) - LANGUAGE_CHARS) // 2, 0)
    try:
        found = detector.detect_langs(text[start : start + LANGUAGE_CHARS])
    except detector.LangDetectException:  # no letters
        return 0.0
    return float(next((one.prob for one in found if one.lang == language), 0.0))


def _duplicates(part: str, value: str) -> Step:
    """Drops a text that came before, blanks and case aside. Memory: 16 bytes and a set's entry for each."""
    seen: set[bytes] = set()

    def step(text: str) -> str | None:
        key = hashlib.blake2b(" ".join(text.lower().split()).encode("utf-8", "replace"), digest_size=16).digest()
        if key in seen:
            return None
        seen.add(key)
        return text

    return step


def _near_duplicates(part: str, value: str) -> Step:
    """Drops a text whose Jaccard similarity, of sets of 5 words in a row, with one that was kept is at least the value
    (0.7), estimated by 128 minimal hashes; candidates by locality-sensitive hashing (Broder 1997; Leskovec 2014)."""
    least = _number(part, value or "0.7", 0.05, 1)
    datasketch = needed("datasketch")
    index = datasketch.MinHashLSH(threshold=least, num_perm=PERMUTATIONS)
    kept: list[Any] = []

    def step(text: str) -> str | None:
        signature = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
        signature.update_batch([shingle.encode("utf-8", "replace") for shingle in shingles(text)])
        if any(signature.jaccard(kept[i]) >= least for i in index.query(signature)):
            return None
        index.insert(len(kept), signature, check_duplication=False)
        kept.append(datasketch.LeanMinHash(signature))
        return text

    return step


def shingles(text: str) -> set[str]:
    """Every 5 lower-cased words in a row; the words themselves where there are fewer."""
    words = WORD.findall(text.lower())
    places = range(max(len(words) - SHINGLE_WORDS + 1, 1))
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in places}


STEPS: dict[str, Callable[[str, str], Step]] = {
    "repair": _repair,
    "language": _language,
    "duplicates": _duplicates,
    "near_duplicates": _near_duplicates,
}
