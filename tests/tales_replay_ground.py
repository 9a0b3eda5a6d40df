"""The ground of the second opinion (tales_replay): words, people with beliefs, things with a spot."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

TABLES = Path(__file__).resolve().parent.parent / "minilm" / "text" / "tales"
PEOPLE, THINGS, PLACES = "XYZW", "TUVS", "PQRO"
SEX = {"he": "he", "his": "he", "him": "he", "she": "she", "her": "she"}


class Broken(Exception):
    """The story cannot be so, and why."""


def need(ok: object, why: str) -> None:
    if not ok:
        raise Broken(why)


class Words:
    """The words and limits of one level, read from the tables."""

    def __init__(self, level: int) -> None:
        self.sex: dict[str, str] = {}
        """Of names, of nouns for persons, of kin."""
        self.names: list[str] = []
        self.verbs: dict[str, list[str]] = {}
        self.places: list[str] = []
        self.adjectives: list[str] = []
        for n in range(1, level + 1):
            table = tomllib.loads((TABLES / f"level{n}.toml").read_text("ascii"))
            self.limits: dict = table["limits"]
            for part in (table.get("words", {}), table.get("held_out", {})):
                for sex in ("she", "he"):
                    self.names += part.get(sex, "").split()
                    for group in (part, part.get("person", {}), part.get("kin", {})):
                        self.sex |= dict.fromkeys(group.get(sex, "").split(), sex)
                for forms, nouns in part.get("use", {}).items():
                    self.verbs |= {noun: forms.split() for noun in nouns.split()}
                self.places += part.get("place", "").split()
                self.adjectives += part.get("adj", "").split()


words_of = cache(Words)


class Someone:
    def __init__(self, name: str, sex: str) -> None:
        self.name, self.sex = name, sex
        self.place = self.came_from = ""
        self.been: set[str] = set()
        self.believes: dict[Something, str | Someone] = {}
        """Where a thing lies, or who has it: what was last seen or heard of it."""
        self.walks = 0
        self.is_: set[str] = set()
        """hungry, fed, tired, asleep, sad, afraid, rained_on, wet, successful"""
        self.owes: set[Someone] = set()
        self.wronged_by: set[Someone] = set()
        self.handed: set[tuple[Someone, Something]] = set()
        self.asked_for: set[tuple[Someone, Something]] = set()
        self.asked_about: set[tuple[Someone, Something]] = set()
        self.promised: set[tuple[Someone, Something]] = set()
        self.used: set[tuple[Something, str]] = set()


class Something:
    def __init__(self, adj: str, noun: str) -> None:
        self.adj, self.noun = adj, noun
        self.spot: str | Someone | None = None
        """A place, who has it, or None while it is lost."""
        self.owner: Someone | None = None
        self.not_at: set[str] = set()
        """Where it was missed since it was lost."""
        self.hidden_by: Someone | None = None
        self.laid_by: Someone | None = None
        self.lost = self.locked = self.broken = False
        self.key: Something | None = None

    @property
    def place(self) -> str | None:
        return self.spot.place if isinstance(self.spot, Someone) else self.spot


class Ground:
    """Who and what there is, where, and who sees what."""

    def __init__(self, level: int) -> None:
        self.words = words_of(level)
        self.people: dict[str, Someone] = {}
        self.things: list[Something] = []
        self.places: set[str] = set()
        self.hour = 0
        self.sky = "clear"
        self.wish: tuple = ()
        self.over = False

    def known_place(self, p: str) -> None:
        self.places.add(p)
        need(len(self.places) <= self.words.limits["places"], "too many places")

    def arrive(self, x: Someone, p: str) -> None:
        need(x.name not in self.people, "introduced twice")
        self.known_place(p)
        self.people[x.name] = x
        need(len(self.people) <= self.words.limits["people"], "too many people")
        x.place = p
        x.been.add(p)

    def appear(self, x: Someone, t: Something) -> None:
        need(all((u.adj, u.noun) != (t.adj, t.noun) for u in self.things), "introduced twice")
        self.things.append(t)
        need(len(self.things) <= self.words.limits["things"], "too many things")
        t.owner = x

    def company(self, x: Someone) -> list[Someone]:
        return [y for y in self.people.values() if y is not x and y.place == x.place]

    def together(self, x: Someone, y: Someone) -> None:
        need(y in self.company(x), f"{x.name} is not where {y.name} is")

    def witness(self, place: str, t: Something) -> None:
        """All who are there and awake see where the thing is now, or who has it."""
        for one in self.people.values():
            if one.place == place and "asleep" not in one.is_:
                one.believes[t] = t.spot  # type: ignore[assignment]

    def could_believe(self, x: Someone, t: Something) -> list:
        """Where X saw or heard that it is, or could see it now."""
        if t.spot is x:
            return []
        now = [t.spot, x.place] if t.place == x.place and not t.hidden_by and not t.locked else []
        return [*now, x.believes.get(t)]

    def in_sight(self, x: Someone, t: Something) -> None:
        need(t.spot == x.place, "it does not lie here")
        need(t.laid_by is not x, "finds what they laid there")
        need(not t.hidden_by and not t.locked and self.hour != 3, "nobody could see it")

    # -- who and what appears ---------------------------------------------------------------------------------------

    def do_person(self, x: Someone, p: str) -> None:
        self.arrive(x, p)

    do_dweller = do_person

    def do_friend(self, x: Someone, y: Someone) -> None:
        self.arrive(y, x.place)

    def do_friend_at(self, x: Someone, y: Someone, p: str) -> None:
        self.arrive(y, p)

    def do_lose(self, x: Someone, t: Something) -> None:
        self.appear(x, t)
        t.not_at.add(x.place)
        t.lost = True

    def do_hold(self, x: Someone, t: Something) -> None:
        self.appear(x, t)
        t.spot = x
        self.witness(x.place, t)

    def do_keep(self, x: Someone, t: Something, p: str) -> None:
        self.appear(x, t)
        self.known_place(p)
        t.spot = x.believes[t] = p

    def do_left(self, x: Someone, t: Something, p: str) -> None:
        need(x.place != p, "left behind where its owner is")
        self.do_keep(x, t, p)

    def do_locked(self, x: Someone, t: Something, p: str) -> None:
        self.do_keep(x, t, p)
        t.locked = True

    def do_key(self, u: Something, t: Something) -> None:
        need(t.locked and u.noun == "key", "a key to nothing, or no key")
        need(t.key in (None, u), "another key was the only one")
        t.key = u
