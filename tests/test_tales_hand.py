"""The grader on stories that no generator made, their verdicts decided by a reader (docs/tales.md, Measured)."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from minilm.text import tales
from minilm.text.tales.grammar import grammar

FOLDER = Path(__file__).parent / "tales_handwritten"


class Hand(NamedTuple):
    level: int
    text: str
    rule: str | None
    """The rule that a reader finds broken; None where the story is good."""
    why: str
    where: str


def read(path: Path) -> list[Hand]:
    """The stories of a file, and those that a change written beside them makes of them."""
    found = []
    for i, entry in enumerate(tomllib.loads(path.read_text("ascii"))["story"]):
        level = entry.get("level") or int(path.stem.removeprefix("level")[:1])
        text = " ".join(entry["text"].split())
        found.append(Hand(level, text, entry.get("rule"), entry.get("why", ""), f"{path.stem}-{i}"))
        for j, change in enumerate([*entry.get("good", []), *entry.get("bad", [])]):
            assert text.count(change["old"]) == 1, (path.stem, change["old"])
            changed = text.replace(change["old"], change["new"])
            found.append(Hand(level, changed, change.get("rule"), change.get("why", ""), f"{path.stem}-{i}-{j}"))
    return found


HAND = [hand for path in sorted(FOLDER.glob("*.toml")) for hand in read(path)]


@pytest.mark.parametrize("hand", HAND, ids=[f"{hand.where}-{hand.rule or 'good'}" for hand in HAND])
def test_handwritten(hand: Hand) -> None:
    verdict = tales.grade(hand.text, hand.level)
    assert verdict.rule == hand.rule, (verdict, hand.why)


def test_handwritten_set_is_broad() -> None:
    assert len(HAND) >= 240
    assert len({hand.text for hand in HAND}) == len(HAND)
    good = [hand for hand in HAND if hand.rule is None]
    assert 0.4 <= len(good) / len(HAND) <= 0.6
    assert all(hand.why for hand in HAND if hand.rule)
    broken = Counter(hand.rule for hand in HAND if hand.level > 1)
    assert min(broken[rule] for rule in tales.RULES) >= 4, broken
    styles = Counter(hand.text.partition(": ")[0] for hand in HAND if ": " in hand.text)
    assert {*styles, "plain"} == set(tales.STYLES)
    assert {hand.level for hand in HAND} == set(tales.LEVELS)


def test_the_page_states_the_levels_as_they_are() -> None:
    page = (Path(__file__).parents[1] / "docs" / "tales.md").read_text("utf-8")
    for level in tales.LEVELS:
        g = grammar(level)
        people, things, places, words = g.limits.people, g.limits.things, g.limits.places, g.limits.words
        row = f"| {level} | {people} | {things} | {places} | {words[0]} to {words[1]} | {len(g.kinds)} |"
        assert row in page, row
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == list(tales.RULES)
