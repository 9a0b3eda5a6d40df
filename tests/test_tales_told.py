"""What the tales' generator tells: how much of it, in which words; that seeds and held-out words stay apart."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from itertools import islice

import pytest

from minilm.errors import UsageError
from minilm.text import tales
from minilm.text.tales.events import apply
from minilm.text.tales.grammar import FIELD, grammar, plan_variants, tables
from minilm.text.tales.words import is_held_out_pair
from minilm.text.tales.world import State

EVERY = [(level, style) for level in tales.LEVELS for style in tales.STYLES]


@cache
def sample(level: int, style: str = "plain", n: int = 300, split: str = "train") -> list[str]:
    return list(tales.stories(n=n, level=level, style=style, split=split))


@cache
def traces(level: int, style: str = "plain", n: int = 200) -> list[list[tales.Beat]]:
    return [tales.trace(seed, level, style) for seed in range(n)]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())


@pytest.mark.parametrize(("level", "style"), EVERY)
def test_story_is_a_pure_function_of_its_arguments(level: int, style: str) -> None:
    code = "" if style == "plain" else f"{style}: "
    told = tales.story(7, level, style)
    assert told == tales.story(7, level, style)
    beats = tales.trace(7, level, style)
    assert told == code + " ".join(beat.text for beat in beats)
    first = list(tales.stories(n=5, seed=3, level=level, style=style))
    assert first == list(islice(tales.stories(n=50, seed=3, level=level, style=style), 5))
    assert len({tales.story(seed, level, style) for seed in (0, 1, 2**32, 2**63, 2**64 - 1)}) == 5


def test_every_process_tells_the_same() -> None:
    """Python hashes strings anew in every process; no story may depend on it."""
    code = """from minilm.text import tales
