"""What happens to things and where people go: events of places, possession, wants and endings.

Each handler takes the state and the event's arguments: X, Y people, T, U things, P a place. It returns None, or the
rule that the event breaks.
"""

from __future__ import annotations

from minilm.text.tales.world import Handler, State

OWN = {"want_have": True, "want_give": True, "want_get": False}
"""Want -> whether the thing must be one's own."""


def person(s: State, x: str, p: str) -> str | None:
    return None if s.new_person(x, p) else "introduced"


def lose(s: State, x: str, t: str) -> str | None:
    if not s.new_thing(t):
        return "introduced"
    s.owner[t] = x
    s.facts |= {("absent", t, s.at[x]), ("lost", t)}
    return None


def hold(s: State, x: str, t: str) -> str | None:
    if not s.new_thing(t):
        return "introduced"
    s.owner[t] = s.holder[t] = x
    s.seen(s.at[x], t, x)
    return None


def keep(s: State, x: str, t: str, p: str) -> str | None:
    if not s.new_thing(t) or not s.new_place(p):
        return "introduced"
    s.owner[t] = x
    s.at[t] = s.knows[x, t] = p
    return None


def left(s: State, x: str, t: str, p: str) -> str | None:
    return "where" if s.at[x] == p else keep(s, x, t, p)


def locked(s: State, x: str, t: str, p: str) -> str | None:
    """X has T in a locked box at P."""
    s.facts.add(("locked", t))
    return keep(s, x, t, p)


def key(s: State, u: str, t: str) -> str | None:
    """U is what opens T's box."""
    if ("locked", t) not in s.facts or u == t or any(f[0] == "key" and f[2] == t != f[1] != u for f in s.facts):
        return "cause"
    s.facts.add(("key", u, t))
    return None


def unlock(s: State, x: str, t: str, u: str) -> str | None:
    if s.holder.get(u) != x:
        return "holds"
    if s.at.get(t) != s.at[x]:
        return "where"
    if ("locked", t) not in s.facts or ("key", u, t) not in s.facts:
        return "cause"
    s.facts.discard(("locked", t))
    s.facts.add(("deed", x))
    return None


def recall(s: State, x: str, t: str, p: str) -> str | None:
    """X learns where a thing is; it must not be known to be elsewhere."""
    if not s.new_place(p):
        return "introduced"
    if s.holder.get(t) == x:
        return "knows"
    if rule := told_at(s, t, p):
        return rule
    if t not in s.holder:
        s.at[t] = s.knows[x, t] = p
    return None


def told_at(s: State, t: str, p: str) -> str | None:
    """T may be at P: it is there, or it is lost and was not missed there."""
    place = s.place_of(t)
    return "where" if place != p and (place or ("absent", t, p) in s.facts) else None


def sad(s: State, x: str, t: str) -> str | None:
    """Missing a thing has a cause only while the thing is away."""
    s.facts.add(("sad", x))
    return "cause" if s.place_of(t) == s.at[x] else None


def smile(s: State, x: str, t: str) -> str | None:
    return None if s.holder.get(t) == x else "cause"


def want(kind: str) -> Handler:
    """One wants back, or to give away, what is one's own, and to get what is another's."""

    def state_want(s: State, x: str, t: str, *goal: str) -> str | None:
        if s.want or (kind in OWN and (s.owner.get(t) == x) != OWN[kind]):
            return "want"
        if kind == "want_have" and s.at.get(t) == s.at[x] and ("lost", t) not in s.facts:
            return "want"
        if goal and goal[0] not in s.people and not s.new_place(goal[0]):
            return "introduced"
        s.want = (kind, x, t, *goal)
        there_already = kind == "want_bring" and s.place_of(t) == goal[0]
        return "want" if there_already or s.settled() else None

    return state_want


def at(s: State, x: str, p: str) -> str | None:
    return None if s.at[x] == p else "where"


def absent(s: State, x: str, t: str, p: str) -> str | None:
    """X, at P, sees that T is not there."""
    if s.at[x] != p or s.place_of(t) == p:
        return "where"
    if s.hour == 3:
        return "cause"
    s.facts.add(("absent", t, p))
    if s.knows.get((x, t)) == p:
        del s.knows[x, t]
    return None


def go(s: State, x: str, p: str) -> str | None:
    if not s.new_place(p):
        return "introduced"
    if s.at[x] == p:
        return "where"
    s.facts.discard(("sheltered", x))
    s.came_from[x] = s.at[x]
    s.at[x] = p
    s.facts.add(("been", x, p))
    s.steps[x] = s.steps.get(x, 0) + 1
    if s.sky != "clear":
        s.facts.add(("soaked", x))
    return None


def carry(s: State, x: str, t: str, p: str) -> str | None:
    return go(s, x, p) if s.holder.get(t) == x else "holds"


