"""The embedded corpus and its grader. Validity is decided by `tales_damage.World` and by hand, never by the grader."""

from __future__ import annotations

import random
import re
import time
import tomllib
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tales_damage import DAMAGES, table

from minilm.errors import UsageError
from minilm.text import tales
from minilm.text.tales_grammar import FIELD, Grammar, grammar, plan_variants
from minilm.text.tales_world import Limits, State, apply

HAND = tomllib.loads((Path(__file__).parent / "tales_handwritten.toml").read_text("ascii"))["story"]


def sample(n: int = 20_000) -> list[str]:
    return list(tales.stories(n=n))


def test_story_is_a_pure_function_of_its_seed() -> None:
    assert tales.story(7) == tales.story(7) == " ".join(beat.text for beat in tales.trace(7))
    assert list(tales.stories(n=5, seed=3)) == list(islice(tales.stories(n=50, seed=3), 5))
    assert len({tales.story(seed) for seed in (0, 1, 2**32, 2**63, 2**64 - 1)}) == 5


def test_splits_and_seeds_do_not_overlap() -> None:
    streams = [set(tales.stories(n=2000, seed=s, split=split)) for split in tales.SPLITS for s in (0, 1)]
    assert sum(map(len, streams)) == len(set.union(*streams)) == 12_000


def test_megabytes_counts_bytes() -> None:
    texts = list(tales.stories(megabytes=0.05))
    size = sum(len(text) + 1 for text in texts)
    assert size - len(texts[-1]) - 1 < 50_000 <= size


def test_stories_are_plain_and_of_the_stated_length() -> None:
    texts = sample()
    words = [text.split() for text in texts]
    assert min(map(len, words)) >= 30
    assert max(map(len, words)) <= 60
    assert 250 <= len({w.strip(".,").lower() for ws in words for w in ws}) <= 600
    for text in texts[:5000]:
        assert re.fullmatch(r"([A-Z][a-z]*(,? [A-Za-z]+)*\. )*[A-Z][a-z]*(,? [A-Za-z]+)*\.", text), text
        assert "".join(re.findall(r" ?[A-Za-z]+|[.,]", text)) == text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        assert not re.search(r"\b([A-Za-z]+) \1\b", text), text
    assert len(set(texts)) / len(texts) > 0.9999


def test_every_word_is_common() -> None:
    """Vocabulary is a dial of its own: no word is so rare that a small model cannot learn it."""
    counts = Counter(w.strip(".,").lower() for text in sample() for w in text.split())
    assert min(counts.values()) >= 100, counts.most_common()[-5:]


