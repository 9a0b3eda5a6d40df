"""The world that tales happen in: who is where, who holds what, what is wanted.

`apply(state, event)` is the only code that knows what an event needs and does. The generator's plans are replayed
through it before a word is written, and the grader replays through it what it reads. An event is a tuple of
strings, its kind and then its arguments: ("carry", "Mia", "red kite", "mill"). A thing's identity is its adjective
and noun.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RULES = {
    "parse": "every sentence is one that the grammar can say",
    "introduced": "whoever and whatever is spoken of was introduced, once, and not more of them than the level has",
    "pronoun": "a pronoun or noun for a person agrees with their name and can mean one person only",
    "holds": "nobody takes what is held already, or gives, carries, puts down or uses what they do not hold",
    "where": "everyone acts, and every thing is found, where the story has put them",
    "cause": "an effect follows its cause",
    "want": "one want is stated, and is not fulfilled already when it is",
    "ending": "the last sentence, and no other, settles the want",
}

Event = tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """What one level holds at most; `words` is the range that the generator keeps to."""

    people: int
    things: int
    places: int
    words: tuple[int, int]


class State:
    """What a reader knows after some sentences."""

    __slots__ = ("absent", "at", "been", "ended", "holder", "limits", "people", "places", "things", "used", "want")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.people: list[str] = []
        self.things: list[str] = []
        self.places: list[str] = []
        self.at: dict[str, str] = {}
        """Where each person is, and each thing that nobody holds; a lost thing is nowhere."""
        self.holder: dict[str, str] = {}
        self.been: set[tuple[str, str]] = set()
        """(person, place): where they have been."""
        self.absent: set[tuple[str, str]] = set()
        """(thing, place): where it is known not to be."""
        self.used: set[tuple[str, str, str]] = set()
        """(person, thing, place)."""
        self.want: Event = ()
        self.ended = False

    def place_of(self, thing: str) -> str | None:
        """Where a thing is, in someone's hands or not; None while it is lost."""
        return self.at.get(self.holder.get(thing, thing))

    def settled(self) -> bool:
        """Whether the want that was stated has come true."""
        kind, person, thing, *place = self.want
        if kind == "want_have":
            return self.holder.get(thing) == person
        if kind == "want_bring":
            return self.at.get(thing) == place[0]
        return (person, thing, place[0]) in self.used


def apply(state: State, event: Event) -> str | None:
    """Lets the event happen. Returns None, or the rule that it breaks; the state is then of no further use."""
    if state.ended:
        return "ending"
    return HANDLERS[event[0]](state, *event[1:])


def _full(known: list[str], name: str, limit: int) -> bool:
    """Adds a newcomer to `known`; True where the level has no room for one."""
    if name not in known:
        if len(known) == limit:
            return True
        known.append(name)
    return False


def _no_room(s: State, place: str) -> bool:
    return _full(s.places, place, s.limits.places)


def _person(s: State, x: str, p: str) -> str | None:
    if x in s.people or _full(s.people, x, s.limits.people) or _no_room(s, p):
        return "introduced"
    s.at[x] = p
    s.been.add((x, p))
    return None


def _new_thing(s: State, t: str) -> bool:
    return t not in s.things and not _full(s.things, t, s.limits.things)


def _lose(s: State, x: str, t: str) -> str | None:
    if not _new_thing(s, t):
        return "introduced"
    s.absent.add((t, s.at[x]))
    return None


def _hold(s: State, x: str, t: str) -> str | None:
    if not _new_thing(s, t):
        return "introduced"
    s.holder[t] = x
    return None


def _keep(s: State, x: str, t: str, p: str) -> str | None:
    if not _new_thing(s, t) or _no_room(s, p):
        return "introduced"
    s.at[t] = p
    return None


def _left(s: State, x: str, t: str, p: str) -> str | None:
    return "where" if s.at[x] == p else _keep(s, x, t, p)


