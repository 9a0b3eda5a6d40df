"""The grader on stories that no generator made. Every verdict was decided by a reader before the grader was asked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from minilm.text import tales

FOLDER = Path(__file__).parent / "tales_handwritten"


class Hand(NamedTuple):
    level: int
    text: str
    rule: str | None
    """The rule that a reader finds broken; None where the story is good."""
    why: str
    where: str


def read(path: Path) -> list[Hand]:
    """The stories of a file and, made from them by the stated change, the bad ones."""
    found = []
    for i, entry in enumerate(tomllib.loads(path.read_text("ascii"))["story"]):
        level = entry.get("level") or int(path.stem.removeprefix("level")[:1])
        text = " ".join(entry["text"].split())
        found.append(Hand(level, text, entry.get("rule"), entry.get("why", ""), f"{path.stem}-{i}"))
        for j, bad in enumerate(entry.get("bad", [])):
            assert text.count(bad["old"]) == 1, (path.stem, bad["old"])
            changed = text.replace(bad["old"], bad["new"])
            found.append(Hand(level, changed, bad["rule"], bad["why"], f"{path.stem}-{i}-{j}"))
    return found


HAND = [hand for path in sorted(FOLDER.glob("*.toml")) for hand in read(path)]


@pytest.mark.parametrize("hand", HAND, ids=[f"{hand.where}-{hand.rule or 'good'}" for hand in HAND])
def test_handwritten(hand: Hand) -> None:
    verdict = tales.grade(hand.text, hand.level)
    assert verdict.rule == hand.rule, (verdict, hand.why)