def carry_back(s: State, x: str, t: str, p: str) -> str | None:
    return carry(s, x, t, p) if ("been", x, p) in s.facts else "where"


def find(s: State, x: str, t: str) -> str | None:
    """A hidden thing has to be searched for; nothing is found in the dark, or by who laid it there."""
    if ("laid", x, t) in s.facts:
        return "knows"
    if t in s.holder:
        return "holds"
    here = s.at[x]
    if t not in s.at:
        if ("absent", t, here) in s.facts:
            return "where"
        s.at[t] = here
    if s.at[t] != here:
        return "where"
    if s.hour == 3 or ("hidden", t) in s.facts or ("locked", t) in s.facts:
        return "cause"
    s.knows[x, t] = here
    return None


def hide(s: State, x: str, t: str) -> str | None:
    """Hides T where X is; nobody may be there to see it."""
    if s.holder.get(t) != x:
        return "holds"
    here = s.at[x]
    if any(s.at[y] == here for y in s.people if y != x):
        return "knows"
    del s.holder[t]
    s.at[t] = s.knows[x, t] = here
    s.facts |= {("hidden", t), ("hid", x, t)}
    return None


def search(s: State, x: str, t: str) -> str | None:
    """X finds what is hidden or lost; who hid it need not search."""
    if ("hid", x, t) in s.facts:
        return "knows"
    if not s.facts & {("hidden", t), ("lost", t)}:
        return "holds" if t in s.holder else "cause"
    hidden = ("hidden", t) in s.facts
    s.facts.discard(("hidden", t))
    if rule := find(s, x, t):
        return rule
    s.facts.discard(("lost", t))
    if hidden:
        s.facts -= {fact for fact in s.facts if fact[0] == "hid" and fact[2] == t}
    s.facts.add(("deed", x))
    return None


def take(s: State, x: str, t: str) -> str | None:
    """A lost thing, and one that another hid, has to be found before it can be taken."""
    if t in s.holder:
        return "holds"
    if t not in s.at or ("locked", t) in s.facts or (("hidden", t) in s.facts and ("hid", x, t) not in s.facts):
        return "cause"
    if s.at[t] != s.at[x]:
        return "where"
    del s.at[t]
    s.facts -= {("hidden", t), ("hid", x, t), ("lost", t), ("sad", x), *[("laid", y, t) for y in s.people]}
    s.holder[t] = x
    s.seen(s.at[x], t, x)
    return None


def steal(s: State, x: str, t: str, y: str) -> str | None:
    """X takes, unseen by Y, what is Y's."""
    if s.owner.get(t) != y or x == y:
        return "cause"
    if s.together(x, y) and y not in s.asleep:
        return "knows"
    s.facts.add(("wronged", y, x))
    return take(s, x, t)


def put(s: State, x: str, t: str) -> str | None:
    if s.holder.get(t) != x:
        return "holds"
    del s.holder[t]
    s.at[t] = s.at[x]
    s.seen(s.at[x], t, s.at[x])
    s.facts.add(("laid", x, t))
    if s.want[:1] == ("want_bring",) and s.want[2:] == (t, s.at[x]):
        s.facts.add(("owes", s.want[1], x))
    return None


def use(s: State, x: str, t: str) -> str | None:
    if s.holder.get(t) != x:
        return "holds"
    if ("broken", t) in s.facts:
        return "cause"
    s.facts.add(("used", x, t, s.at[x]))
    return None


def drop(s: State, x: str, t: str) -> str | None:
    """T falls from X's hands and breaks."""
    if s.holder.get(t) != x:
        return "holds"
    if ("broken", t) in s.facts:
        return "cause"
    s.facts.add(("broken", t))
    if s.owner.get(t, x) != x:
        s.facts.add(("wronged", s.owner[t], x))
    return None


def fix(s: State, x: str, t: str) -> str | None:
    if s.place_of(t) != s.at[x]:
        return "where"
    if ("broken", t) not in s.facts:
        return "cause"
    s.facts.discard(("broken", t))
    s.facts.add(("deed", x))
    owner = s.owner.get(t, x)
    if owner != x:
        s.facts.add(("owes", owner, x))
    return None


def end(kind: str | None) -> Handler:
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


HANDLERS: dict[str, Handler] = {
    **dict(person=person, dweller=person, lose=lose, hold=hold, keep=keep, left=left, locked=locked, key=key),
    **dict(unlock=unlock, recall=recall, sad=sad, smile=smile, at=at, leave=at, absent=absent, go=go, carry=carry),
    **dict(carry_back=carry_back, find=find, hide=hide, search=search, take=take, steal=steal, put=put, use=use),
    **dict(drop=drop, fix=fix),
    **{f"want_{kind}": want(f"want_{kind}") for kind in ("have", "get", "bring", "use", "give")},
    "end": end(None),
    **{f"end_{kind}": end(f"want_{kind}") for kind in ("have", "get", "bring", "use", "give")},
}
