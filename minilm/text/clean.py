"""Cleaning documents on their way to a corpus: repair, language, exact and near duplicates, length.

A recipe is a list of steps, `"repair,language:en,near_duplicates:0.7,min_tokens:128"`, run in that order; what each
step changed and dropped is counted. Every step is deterministic: the same documents in the same order give the same
corpus.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from minilm.config import nearest
from minilm.errors import UsageError
from minilm.text.encode import up_to
from minilm.text.parallel import in_order
from minilm.text.sources import needed

LANGUAGE_CHARS = 2_000  # of a document's middle: enough to be sure, and langdetect is slow
PERMUTATIONS = 128
SHINGLE_WORDS = 5
WORD = re.compile(r"\w+")
CHUNK_CHARS = 1 << 18  # cleaned at once by one process
WORTH_CHARS = 1 << 22  # below, starting processes takes longer than they save

T = TypeVar("T")
Found = tuple[str, Any, float]
"""What a step was given, what its work found, and the seconds that took."""


class Step(NamedTuple):
    """Without `keeps`, `work` gives the text anew, or None where it is dropped. With it, `work` gives what `keeps`
    decides by, which remembers what it saw."""

    work: Callable[[str], Any]
    keeps: Callable[[Any], bool] | None = None


@dataclass
class Count:
    """What one step did, and on one core in what time."""

    seen: int = 0
    changed: int = 0
    dropped: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class Cleaner:
    """The steps of a recipe, each with its count. A cleaner remembers what it saw: one is for one corpus."""

    recipe: str
    steps: list[tuple[str, Step]]
    min_tokens: int = 0
    """Documents of fewer tokens are dropped where they are encoded."""
    counts: dict[str, Count] = field(default_factory=dict)

    def run(self, documents: Iterable[tuple[str, T]], workers: int) -> Iterator[tuple[str, T]]:
        """Cleaned texts, each with what came with it, in order; work goes to `workers` processes, decisions stay here,
        so that their number changes nothing."""
        documents = iter(documents)
        n_chars = 0
        while workers < 2 or n_chars < WORTH_CHARS:
            if (document := next(documents, None)) is None:
                return
            n_chars += len(document[0])
            if (text := self.clean(document[0])) is not None:
                yield text, document[1]
        for (_, others), found in in_order("minilm.text.clean:finder", self.recipe, chunks(documents), workers):
            for other, (original, steps) in zip(others, found, strict=True):
                if (text := self._decided(original, steps)) is not None:
                    yield text, other

    def clean(self, text: str) -> str | None:
        return self._decided(text, self.found(text))

    def found(self, text: str) -> Iterator[Found]:
        """What each step finds while none that remembers drops the text."""
        for _, step in self.steps:
            begun = time.thread_time()
            found = step.work(text)
            yield text, found, time.thread_time() - begun
            if step.keeps is None:
                if found is None:
                    return
                text = found

    def _decided(self, text: str, steps: Iterable[Found]) -> str | None:
        for (name, step), (before, found, seconds) in zip(self.steps, steps, strict=False):
            begun = time.thread_time()
            count = self.counts.setdefault(name, Count())
            kept = found is not None if step.keeps is None else step.keeps(found)
            count.seen += 1
            count.bytes += len(before) if before.isascii() else len(before.encode("utf-8", "replace"))
            count.seconds += seconds + time.thread_time() - begun
            if not kept:
                count.dropped += 1
                return None
            if step.keeps is None:
                count.changed += found != before
                text = found
        return text

    def report(self) -> str:
        """A line for each step; the slowest is named."""
        lines, speeds = [], {}
        for name, count in self.counts.items():
            share = count.dropped / max(count.seen, 1)
            changed = f", changed {count.changed:,}" if count.changed else ""
            speeds[name] = count.bytes / 1e6 / max(count.seconds, 1e-9)
            lines.append(
                f"{name}: of {count.seen:,} documents dropped {count.dropped:,} ({share:.1%}){changed}; "
                f"{speeds[name]:.2f} MB/s on a core"
            )
        if len(speeds) > 1:
            lines.append(f"slowest: {min(speeds, key=lambda name: speeds[name])}")
        return "\n".join(lines)


def finder(recipe: str) -> Callable[[tuple[list[str], Any]], list[tuple[str, list[Found]]]]:
    """The work of `run`'s processes."""
    cleaner = make_cleaner(recipe)
    return lambda chunk: [(text, list(cleaner.found(text))) for text in chunk[0]]


def chunks(documents: Iterable[tuple[str, T]]) -> Iterator[tuple[list[str], list[T]]]:
    """Texts, and what came with them, in lists of CHUNK_CHARS characters and a little more."""
    documents = iter(documents)
    while some := list(up_to(CHUNK_CHARS, documents, lambda document: len(document[0]))):
        yield [text for text, _ in some], [other for _, other in some]


def make_cleaner(recipe: str) -> Cleaner:
    """The cleaner of a recipe. Raises UsageError for an unknown step or a value that is none."""
    cleaner = Cleaner(recipe, [])
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
    off = dict.fromkeys(("unescape_html", "uncurl_quotes", "fix_latin_ligatures", "fix_character_width"), False)
    config = ftfy.TextFixerConfig(normalization=None, **off)
    return Step(lambda text: str(ftfy.fix_text(text, config)))


def _language(part: str, value: str) -> Step:
    """language:en:0.8: keeps what langdetect (Nakatani 2010) calls English with at least that probability (0.5)."""
    name, _, threshold = value.partition(":")
    least = _number(part, threshold or "0.5", 0, 1)
    known = needed("langdetect.detector_factory")
    known.init_factory()
    languages = known._factory.get_lang_list()
    if name not in languages:
        raise UsageError(f"langdetect knows no language {name!r}: write one of {', '.join(sorted(languages))}")

    return Step(lambda text: text if language_share(text, name) >= least else None)


def language_share(text: str, language: str) -> float:
    """langdetect's probability of the language, from up to LANGUAGE_CHARS characters of the middle; 0 where it finds no
    language at all. Its random numbers are seeded for each text."""
    detector = needed("langdetect")
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

    def work(text: str) -> bytes:
        return hashlib.blake2b(" ".join(text.lower().split()).encode("utf-8", "replace"), digest_size=16).digest()

    def keeps(key: bytes) -> bool:
        is_new = key not in seen
        seen.add(key)
        return is_new

    return Step(work, keeps)


def _near_duplicates(part: str, value: str) -> Step:
    """Drops a text whose Jaccard similarity, of sets of 5 words in a row, with one that was kept is at least the value
    (0.7), estimated by 128 minimal hashes; candidates by locality-sensitive hashing (Broder 1997; Leskovec 2014)."""
    least = _number(part, value or "0.7", 0.05, 1)
    datasketch = needed("datasketch")
    index = datasketch.MinHashLSH(threshold=least, num_perm=PERMUTATIONS)
    kept: list[Any] = []

    def work(text: str) -> Any:
        signature = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
        signature.update_batch([shingle.encode("utf-8", "replace") for shingle in shingles(text)])
        return datasketch.LeanMinHash(signature)

    def keeps(signature: Any) -> bool:
        if any(signature.jaccard(kept[i]) >= least for i in index.query(signature)):
            return False
        index.insert(len(kept), signature, check_duplication=False)
        kept.append(signature)
        return True

    return Step(work, keeps)


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
