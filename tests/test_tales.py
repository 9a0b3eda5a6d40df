"""The tales' grader. Whether a story is valid is decided by `tales_replay` and by hand, never by the grader."""

from __future__ import annotations

import copy
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tales_damage import DAMAGES, cases, open_story

from minilm.evaluation.ngram import NGramModel
from minilm.text import tales
from minilm.text.tales.events import apply
from minilm.text.tales.grammar import Grammar, grammar, parse_events, tables
from minilm.text.tales.world import Limits, State

EVERY = [(level, style) for level in tales.LEVELS for style in tales.STYLES]


@pytest.mark.parametrize(("level", "style"), EVERY)
@pytest.mark.parametrize("n", [200, pytest.param(17_000, marks=pytest.mark.slow)])
def test_grader_accepts_what_the_generator_tells(level: int, style: str, n: int) -> None:
    """All of it: 102,000 stories of each level behind `slow`."""
    for text in tales.stories(n=n, level=level, style=style, split="fresh"):
        verdict = tales.grade(text, level)
        assert verdict.passed, (verdict, text)
        assert verdict.before == verdict.sentences >= 4
        assert verdict.rule is None


@pytest.mark.parametrize("split", tales.SPLITS)
def test_grader_accepts_every_split(split: str) -> None:
    for level in tales.LEVELS:
        for text in tales.stories(n=100, level=level, seed=5, split=split):
            assert tales.grade(text, level).passed, text


@pytest.mark.parametrize(
    ("events", "template", "why"),
    [
        ("put X T", "{X} picked {T} up.", "two meanings"),
        ("end X", "{X} was glad.", "word of class"),
        ("go_with X Y P", "Off to the {P}.", "two people"),
        ("trade X Y U T", "{X} and {Y.name} traded.", "two things"),
        ("trade X Y U T", "{X} gave {Y.whom} the {U.noun} for it.", "which thing"),
    ],
)
def test_a_table_that_could_be_misread_is_refused(events: str, template: str, why: str) -> None:
    table = copy.deepcopy(tables(3))
    table["say"][events].append(template)
    with pytest.raises(ValueError, match=why):
        Grammar(table, 3).told(parse_events(events))
    assert Grammar(copy.deepcopy(tables(3)), 3).readings == grammar(3).readings


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


@pytest.mark.parametrize(("level", "style"), EVERY)
@pytest.mark.parametrize("n", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_grader_and_second_opinion_agree_on_damaged_stories(level: int, style: str, n: int) -> None:
    """At least 95 % of the invalid ones are asked for, and all of the valid; of so few, each one."""
    found = cases(level, style, n)
    assert [case for case in found if not case.agreed] == []
    done = Counter(case.damage for case in found)
    assert set(done) == set(DAMAGES)
    assert min(done.values()) >= 0.8 * n
    invalid = Counter(case.damage for case in found if case.fault)
    assert all(invalid[damage] >= 0.4 * n for damage in DAMAGES if damage != "colour"), invalid


@pytest.mark.parametrize(("level", "style"), EVERY)
def test_second_opinion_accepts_what_the_generator_tells(level: int, style: str) -> None:
    for seed in range(1000, 1050):
        story = open_story(seed, level, style)
        assert story.fault() == "", story.text()


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


WORDS = st.lists(
    st.sampled_from([*sorted(grammar(3).lexicon.symbol), "the", ".", ". ", ",", "it", "fable: ", '"', "I"])
)
BEATS = [beat.text for style in tales.STYLES for seed in range(9) for beat in tales.trace(seed, 3, style)]
STRINGS = st.text() | WORDS.map(" ".join) | st.lists(st.sampled_from(BEATS)).map(" ".join)


@given(st.sampled_from(tales.LEVELS), st.sampled_from(["", *(f"{style}: " for style in tales.STYLES)]), STRINGS)
@settings(max_examples=300, deadline=None)
def test_any_string_is_judged(level: int, code: str, text: str) -> None:
    verdict = tales.grade(code + text, level)
    assert verdict.passed or verdict.rule in tales.RULES
    assert 0 <= verdict.before <= verdict.sentences


@pytest.mark.parametrize("code", ["", "letter: "])
@pytest.mark.parametrize("piece", ["a", "a ", "a. ", "Mia lived by the mill. ", ",", "<", "he ", "?", '" ', "letter: "])
def test_a_million_characters_take_no_time(piece: str, code: str) -> None:
    for level in tales.LEVELS:
        grammar(level, code[:-2] or "plain")
        text = code + (piece * 10**6)[: 10**6]
        started = time.process_time()
        verdict = tales.grade(text, level)
        assert time.process_time() - started < 0.5
        assert not verdict.passed
        assert len(verdict.broken) < 1000


@pytest.mark.parametrize(("level", "style"), EVERY)
def test_the_style_is_the_one_that_is_told(level: int, style: str) -> None:
    told = tales.story(3, level, style)
    code = "" if style == "plain" else f"{style}: "
    assert tales.grade(told, level, style) == tales.grade(told, level)
    assert tales.grade(told, level, style).passed
    for other in tales.STYLES:
        if other == style:
            continue
        assert tales.grade(told, level, other)[:2] == (False, "style")
        recoded = ("" if other == "plain" else f"{other}: ") + told.removeprefix(code)
        verdict = tales.grade(recoded, level)
        assert (verdict.passed, verdict.rule, verdict.before) == (False, "style", 0)
    if style != "plain":
        assert tales.grade(told.replace(": ", ":  ", 1), level).rule in ("style", "parse")
        assert not tales.grade(told.capitalize(), level).passed


@pytest.mark.parametrize("level", tales.LEVELS)
def test_shuffled_sentences_fail(level: int) -> None:
    """A few short ones hold in another order too; the second opinion says which."""
    r, passed = random.Random(0), 0
    for seed in range(1000):
        story = open_story(seed, level, "plain")
        r.shuffle(story.lines)
        verdict = tales.grade(story.text(), level)
        assert verdict.passed == (not story.fault())
        passed += verdict.passed
    assert passed <= {1: 10, 2: 2}.get(level, 0)


def test_other_text_scores_zero(shared_data: Path) -> None:
    seen = 0
    for folder in ("tinyshakespeare", "wikitext-2-raw", "ptb", "style_haiku", "style_fables", "tinystories"):
        files = [path for path in sorted((shared_data / folder).rglob("*")) if path.is_file()]
        assert files, folder
        for path in files:
            text = path.read_text("utf-8", errors="replace")
            sentences = text.replace("\n", " ").split(". ")
            chunks = [". ".join(sentences[i : i + 7]) + "." for i in range(0, len(sentences), 7)] + text.split("\n")
            seen += len(chunks)
            assert not any(tales.grade(chunk, level).passed for level in tales.LEVELS for chunk in chunks)
            assert not any(tales.grade(f"letter: {chunk}", 4).passed for chunk in chunks)
    assert seen > 50_000


@pytest.mark.parametrize(
    ("level", "megabytes", "n", "most"),
    [(1, 1.0, 300, 0.2), (3, 2.0, 100, 0.02)]
    + [pytest.param(n, 50.0, 1000, 0.2 if n == 1 else 0.02, marks=pytest.mark.slow) for n in tales.LEVELS],
)
def test_a_5_gram_model_cannot_fool_the_grader(level: int, megabytes: float, n: int, most: float) -> None:
    model = NGramModel(tales.stories(megabytes=megabytes, level=level), 5)
    samples = model.sample(n, seed=0, max_words=500)
    assert sum(tales.grade(text, level).passed for text in samples) < most * n