@pytest.mark.parametrize("n", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_grader_accepts_what_the_generator_tells(n: int) -> None:
    for text in tales.stories(n=n, split="fresh"):
        verdict = tales.grade(text)
        assert verdict.passed, (verdict, text)
        assert verdict == (True, None, text.count("."), text.count("."), "")


def test_one_parse_per_sentence() -> None:
    """Every form as an anchored pattern, built apart from the grader's tables: no sentence has two meanings."""
    g = grammar(1)
    he, his = "(?:he|she)", "(?:his|him|her)"
    slots = {"name": "|".join(g.sex), "girl": "|".join(g.girls), "noun": "|".join(g.verbs), "": "|".join(g.places)}
    slots |= {"adj": "|".join({t.adj for t in g.things}), "he": he, "his": his, "him": his}
    slots |= {"a_adj": f"an? (?:{slots['adj']})", "a_trait": "an? [a-z]+", "time": "[a-z]+", "spot": "[a-z]+"}
    slots |= {"mood": "[a-z]+"} | dict.fromkeys(
        ("use", "used", "done"), "|".join({v for vs in g.verbs.values() for v in vs})
    )
    patterns: dict[str, set[tuple]] = defaultdict(set)
    for events, templates in g.templates.items():
        for form in (form for forms in templates for form in forms):
            pattern = FIELD.sub(
                lambda m: f"(?i:{slots[m[2].lower()]})",
                re.escape(form).replace(r"\{", "{").replace(r"\}", "}").replace(r"\.", "."),
            )
            patterns[pattern].add(events)
    assert all(len(meanings) == 1 for meanings in patterns.values())
    compiled = [(re.compile(pattern), min(meanings)) for pattern, meanings in patterns.items()]
    beats = [beat for seed in range(60) for beat in tales.trace(seed)]
    for beat in beats:
        kinds = {tuple(event[0] for event in events) for p, events in compiled if p.fullmatch(beat.text)}
        assert kinds == {tuple(event[0] for event in beat.events)}, beat.text


def test_a_table_with_two_meanings_or_an_impossible_plan_is_refused() -> None:
    text = Path(tales.__file__).with_name("tales_level1.toml").read_text("ascii")
    ambiguous = tomllib.loads(text)
    ambiguous["say"]["put X T"].append("{X} picked {T} up.")
    with pytest.raises(ValueError, match="two meanings"):
        Grammar(ambiguous)
    impossible = tomllib.loads(text)
    impossible["plans"]["bad"] = "person X P; keep X T P; want_bring X T Q; carry X T Q; put X T; end X"
    with pytest.raises(ValueError, match="breaks the rule 'holds'"):
        Grammar(impossible)
    mute = tomllib.loads(text)
    del mute["say"]["end X"]
    with pytest.raises(ValueError, match="cannot tell"):
        Grammar(mute)
    spelled = tomllib.loads(text)
    spelled["say"]["end X"].append("{X} was glad.")
    with pytest.raises(ValueError, match="word of class"):
        Grammar(spelled)


def test_plan_notation() -> None:
    assert plan_variants("a X; (b X); c X / d X T") == [
        (("a", "X"), ("b", "X"), ("c", "X")),
        (("a", "X"), ("b", "X"), ("d", "X", "T")),
        (("a", "X"), ("c", "X")),
        (("a", "X"), ("d", "X", "T")),
    ]


def test_events_need_and_do_what_they_say() -> None:
    start = [("person", "Mia", "mill"), ("keep", "Mia", "red kite", "lake")]

    def rule(*events: tuple[str, ...]) -> str | None:
        state = State(Limits(1, 1, 2, (0, 99)))
        *before, last = [*start, *events]
        assert [apply(state, event) for event in before] == [None] * len(before)
        return apply(state, last)

    mia, go, take = ("Mia", "red kite"), ("go", "Mia", "lake"), ("take", "Mia", "red kite")
    want = ("want_bring", *mia, "mill")
    assert rule(go) is None
    assert rule(("go", "Mia", "mill")) == rule(take) == rule(("find", *mia)) == "where"
    assert rule(("put", *mia)) == rule(("carry", *mia, "lake")) == rule(("use", *mia)) == "holds"
    assert rule(go, take, take) == rule(go, take, ("find", *mia)) == "holds"
    assert rule(go, take, ("carry_back", *mia, "mill"), ("put", *mia), go, take) == "where"
    assert rule(("person", "Tom", "mill")) == rule(("keep", "Mia", "old hat", "mill")) == "introduced"
    assert rule(("go", "Mia", "inn")) == "introduced"
    assert rule(("smile", *mia)) == rule(go, ("sad", *mia)) == "cause"
    assert rule(("end", "Mia")) == rule(want, want) == rule(("want_bring", *mia, "lake")) == "want"
    assert rule(go, take, ("want_have", *mia)) == "want"
    assert rule(want, ("end", "Mia")) == rule(want, go, take, ("end", "Mia")) == "ending"
    done = (want, go, take, ("carry_back", *mia, "mill"), ("put", *mia))
    assert rule(*done, ("end_bring", *mia, "lake")) == rule(*done, ("end_have", *mia)) == "ending"
    assert rule(*done, ("end_bring", *mia, "mill")) is None
    assert rule(*done, ("end", "Mia"), go) == "ending"


@pytest.mark.parametrize("n", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_grader_rejects_damaged_stories(n: int) -> None:
    counts = table(n)
    assert set(counts) == set(DAMAGES)
    for kind, c in counts.items():
        assert c["invalid"] >= 0.25 * n, (kind, c)
        assert c["rejected"] >= 0.95 * c["invalid"], (kind, c)
        assert c["accepted"] == c["valid"], (kind, c)


@pytest.mark.parametrize("case", HAND, ids=[f"{i}-{case.get('rule', 'good')}" for i, case in enumerate(HAND)])
def test_handwritten(case: dict[str, str]) -> None:
    verdict = tales.grade(" ".join(case["text"].split()))
    assert verdict.rule == case.get("rule"), (verdict, case.get("why"))


def test_handwritten_set_is_broad() -> None:
    assert len(HAND) >= 60
    assert {case.get("rule") for case in HAND} == {None, *tales.RULES}


def test_verdict_counts_sentences_before_the_fault() -> None:
    beats = [beat.text for beat in tales.trace(11)]
    broken = " ".join([*beats[:3], "Nobody said this.", *beats[3:]])
    assert tales.grade(broken) == (False, "parse", len(beats) + 1, 3, "Nobody said this")
    assert tales.grade(" ".join(beats[:-1])) == (False, "ending", len(beats) - 1, len(beats) - 1, "")


@pytest.mark.parametrize(
    "text", ["", ".", " ", "<name> lived by the <place>.", "a,b. c.", "Mia lived by the mill", "\0"]
)
def test_what_is_no_story_fails(text: str) -> None:
    assert not tales.grade(text).passed


WORDS = st.lists(st.sampled_from([*sorted(grammar(1).symbol), "the", ".", ". ", ",", "it"]))
SENTENCES = st.lists(st.sampled_from([beat.text for seed in range(200) for beat in tales.trace(seed)]))


@given(st.text() | WORDS.map(" ".join) | SENTENCES.map(" ".join))
@settings(max_examples=300, deadline=None)
def test_any_string_is_judged(text: str) -> None:
    verdict = tales.grade(text)
    assert verdict.passed or verdict.rule in tales.RULES


@pytest.mark.parametrize("piece", ["a", "a ", "a. ", "Mia lived by the mill. ", ",", "<", "he "])
def test_a_million_characters_take_no_time(piece: str) -> None:
    started = time.process_time()
    verdict = tales.grade((piece * 10**6)[: 10**6])
    assert time.process_time() - started < 0.5
    assert not verdict.passed
    assert len(verdict.broken) < 1000


def test_misuse_is_named() -> None:
    for call in (
        lambda: tales.story(1, level=9),
        lambda: tales.grade("Mia.", level=0),
        lambda: tales.stories(),
        lambda: tales.stories(n=1, megabytes=1),
        lambda: tales.stories(n=-1),
        lambda: tales.stories(megabytes=-0.5),
        lambda: tales.stories(n=1, split="test"),
        lambda: tales.stories(n=1, seed=-1),
        lambda: tales.story(2**64),
    ):
        with pytest.raises(UsageError):
            call()


def test_shuffled_sentences_mostly_fail() -> None:
    r, passed = random.Random(0), 0
    for text in tales.stories(n=2000):
        sentences = text[:-1].split(". ")
        r.shuffle(sentences)
        passed += tales.grade(". ".join(sentences) + ".").passed
    assert passed < 20


def test_other_text_scores_zero(shared_data: Path) -> None:
    seen = 0
    for folder in ("tinyshakespeare", "wikitext-2-raw", "style_haiku", "tinystories"):
        files = [path for path in sorted((shared_data / folder).rglob("*")) if path.is_file()]
        assert files, folder
        for path in files:
            text = path.read_text("utf-8", errors="replace")
            sentences = text.replace("\n", " ").split(". ")
            chunks = [". ".join(sentences[i : i + 7]) + "." for i in range(0, len(sentences), 7)] + text.split("\n")
            seen += len(chunks)
            assert not any(tales.grade(chunk).passed for chunk in chunks)
    assert seen > 20_000


def test_a_trigram_model_cannot_fool_the_grader() -> None:
    follow: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text in tales.stories(megabytes=1):
        words = ["", "", *text.split(), ""]
        for a, b, c in zip(words, words[1:], words[2:], strict=False):
            follow[a, b].append(c)
    r, passed = random.Random(0), 0
    for _ in range(500):
        words = ["", ""]
        while len(words) < 3 or (words[-1] and len(words) < 80):
            words.append(r.choice(follow[words[-2], words[-1]]))
        passed += tales.grade(" ".join(words).strip()).passed
    assert passed <= 5
