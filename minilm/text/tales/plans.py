"""Plans of stories of level 2 and above: a want, what stands in its way, and how that is overcome.

`prepare` decides where a thing is and tells so: kept somewhere, lost, in another's hands, moved or stolen unseen,
locked away. It returns what the hero does to get it, which may need another thing first: that recursion is the
difficulty of a level.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from minilm.text.tales.scenes import GOAL, HERO, HOME, WORDS_PER_EVENT, Scenes, TooLong
from minilm.text.tales.world import Event, Limits

Obtain = Callable[[], None]
"""Lets the hero get a thing."""

KEY = "S"
DEPTH = {2: (1,), 3: (1, 2), 4: (2, 3)}
"""Level -> how many things may have to be got before the goal; one of these is drawn."""
FEWEST = {2: (1, 1), 3: (2, 2), 4: (3, 3)}
"""Level -> people and things that a story has at least."""


class Planner(Scenes):
    """Makes one plan."""

    def plan(self) -> list[Event]:
        """The events of one story."""
        self.depth = self.pick(*DEPTH[self.level])
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
        goal = self.place() if kind in ("bring", "use") else ""
        ways = ["kept", "kept", "lost"] if self.level == 2 else ["moved", "stolen", "locked", "lost"]
        obtain = self.prepare(GOAL, self.depth, ways, HOME if kind == "have" else goal)
        self.bystanders()
        if kind in ("bring", "use") and self.state.place_of(GOAL) == goal:
            kind, goal = "have", ""
        self.finish(kind, goal or to or "", obtain)

    def bystanders(self) -> None:
        """Things that nobody wants, and that have to be told from those that somebody does."""
        while self.free_things and len(self.state.things) < FEWEST[self.level][1]:
            u, others = self.free_things.pop(0), self.others()
            if others and self.chance(0.5):
                self.do("hold", self.pick(*others), u)
            else:
                self.do("keep", HERO, u, self.place())

    def want_other(self) -> None:
        """The hero wants what another has, or to use it."""
        if self.level >= 3 and self.chance(0.3):
            self.finish("use", self.place(HOME), self.prepare(GOAL, 0, ["lent"]))
        else:
            self.finish("get", "", self.prepare(GOAL, self.depth, ["held"]))

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
            self.thank(goal, HERO)
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
        made: Obtain = getattr(self, self.pick(*ways))(t, depth, goal)
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
        way = self.pick(*ways)
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
        get_u = self.prepare_other(u, self.depth - 1) if u else None

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


class Plans:
    """The plans of one level as a function of a story's seed. Sixteen stories far apart share one."""

    def __init__(self, limits: Limits, level: int) -> None:
        self.limits, self.level = limits, level
        self._drawn: dict[int, tuple[Random, list[tuple[Event, ...]]]] = {}

    def plan(self, seed: int, attempt: int) -> tuple[Event, ...]:
        """A plan in letters; every event of it can happen, and its words can fit the level's."""
        key = seed >> 16 << 12 | seed & 4095  # seeds 4096 apart share it, so that no context holds two of its stories
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
            planner = Planner(self.limits, self.level, r)
            try:
                plan = planner.plan()
            except TooLong:
                continue
            people, things = FEWEST[self.level]
            enough = len(planner.state.people) >= people and len(planner.state.things) >= things
            if enough and len(plan) >= self.limits.words[0] / WORDS_PER_EVENT[1]:
                return tuple(plan)