def _recall(s: State, x: str, t: str, p: str) -> str | None:
    """X learns where a thing is; it must not be known to be elsewhere."""
    if _no_room(s, p):
        return "introduced"
    if (t, p) in s.absent or s.place_of(t) not in (None, p):
        return "where"
    if t not in s.holder:
        s.at[t] = p
    return None


def _sad(s: State, x: str, t: str) -> str | None:
    """Missing a thing has a cause only while the thing is away."""
    return "cause" if s.place_of(t) == s.at[x] else None


def _smile(s: State, x: str, t: str) -> str | None:
    return None if s.holder.get(t) == x else "cause"


def _want(kind: str) -> Callable[..., str | None]:
    def state_want(s: State, x: str, t: str, *place: str) -> str | None:
        if s.want:
            return "want"
        if place and _no_room(s, place[0]):
            return "introduced"
        s.want = (kind, x, t, *place)
        there_already = kind == "want_bring" and s.place_of(t) == place[0]
        return "want" if there_already or s.settled() else None

    return state_want


def _at(s: State, x: str, p: str) -> str | None:
    return None if s.at[x] == p else "where"


def _absent(s: State, x: str, t: str, p: str) -> str | None:
    """X, at P, sees that T is not there."""
    if s.at[x] != p or s.place_of(t) == p:
        return "where"
    s.absent.add((t, p))
    return None


def _go(s: State, x: str, p: str) -> str | None:
    if _no_room(s, p):
        return "introduced"
    if s.at[x] == p:
        return "where"
    s.at[x] = p
    s.been.add((x, p))
    return None


def _carry(s: State, x: str, t: str, p: str) -> str | None:
    return _go(s, x, p) if s.holder.get(t) == x else "holds"


def _carry_back(s: State, x: str, t: str, p: str) -> str | None:
    return _carry(s, x, t, p) if (x, p) in s.been else "where"


def _find(s: State, x: str, t: str) -> str | None:
    if t in s.holder:
        return "holds"
    if t not in s.at:
        if (t, s.at[x]) in s.absent:
            return "where"
        s.at[t] = s.at[x]
    return None if s.at[t] == s.at[x] else "where"


def _take(s: State, x: str, t: str) -> str | None:
    """A lost thing has to be found before it can be taken."""
    if t in s.holder:
        return "holds"
    if t not in s.at:
        return "cause"
    if s.at[t] != s.at[x]:
        return "where"
    del s.at[t]
    s.holder[t] = x
    return None


def _put(s: State, x: str, t: str) -> str | None:
    if s.holder.get(t) != x:
        return "holds"
    del s.holder[t]
    s.at[t] = s.at[x]
    return None


def _use(s: State, x: str, t: str) -> str | None:
    if s.holder.get(t) != x:
        return "holds"
    s.used.add((x, t, s.at[x]))
    return None


def _end(kind: str | None) -> Callable[..., str | None]:
    """An ending of any want, or one that tells a want of its kind again and must tell it right."""

    def settle(s: State, x: str, *rest: str) -> str | None:
        if not s.want:
            return "want"
        told = (kind or s.want[0], x, *(rest if kind else s.want[2:]))
        if told != s.want or not s.settled():
            return "ending"
        s.ended = True
        return None

    return settle


HANDLERS: dict[str, Callable[..., str | None]] = {
    "person": _person,
    "lose": _lose,
    "hold": _hold,
    "keep": _keep,
    "left": _left,
    "recall": _recall,
    "sad": _sad,
    "smile": _smile,
    "want_have": _want("want_have"),
    "want_bring": _want("want_bring"),
    "want_use": _want("want_use"),
    "at": _at,
    "leave": _at,
    "absent": _absent,
    "go": _go,
    "carry": _carry,
    "carry_back": _carry_back,
    "find": _find,
    "take": _take,
    "put": _put,
    "use": _use,
    "end": _end(None),
    "end_have": _end("want_have"),
    "end_bring": _end("want_bring"),
    "end_use": _end("want_use"),
}

INTRODUCES = {"person": 1, "lose": 2, "hold": 2, "keep": 2, "left": 2}
"""Kind -> index in the event of what it introduces."""
