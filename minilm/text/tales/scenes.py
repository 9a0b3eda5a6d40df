"""Small scenes of plans: walks and what befalls one on them, meetings, questions, quarrels, people and places told of.

Everything works on letters and goes through `events.apply`, so no plan breaks a rule.
"""

from __future__ import annotations

from random import Random
from typing import TypeVar

from minilm.text.tales.events import apply
from minilm.text.tales.words import PEOPLE, PLACES, THINGS
from minilm.text.tales.world import Event, Limits, State

Way = TypeVar("Way")
HERO, HOME, GOAL = "X", "P", "T"
WORDS_PER_EVENT = 6.8, 7.6
"""A plan that could fit the level's words only with more, or fewer, is not worded: few of its tellings would fit."""
PAUSES = {2: 0.0, 3: 0.45, 4: 0.5}
"""Level -> chance that something befalls the hero on a walk."""


class TooLong(Exception):
    """The plan has more events than the level's words can tell."""


class Scenes:
    """One plan in the making. Every choice is drawn from `r`."""

    def __init__(self, limits: Limits, level: int, r: Random) -> None:
        self.level = level
        self.longest = limits.words[1] / WORDS_PER_EVENT[0]
        self.random = r.random
        self.state = State(limits)
        self.events: list[Event] = []
        self.free_people = list(PEOPLE[1 : limits.people])
        self.free_things = list(THINGS[1 : limits.things - (level >= 3)])  # one is left for a key
        self.free_places = list(PLACES[1 : limits.places])
        self.used_places = [HOME]
        self.companion = ""
        self.key_free = level >= 3
        self.told: set[str] = set()

    def do(self, kind: str, *args: str) -> None:
        event = (kind, *args)
        if rule := apply(self.state, event):
            raise AssertionError(f"the plan {self.events} breaks the rule '{rule}' at {event}")
        self.events.append(event)
        if len(self.events) > self.longest:
            raise TooLong

    def chance(self, p: float) -> bool:
        return self.random() < p

    def pick(self, *ways: Way) -> Way:
        return ways[int(self.random() * len(ways))]

    def ask_and_hear(self, y: str, t: str) -> None:
        where = self.state.knows[y, t]
        if (HERO, t) not in self.state.knows and self.chance(0.7):
            self.do("ask_where", HERO, y, t)
        self.do("tell", y, HERO, t, where)
        if self.chance(0.4):
            self.do("thank", HERO, y)

    def quarrel(self, y: str, t: str) -> None:
        self.do("refuse", y, HERO, t)
        if self.chance(0.6):
            self.do("angry", HERO, y)
        self.do("sorry", y, HERO)
        if self.chance(0.6):
            self.do("forgive", HERO, y)

    def act(self, kind: str, t: str) -> None:
        """What the hero does with a thing, perhaps saying again where."""
        if self.chance(0.15):
            self.do("at", HERO, self.state.at[HERO])
        self.do(kind, HERO, t)

    def thank(self, x: str, y: str) -> None:
        if self.chance(0.6):
            self.do("thank", x, y)

    def repair(self) -> None:
        """At level 4 the goal may break on the way and be repaired by the hero or a neighbour."""
        if self.level < 4 or not self.chance(0.35):
            return
        self.do("drop", HERO, GOAL)
        y = self.others()[0] if self.others() else HERO
        if y != HERO and self.chance(0.7):
            self.visit(y, GOAL)
            self.do("fix", y, GOAL)
        else:
            self.do("fix", HERO, GOAL)

    def visit(self, y: str, t: str = "") -> None:
        """The hero goes to where Y is; they meet, perhaps in so many words."""
        self.go(self.state.at[y], t)
        if self.events[-1][0] in ("go", "carry", "carry_back") and self.chance(0.5):
            self.do("meet", HERO, y)

    def go(self, place: str, t: str = "") -> None:
        """The hero goes to a place, perhaps with thing `t` in so many words; something may happen there."""
        here = self.state.at[HERO]
        if here == place:
            return
        if t and self.chance(0.6):
            back = ("been", HERO, place) in self.state.facts and self.chance(0.7)
            if not back and self.chance(0.15):
                self.do("leave", HERO, here)
            self.do("carry_back" if back else "carry", HERO, t, place)
        elif self.companion and self.state.together(HERO, self.companion) and self.chance(0.7):
            self.do("go_with", HERO, self.companion, place)
        else:
            if self.chance(0.15):
                self.do("leave", HERO, here)
            self.do("go", HERO, place)
        if self.level >= 4 and self.companion and self.state.at[self.companion] == here and self.chance(0.6):
            self.do("follow", self.companion, HERO)
        if t and self.chance(0.2):
            company = [y for y in self.others() if self.state.at[y] == place]
            if company:
                self.do("show", HERO, company[0], t)
        while self.chance(PAUSES[self.level]):
            self.pause()

    def pause(self) -> None:
        """Something befalls the hero: weather, hunger, tiredness, the end of the day."""
        s, facts, level = self.state, self.state.facts, self.level
        ways: list[tuple[Event, ...]] = []
        if s.sky == "clear" and "rain" not in self.told:
            ways.append((("rain",),))
        if s.sky != "clear":
            if ("soaked", HERO) in facts:
                ways.append((("wet", HERO),))
            if level >= 4:
                ways.append((("shelter", HERO),))
            ways.append((("clear",),))
        if s.sky == "rain" and level >= 4 and "storm" not in self.told:
            ways.append((("storm",), ("afraid", HERO)))
        if ("wet", HERO) in facts and s.sky == "clear":
            ways.append((("dry", HERO),))
        if s.steps.get(HERO, 0) >= 2 and "tired" not in self.told:
            ways.append((("tired", HERO), ("rest", HERO)))
        company = [y for y in self.others() if s.at[y] == s.at[HERO]]
        if "hungry" not in self.told:
            ways.append((("hungry", HERO), ("share", company[0], HERO) if company and level >= 4 else ("eat", HERO)))
        if not company and "lonely" not in self.told:
            ways.append((("lonely", HERO),))
        if company and level >= 4 and ("afraid", HERO) in facts:
            ways.append((("comfort", company[0], HERO),))
        if ("afraid", HERO) in facts and s.sky != "storm":
            ways.append((("calm", HERO),))
        if s.hour == 0:
            ways.append((("noon",),))
        if s.hour <= 1:
            ways.append((("evening",),))
        if s.hour == 2 and level >= 4:
            ways.append((("night",), ("sleep", HERO), ("wake", HERO)))
        if not ways:
            return
        for event in self.pick(*ways):
            self.do(*event)
            self.told.add(event[0])

    def others(self) -> list[str]:
        return self.state.people[1:]

    def person(self) -> str:
        """Someone new, told of now; or, where the level has no room, one known already."""
        if self.free_people:
            return self.newcomer(self.place(HOME, self.state.at[HERO]))
        return self.pick(*self.others())

    def newcomer(self, place: str) -> str:
        y = self.free_people.pop(0)
        if self.chance(0.4):
            self.do("friend_at", HERO, y, place)
        else:
            self.do("dweller", y, place)
        return y

    def place(self, *other_than: str) -> str:
        """A place, a new one where the level has room, that is none of `other_than`."""
        known = [p for p in self.used_places if p not in other_than]
        if known and not (self.free_places and self.chance(0.75)):
            return self.pick(*known)
        self.used_places.append(self.free_places.pop(0))
        return self.used_places[-1]
