"""Plans of stories of level 2 and above: a want, what stands in its way, and how that is overcome.

`prepare` decides where a thing is and tells so: kept somewhere, lost, in another's hands, moved or stolen unseen,
locked away. It returns what the hero does to get it, which may need another thing first: that recursion is the
difficulty of a level. Everything works on letters and goes through `tales_events.apply`, so no plan breaks a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from minilm.text.tales_events import apply
from minilm.text.tales_words import PEOPLE, PLACES, THINGS
from minilm.text.tales_world import Event, Limits, State

Obtain = Callable[[], None]
"""Lets the hero get a thing."""

HERO, HOME, GOAL, KEY = "X", "P", "T", "S"
DEPTH = {2: 1, 3: 1, 4: 2}
"""Level -> how many things may have to be got before the goal."""
WORDS_PER_EVENT = 6.8, 7.6
"""A plan that could fit the level's words only with more, or fewer, is not worded: few of its tellings would fit."""
PAUSES = {2: 0.0, 3: 0.45, 4: 0.5}
"""Level -> chance that something befalls the hero on a walk."""


class Planner:
    """Makes one plan. Every choice is drawn from `r`."""

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
            raise _TooLong

    def chance(self, p: float) -> bool:
        return self.random() < p

    def pick(self, *ways: str) -> str:
        return ways[int(self.random() * len(ways))]

    def plan(self) -> list[Event]:
        """The events of one story."""
        self.do("person", HERO, HOME)
        if self.level >= 3 and self.chance(0.3):
            self.companion = self.free_people.pop(0)
            self.do("friend", HERO, self.companion)
        if self.chance(0.5):
            self.want_own()
        else:
            self.want_other()
        return self.events

    # -- wants ------------------------------------------------------------------------------------------------------

    def want_own(self) -> None:
        """The hero's own thing is away, or should be somewhere, or be used, or be another's present."""
        kind = self.pick("have", "bring", "use", "give")
        to = self.person() if kind == "give" and self.free_people else None
        if kind == "give" and to is None:
            kind = "have"
        goal = {"bring": self.place, "use": self.place}.get(kind, lambda: "")()
        ways = ["kept", "kept", "lost"] if self.level == 2 else ["moved", "stolen", "locked", "lost"]
        obtain = self.prepare(GOAL, DEPTH[self.level], ways, HOME if kind == "have" else goal)
        if kind in ("bring", "use") and self.state.place_of(GOAL) == goal:
            kind, goal = "have", ""
        self.finish(kind, goal or to or "", obtain)

    def want_other(self) -> None:
        """The hero wants what another has, or to use it."""
        if self.level >= 3 and self.chance(0.3):
            self.finish("use", self.place(HOME), self.prepare(GOAL, 0, ["lent"]))
        else:
            self.finish("get", "", self.prepare(GOAL, DEPTH[self.level], ["held"]))

    def finish(self, kind: str, goal: str, obtain: Obtain) -> None:
        args = (HERO, GOAL, goal) if goal else (HERO, GOAL)
        self.do(f"want_{kind}", *args)
        obtain()
        if kind == "bring":
            self.go(goal, GOAL)
            self.act("put", GOAL)
        elif kind == "use":
            self.repair()
            self.go(goal, GOAL)
            self.act("use", GOAL)
            owner = self.state.owner[GOAL]
            if owner != HERO and self.chance(0.7):
                self.visit(owner, GOAL)
                self.do("give_back", HERO, owner, GOAL)
        elif kind == "give":
            self.repair()
            self.visit(goal, GOAL)
            self.do("give", HERO, goal, GOAL)
            if self.chance(0.6):
                self.do("thank", goal, HERO)
        elif self.chance(0.4):
            self.do("smile", HERO, GOAL)
        if self.chance(0.35):
            self.do("end", HERO)
        else:
            self.do(f"end_{kind}", *args)

    # -- where a thing is, and how to get it ------------------------------------------------------------------------

    def prepare(self, t: str, depth: int, ways: list[str], goal: str = "") -> Obtain:
        """Tells where `t` is, by one of `ways` that people and places are left for."""
        if not self.free_people and not self.others():
            ways = [way for way in ways if way in ("kept", "locked")] or ["kept"]
        if not self.free_people:
            ways = [way for way in ways if way not in ("moved", "stolen")] or ["kept"]
        if not (self.key_free and depth):
            ways = [way for way in ways if way != "locked"] or ["kept"]
        way = ways[int(self.random() * len(ways))]
        made: Obtain = getattr(self, way)(t, depth, goal)
        return made

    def kept(self, t: str, depth: int, goal: str) -> Obtain:
        p = self.place(goal) if self.chance(0.8) or goal == HOME else HOME
        self.do("left" if p != self.state.at[HERO] and self.chance(0.4) else "keep", HERO, t, p)

        def obtain() -> None:
            self.go(p)
            if self.chance(0.3):
                self.do("see", HERO, t)
            self.act("take", t)

        return obtain

    def lost(self, t: str, depth: int, goal: str) -> Obtain:
        """Someone saw it; another may know nothing."""
        self.do("lose", HERO, t)
        if self.chance(0.3):
            self.do("sad", HERO, t)
        here = self.state.at[HERO]
        if self.level == 2 and self.chance(0.2):
            p = self.place(here)

            def remember() -> None:
                self.do("recall", HERO, t, p)
                self.go(p)
                self.act("take", t)

            return remember
        y = self.person()
        p = self.place(here, goal)
        self.do("saw", y, t, p)
        z = self.person() if self.level >= 3 and self.free_people and self.chance(0.7) else None

        def obtain() -> None:
            if z:
                self.visit(z)
                self.do("ask_where", HERO, z, t)
                self.do("unknown", z, HERO, t)
            self.visit(y)
            self.ask_and_hear(y, t)
            self.go(p)
            if self.chance(0.7):
                self.act("find", t)
            self.do("take", HERO, t)

        return obtain

    def held(self, t: str, depth: int, goal: str) -> Obtain:
        """Another has it, and gives it for nothing, for a thing, or after a quarrel."""
        y = self.person()
        self.do("hold", y, t)
        ways = ["gift"]
        if depth and self.free_things:
            ways = ["deal", "wish"]
        elif self.level >= 3:
            ways += ["quarrel"]
        way = ways[int(self.random() * len(ways))]
        u = self.free_things.pop(0) if way in ("deal", "wish") else ""
        get_u = self.prepare_other(u, depth - 1) if u and self.chance(0.6) else None

        def obtain() -> None:
            nonlocal get_u
            self.visit(y)
            self.do("ask_for", HERO, y, t)
            if not u:
                if way == "quarrel":
                    self.quarrel(y, t)
                self.do("give", y, HERO, t)
                self.thank(HERO, y)
                return
            if self.level >= 3 and way == "wish" and self.chance(0.4):
                self.do("refuse", y, HERO, t)
            if get_u is None:
                get_u = self.prepare_other(u, depth - 1)
            if way == "deal":
                self.do("deal", y, HERO, t, u)
            else:
                self.do("wish", y, u)
            promised = self.level >= 3 and self.chance(0.5)
            if promised:
                self.do("promise", HERO, y, u)
            if self.chance(0.3):
                self.do("part", HERO, y)
            get_u()
            self.visit(y, u)
            if way == "deal":
                self.do("trade", HERO, y, u, t)
            else:
                self.do("give", HERO, y, u)
                if self.chance(0.5):
                    self.do("glad", y, u)
                elif self.chance(0.5):
                    self.do("thank", y, HERO)
            if promised and self.chance(0.6):
                self.do("kept", HERO, y, u)
            if way == "wish":
                self.do("give", y, HERO, t)
                self.thank(HERO, y)

        return obtain

    def lent(self, t: str, depth: int, goal: str) -> Obtain:
        """Another has it and lends it, perhaps after a service."""
        y = self.person()
        self.do("hold", y, t)
        u = self.free_things.pop(0) if self.free_things and self.chance(0.7) else ""
        get_u = self.prepare_other(u, DEPTH[self.level] - 1) if u else None

        def obtain() -> None:
            self.visit(y)
            self.do("ask_for", HERO, y, t)
            if get_u:
                self.do("wish", y, u)
                get_u()
                self.visit(y, u)
                self.do("give", HERO, y, u)
            self.do("lend", y, HERO, t)
            self.thank(HERO, y)

        return obtain

    def prepare_other(self, u: str, depth: int) -> Obtain:
        """A thing that is wanted only for another's sake: the hero's own, or a third person's."""
        ways = ["kept"] if self.level == 2 else ["kept", "lost", "moved", "locked"]
        if depth and self.free_people and self.free_things:
            ways = ["held", "held", "moved", "locked"]
        elif self.level >= 3 and self.free_people:
            ways += ["held"]
        return self.prepare(u, depth, ways)

    def moved(self, t: str, depth: int, goal: str) -> Obtain:
        """Unseen by the hero someone took it elsewhere, and perhaps hid it; the hero's belief is false."""
        p = self.place(HOME, goal, self.state.at[HERO])
        self.do("keep", HERO, t, p)
        z = self.newcomer(p)
        q = self.place(p, HOME)
        self.do("take", z, t)
        self.do("carry", z, t, q)
        hidden = all(self.state.at[y] != q for y in self.others() if y != z) and self.chance(0.5)
        self.do("hide" if hidden else "put", z, t)
        if self.chance(0.5):
            self.do("go", z, p)
        believes = self.chance(0.5)

        def obtain() -> None:
            if believes and self.state.knows.get((HERO, t)) == p:
                self.do("believe", HERO, t, p)
            self.go(p)
            self.do("absent", HERO, t, p)
            if self.chance(0.3):
                self.do("sad", HERO, t)
            if self.state.at[z] == p:
                self.visit(z)
                self.ask_and_hear(z, t)
                self.go(q)
            else:
                self.go(q)
                if hidden and self.chance(0.7):
                    self.visit(z)
                    self.ask_and_hear(z, t)
            self.do("search" if hidden else "find", HERO, t)
            if hidden and self.level >= 4 and self.chance(0.4):
                self.do("proud", HERO)
            self.do("take", HERO, t)

        return obtain

    def stolen(self, t: str, depth: int, goal: str) -> Obtain:
        """Someone stole it; another who was there tells who."""
        p = self.place(HOME, goal, self.state.at[HERO])
        self.do("keep", HERO, t, p)
        w = self.newcomer(p) if len(self.free_people) > 1 else None
        z = self.newcomer(p)
        self.do("steal", z, t, HERO)
        q = self.place(p, HOME)
        self.do("carry", z, t, q)

        def obtain() -> None:
            self.go(p)
            self.do("absent", HERO, t, p)
            if w:
                self.visit(w)
                if self.chance(0.6):
                    self.do("ask_where", HERO, w, t)
                self.do("tell_who", w, HERO, t, z)
            self.visit(z)
            if not w or self.chance(0.7):
                self.do("angry", HERO, z)
            sorry = self.chance(0.7)
            if sorry:
                self.do("sorry", z, HERO)
            self.do("give_back", z, HERO, t)
            if sorry and self.chance(0.8):
                self.do("forgive", HERO, z)

        return obtain

    def locked(self, t: str, depth: int, goal: str) -> Obtain:
        """It lies in a locked box, and the key is elsewhere."""
        self.key_free = False
        p = self.place(HOME, goal)
        self.do("locked", HERO, t, p)
        get_key = self.prepare_other(KEY, depth - 1)
        self.do("key", KEY, t)

        def obtain() -> None:
            get_key()
            self.go(p, KEY)
            self.do("unlock", HERO, t, KEY)
            if self.level >= 4 and self.chance(0.3):
                self.do("proud", HERO)
            self.do("take", HERO, t)

        return obtain

    # -- small scenes -----------------------------------------------------------------------------------------------

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
        for event in ways[int(self.random() * len(ways))]:
            self.do(*event)
            self.told.add(event[0])

    # -- newcomers --------------------------------------------------------------------------------------------------

    def others(self) -> list[str]:
        return self.state.people[1:]

    def person(self) -> str:
        """Someone new, told of now; or, where the level has no room, one known already."""
        if self.free_people:
            return self.newcomer(self.place(HOME, self.state.at[HERO]))
        known = self.others()
        return known[int(self.random() * len(known))]

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
            return known[int(self.random() * len(known))]
        self.used_places.append(self.free_places.pop(0))
        return self.used_places[-1]


class Plans:
    """The plans of one level as a function of a story's seed. Eight stories far apart share one."""

    def __init__(self, limits: Limits, level: int) -> None:
        self.limits, self.level = limits, level
        self._drawn: dict[int, tuple[Random, list[tuple[Event, ...]]]] = {}

    def plan(self, seed: int, attempt: int) -> tuple[Event, ...]:
        """A plan in letters; every event of it can happen, and its words can fit the level's."""
        key = seed >> 15 << 12 | seed & 4095  # seeds 4096 apart share it, so that no context holds two of its stories
        if key not in self._drawn:
            if len(self._drawn) == 4096:
                self._drawn.clear()
            self._drawn[key] = Random(1 << 80 | key), []
        r, plans = self._drawn[key]
        while len(plans) <= attempt:
            plans.append(self._draw(r))
        return plans[attempt]

    def _draw(self, r: Random) -> tuple[Event, ...]:
        while True:
            try:
                plan = Planner(self.limits, self.level, r).plan()
            except _TooLong:
                continue
            if len(plan) >= self.limits.words[0] / WORDS_PER_EVENT[1]:
                return tuple(plan)


class _TooLong(Exception):
    pass