for level, style in ((1, "plain"), (3, "dialogue"), (4, "letter")):
    for split in tales.SPLITS: print(*tales.stories(n=5, level=level, style=style, split=split), sep="\\n")"""
    told = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        told.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert len(told) == 1
    assert min(told).count(b"\n") == 3 * 5 * len(tales.SPLITS)


@pytest.mark.parametrize("level", tales.LEVELS)
def test_splits_and_seeds_do_not_overlap(level: int) -> None:
    streams = [set(sample(level, n=300, split=split)) for split in tales.SPLITS]
    streams += [set(tales.stories(n=300, seed=1, level=level))]
    assert sum(map(len, streams)) == len(set.union(*streams)) == 300 * (len(tales.SPLITS) + 1)


def test_seeds_whose_numbers_random_confuses() -> None:
    assert tales.story(257) != tales.story(257 + 2**40)


def test_megabytes_counts_bytes() -> None:
    for level in tales.LEVELS:
        texts = list(tales.stories(megabytes=0.05, level=level))
        size = sum(len(text) + 1 for text in texts)
        assert size - len(texts[-1]) - 1 < 50_000 <= size


@pytest.mark.parametrize("level", tales.LEVELS)
def test_held_out_words_and_pairs_stand_in_their_own_split_only(level: int) -> None:
    g = grammar(level)
    held = tales_held_out(level)
    assert len(held["names"]) >= 10
    assert len(held["things"]) >= 5
    known = {split: [set(words_of(text)) for text in sample(level, n=300, split=split)] for split in tales.SPLITS}
    for split, texts in known.items():
        for kind, words in held.items():
            hits = [bool(text & words) for text in texts]
            assert all(hits) if split == kind else not any(hits)
    names = {name.lower(): name for name in g.lexicon.sex}
    for split in tales.SPLITS:
        pairs = []
        for text in sample(level, n=300, split=split):
            said = words_of(text)
            hero = next(names[word] for word in said if word in names)
            things = dict.fromkeys(word for word in said if word in g.lexicon.verbs and word != "key")
            pairs.append((hero, list(things)))
        if split == "pairs":
            assert all(any(is_held_out_pair(hero, noun) for noun in things) for hero, things in pairs)
        elif split in ("train", "val", "fresh") and level == 1:
            assert not any(is_held_out_pair(hero, noun) for hero, things in pairs for noun in things)


def tales_held_out(level: int) -> dict[str, set[str]]:
    table = tables(level)["held_out"]
    names = {name.lower() for sex in ("she", "he") for name in table[sex].split()}
    return {"names": names, "things": {noun for nouns in table["use"].values() for noun in nouns.split()}}


@pytest.mark.parametrize(("level", "style"), EVERY)
def test_levels_keep_to_their_limits(level: int, style: str) -> None:
    """Counted in the traces; the words in the text, the control code apart."""
    most = {1: (1, 1, 2), 2: (2, 2, 3), 3: (3, 3, 4), 4: (4, 4, 4)}[level]
    shortest, longest = {1: (30, 54), 2: (40, 100), 3: (100, 170), 4: (150, 300)}[level]
    seen: list[tuple[int, ...]] = []
    for beats in traces(level, style, 200 if style == "plain" else 50):
        letters = {x for beat in beats for event in beat.events for x in event[1:]}
        seen.append(tuple(len(letters & set(kind)) for kind in ("XYZW", "TUVS", "PQRO")))
        n_words = sum(len(beat.text.split()) for beat in beats)
        assert shortest <= n_words <= longest + 16 * (style != "plain")
    largest, smallest = (tuple(map(f, zip(*seen, strict=True))) for f in (max, min))
    assert all(have <= allowed for have, allowed in zip(largest, most, strict=True))
    assert largest[0] == most[0]
    assert largest[2] == most[2]
    assert largest[1] >= min(level, 2)
    assert smallest[2] >= 2


def test_how_much_there_is_to_tell() -> None:
    kinds = {n: Counter(e[0] for beats in traces(n) for beat in beats for e in beat.events) for n in tales.LEVELS}
    assert len(kinds[3]) >= 40
    assert len(kinds[4]) >= 60
    assert sum(n >= 3 for n in kinds[3].values()) >= 40
    assert sum(n >= 3 for n in kinds[4].values()) >= 60
    vocabulary = {n: {word for text in sample(n) for word in words_of(text)} for n in tales.LEVELS}
    assert 250 <= len(vocabulary[1]) <= 700
    assert len(vocabulary[1]) <= len(vocabulary[2]) <= len(vocabulary[3])
    assert len(vocabulary[4]) >= 1500, len(vocabulary[4])


def test_every_word_of_level_1_is_common() -> None:
    """Vocabulary is a dial of its own: no word is so rare that a small model cannot learn it."""
    counts = Counter(word for text in sample(1, n=5000) for word in words_of(text))
    assert min(counts.values()) >= 25, counts.most_common()[-5:]


@pytest.mark.parametrize(("level", "style"), EVERY)
def test_stories_are_plain_english(level: int, style: str) -> None:
    texts = sample(level, style, 100)
    for text in texts:
        assert text.isascii()
        assert "  " not in text
        assert text == text.strip()
        assert text.endswith((".", '."'))
        code = re.match(r"[a-z]+: ", text)
        assert (code[0] if code else "") == ("" if style == "plain" else f"{style}: ")
        told = text[code.end() :] if code else text
        assert "{" not in told
        assert told[0] == '"' or told[0].isupper()
        assert not re.search(r"\. [a-z]|[a-z][A-Z]|[ ][.,?!]|[.,][A-Za-z]", told), told
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", told), told
        assert not re.search(r"\b([A-Za-z]+) \1\b", told), told
        assert not re.search(r"\bI (is|has|wants|were)\b|\b(he|she|it) (am|have|were)\b", told), told
        narrates = re.search(r'(^|[^"\w])(I|my|me)\b', re.sub(r'"[^"]*"', "", told)) is not None
        assert narrates == (style in ("letter", "diary")), told
    assert len(set(texts)) == len(texts)


def test_styles_have_words_of_their_own() -> None:
    for level in tales.LEVELS:
        told = {style: [words_of(text) for text in sample(level, style, 100)] for style in tales.STYLES}
        known = {style: {word for words in texts for word in words} for style, texts in told.items()}
        for style in tales.STYLES[1:]:
            assert known[style] - known["plain"]


@pytest.mark.parametrize("level", tales.LEVELS)
def test_plans_can_happen(level: int) -> None:
    """Their events, letters for names, go through the world and settle the want."""
    g = grammar(level)
    plans = [tuple(variant) for plan in g.plans for variant in plan]
    plans += [tuple(event for beat in beats for event in beat.events) for beats in traces(level)]
    for plan in plans:
        state = State(g.limits)
        assert [apply(state, event) for event in plan] == [None] * len(plan), plan
        assert state.ended


def test_plan_notation() -> None:
    assert plan_variants("a X; (b X); c X / d X T") == [
        (("a", "X"), ("b", "X"), ("c", "X")),
        (("a", "X"), ("b", "X"), ("d", "X", "T")),
        (("a", "X"), ("c", "X")),
        (("a", "X"), ("d", "X", "T")),
    ]


@pytest.mark.parametrize(("level", "style"), EVERY)
def test_one_parse_per_sentence(level: int, style: str) -> None:
    """Every form matched word by word, apart from the grader's tables: no sentence of a story has two meanings."""
    g = grammar(level, style)
    classes = {"girl": set(g.lexicon.girls), "kin": set(g.lexicon.kin), "noun": set(g.lexicon.verbs)}
    classes |= {"name": {*g.lexicon.sex, "I", "me"}, "own": set(g.lexicon.sex), "whom": {*g.lexicon.sex, "me"}}
    classes |= {"adj": set(g.lexicon.adjs), "trait": set(g.lexicon.traits), "": set(g.lexicon.places)}
    classes |= {"he": {"he", "she", "i"}, "his": {"his", "her", "my"}, "him": {"him", "her", "me"}, "it": {"it"}}
    classes |= {form: {v for vs in g.lexicon.verbs.values() for v in vs} for form in ("use", "used", "done")}
    classes |= {name: set(words) for name, words in g.lexicon.loose.items()}
    by_length: dict[int, list[tuple[list[set[str]], tuple]]] = defaultdict(list)
    for events, templates in g.templates.items():
        for form in (form for forms in templates for form in forms):
            tokens: list[set[str]] = []
            for piece in tokens_of(form):
                field = FIELD.fullmatch(piece)
                slot = field[2] if field else ""
                if slot[:2] in ("a_", "A_"):
                    tokens.append({"a", "an"})
                    slot = slot[2:]
                words = classes[slot if slot in classes else slot.lower()] if field else {piece.lower()}
                tokens.append({word.lower() for word in words})
            by_length[len(tokens)].append((tokens, tuple(event[0] for event in events)))
    for beat in {beat.text: beat for beats in traces(level, style, 50)[:15] for beat in beats}.values():
        said = [token.lower() for token in tokens_of(beat.text)]
        matched = {
            kinds
            for tokens, kinds in by_length[len(said)]
            if all(word in words for word, words in zip(said, tokens, strict=True))
        }
        assert matched == {tuple(event[0] for event in beat.events)}, beat.text


def tokens_of(sentence: str) -> list[str]:
    return re.findall(r"\{\w\.?\w*\}|[\w-]+|[^\w\s]", sentence)


def test_the_stories_of_one_seed_and_all_styles_differ() -> None:
    texts = [tales.story(5, 3, style) for style in tales.STYLES]
    assert len({hashlib.sha256(text.encode()).digest() for text in texts}) == len(texts)


def test_misuse_is_named() -> None:
    for call in (
        lambda: tales.story(1, level=9),
        lambda: tales.story(1, level=0),
        lambda: tales.story(1, style="saga"),
        lambda: tales.trace(1, style="saga"),
        lambda: tales.grade("A.", level=9),
        lambda: tales.grade("A.", style="saga"),
        lambda: tales.story(-1),
        lambda: tales.stories(),
        lambda: tales.stories(n=1, megabytes=1.0),
        lambda: tales.stories(n=-1),
        lambda: tales.stories(megabytes=-0.5),
        lambda: tales.stories(n=1, split="test"),
        lambda: tales.stories(n=1, seed=-1),
        lambda: tales.stories(n=1, level=5),
        lambda: tales.story(2**64),
    ):
        with pytest.raises(UsageError):
            call()
