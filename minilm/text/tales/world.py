"""The world that tales happen in: who is where, who holds what, who knows what, what is wanted.

`State` is what a reader knows after some sentences. An event is a tuple of strings, its kind and then its arguments:
("carry", "Mia", "red kite", "mill"). A thing's identity is its adjective and noun. What each kind of event needs and
does stands in `things`, `people` and `days`; `events.apply` lets one happen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RULES = {
    "parse": "every sentence is one that the grammar can say",
    "style": "every sentence is told in the style that the text's control code names",
    "introduced": "whoever and whatever is spoken of was introduced, once, and not more of them than the level has",
    "pronoun": "a pronoun or noun for a person agrees with their name and can mean one person only",
    "holds": "nobody takes what is held already, or gives, carries, puts down or uses what they do not hold",
    "where": "everyone acts, and every thing is found, where the story has put them",
    "knows": "nobody tells or believes what they neither saw nor were told, or asks what they know",
    "cause": "an effect follows its cause",
    "want": "one want is stated, and is not fulfilled already when it is",
    "ending": "the last sentence, and no other, settles the want",
}

Event = tuple[str, ...]
Handler = Callable[..., "str | None"]
"""Lets an event happen: (state, *arguments) -> None, or the rule that it breaks."""

HOURS = ("morning", "noon", "evening", "night")


@dataclass(frozen=True)
class Limits:
    """What one level holds at most; `words` is the range that the generator keeps to."""

    people: int
    things: int
    places: int
    words: tuple[int, int]


class State:
    """What a reader knows after some sentences. X and Y stand for people, T for a thing, P for a place."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.people: list[str] = []
        self.things: list[str] = []
        self.places: list[str] = []
        self.at: dict[str, str] = {}
        """Where each person is, and each thing that nobody holds; a lost thing is nowhere."""
        self.holder: dict[str, str] = {}
        self.owner: dict[str, str] = {}
        self.knows: dict[tuple[str, str], str] = {}
        """(X, T) -> the place or the holder that X believes T at; stale where it was moved unseen."""
        self.facts: set[Event] = set()
        """All else that is so: ("been", X, P), ("absent", T, P), ("hidden", T), ("tired", X), ("owes", X, Y)."""
        self.came_from: dict[str, str] = {}
        """Where each person who walked was before."""
        self.steps: dict[str, int] = {}
        """Walks of each person since they last rested."""
        self.asleep: set[str] = set()
        self.hour = 0
        """Index into `HOURS`."""
        self.sky = "clear"
        """Or "rain", or "storm"."""
        self.want: Event = ()
        self.ended = False

    def place_of(self, thing: str) -> str | None:
        """Where a thing is, in someone's hands or not; None while it is lost."""
        return self.at.get(self.holder.get(thing, thing))

    def settled(self) -> bool:
        """Whether the want that was stated has come true."""
        kind, person, thing, *goal = self.want
        if kind in ("want_have", "want_get", "want_give"):
            to = goal[0] if goal else person
            return self.holder.get(thing) == self.owner.get(thing) == to
        if kind == "want_bring":
            return self.at.get(thing) == goal[0]
        return ("used", person, thing, goal[0]) in self.facts

    def together(self, x: str, y: str) -> bool:
        return x != y and self.at[x] == self.at[y]

    def believed(self, person: str, thing: str) -> set[str]:
        """Where, or with whom, a person takes a thing to be: as last seen or told, or could see now; nowhere while
        they hold it themselves."""
        known = {self.knows[person, thing]} if (person, thing) in self.knows else set()
        here = self.at[person]
        if self.holder.get(thing) == person:
            return set()
        if self.place_of(thing) == here and not self.facts & {("hidden", thing), ("locked", thing)}:
            known |= {self.holder.get(thing, here), here}
        return known

    def seen(self, place: str, thing: str, where: str) -> None:
        """Everyone awake at `place` learns that the thing is now at, or with, `where`."""
        for person in self.people:
            if self.at[person] == place and person not in self.asleep:
                self.knows[person, thing] = where

    def new_place(self, place: str) -> bool:
        """Makes the place known; False where the level has no room for it."""
        return _room(self.places, place, self.limits.places)

    def new_person(self, x: str, place: str) -> bool:
        if x in self.people or not (_room(self.people, x, self.limits.people) and self.new_place(place)):
            return False
        self.at[x] = place
        self.facts.add(("been", x, place))
        return True

    def new_thing(self, thing: str) -> bool:
        return thing not in self.things and _room(self.things, thing, self.limits.things)


def _room(known: list[str], name: str, limit: int) -> bool:
    if name not in known:
        if len(known) >= limit:
            return False
        known.append(name)
    return True
