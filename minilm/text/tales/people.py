"""What people do to each other: gifts, trades, loans, questions and answers, promises, quarrels.

Handlers as in `things`.
"""

from __future__ import annotations

from minilm.text.tales.things import find, go, told_at
from minilm.text.tales.world import Handler, State


def friend(s: State, x: str, y: str) -> str | None:
    """Y, X's friend, is where X is."""
    return None if s.new_person(y, s.at[x]) else "introduced"


def friend_at(s: State, x: str, y: str, p: str) -> str | None:
    return None if s.new_person(y, p) else "introduced"


def meet(s: State, x: str, y: str) -> str | None:
    return None if s.together(x, y) else "where"


def go_with(s: State, x: str, y: str, p: str) -> str | None:
    if not s.together(x, y):
        return "where"
    return go(s, x, p) or go(s, y, p)


def follow(s: State, y: str, x: str) -> str | None:
    """Y follows X, who left the place where Y is."""
    if x == y or s.at[x] == s.at[y] or s.came_from.get(x) != s.at[y]:
        return "where"
    return go(s, y, s.at[x])


def show(s: State, x: str, y: str, t: str) -> str | None:
    if s.holder.get(t) != x:
        return "holds"
    s.seen(s.at[x], t, x)
    return meet(s, x, y)


def _hand_over(s: State, x: str, y: str, t: str) -> str | None:
    if s.holder.get(t) != x:
        return "holds"
    if not s.together(x, y):
        return "where"
    s.holder[t] = y
    s.facts.discard(("sad", y))
    s.facts.add(("handed", x, y, t))
    s.seen(s.at[x], t, y)
    return None


def give(s: State, x: str, y: str, t: str) -> str | None:
    if rule := _hand_over(s, x, y, t):
        return rule
    _own(s, x, y, t)
    s.facts.add(("owes", y, x))
    return None


def _own(s: State, x: str, y: str, t: str) -> None:
    """What X passes on for good becomes Y's if it was X's; a stolen thing does not."""
    if s.owner[t] == x:
        s.owner[t] = y


def lend(s: State, x: str, y: str, t: str) -> str | None:
    if s.owner.get(t) != x:
        return "holds"
    s.facts.add(("owes", y, x))
    s.facts.add(("lent", y, x, t))
    return _hand_over(s, x, y, t)


def give_back(s: State, x: str, y: str, t: str) -> str | None:
    """X returns what is Y's."""
    if s.owner.get(t) != y:
        return "cause"
    s.facts.add(("owes", y, x))
    return _hand_over(s, x, y, t)


def ask_for(s: State, x: str, y: str, t: str) -> str | None:
    if s.holder.get(t) != y:
        return "holds"
    s.facts.add(("begged", x, y, t))
    return meet(s, x, y)


def refuse(s: State, y: str, x: str, t: str) -> str | None:
    """Y does not part with what X asked for."""
    if ("begged", x, y, t) not in s.facts:
        return "cause"
    if s.holder.get(t) != y:
        return "holds"
    s.facts.add(("wronged", x, y))
    return meet(s, x, y)


def deal(s: State, y: str, x: str, t: str, u: str) -> str | None:
    """Y will part with T for U."""
    if s.holder.get(t) != y or s.holder.get(u) == y:
        return "holds"
    s.facts.add(("deal", y, x, t, u))
    return meet(s, x, y)


def trade(s: State, x: str, y: str, u: str, t: str) -> str | None:
    """X gives Y the thing U and gets T for it."""
    if s.holder.get(t) != y or s.holder.get(u) != x:
        return "holds"
    if not s.together(x, y):
        return "where"
    s.holder[t], s.holder[u] = x, y
    _own(s, y, x, t)
    _own(s, x, y, u)
    s.facts |= {("handed", x, y, u), ("handed", y, x, t)}
    s.seen(s.at[x], t, x)
    s.seen(s.at[x], u, y)
    return None


def wish(s: State, y: str, u: str) -> str | None:
    """Y needs U, which is another's."""
    return "want" if y in (s.owner.get(u), s.holder.get(u)) else None


def glad(s: State, y: str, u: str) -> str | None:
    """Y has U."""
    return None if s.holder.get(u) == y else "cause"


def thank(s: State, y: str, x: str) -> str | None:
    if ("owes", y, x) not in s.facts:
        return "cause"
    s.facts.discard(("owes", y, x))
    return meet(s, x, y)


def saw(s: State, y: str, t: str, p: str) -> str | None:
    """Y came by P some time ago and saw T there."""
    if not s.new_place(p):
        return "introduced"
    if rule := told_at(s, t, p):
        return rule
    if t in s.holder:
        return "holds"
    s.at[t] = s.knows[y, t] = p
    return None


def see(s: State, x: str, t: str) -> str | None:
    """X notices T, which lies where X is and was not laid there by X."""
    return find(s, x, t) if s.place_of(t) else "where"


def ask_where(s: State, x: str, y: str, t: str) -> str | None:
    if not s.together(x, y):
        return "where"
    if (x, t) in s.knows:
        return "knows"
    s.facts.add(("asked", x, y, t))
    return None


def tell(s: State, y: str, x: str, t: str, where: str) -> str | None:
    """Y tells X the place of T, or who has it, as Y believes."""
    if not s.together(x, y):
        return "where"
    if where not in s.believed(y, t) or x in (where, s.holder.get(t)):
        return "knows"
    s.knows[x, t] = where
    s.facts.add(("owes", x, y))
    return None


def unknown(s: State, y: str, x: str, t: str) -> str | None:
    """Y, asked by X, does not know where T is."""
    if ("asked", x, y, t) not in s.facts:
        return "cause"
    return "knows" if (y, t) in s.knows else meet(s, x, y)


def believe(s: State, x: str, t: str, p: str) -> str | None:
    """X thinks that T is at P: it was when X last saw or heard of it."""
    return None if p in s.believed(x, t) else "knows"


def promise(s: State, x: str, y: str, t: str) -> str | None:
    """X promises to bring Y the thing T."""
    if s.holder.get(t) == y:
        return "want"
    s.facts |= {("promise", x, y, t), ("owes", y, x)}
    return meet(s, x, y)


def kept(s: State, x: str, y: str, t: str) -> str | None:
    """X has kept the promise: Y has T from X."""
    if not s.facts >= {("promise", x, y, t), ("handed", x, y, t)} or s.holder.get(t) != y:
        return "cause"
    s.facts.discard(("promise", x, y, t))
    s.facts.add(("deed", x))
    return None


def angry(s: State, x: str, y: str) -> str | None:
    """X is angry about a wrong; of one that was done unseen X has to know who did it."""
    if ("wronged", x, y) not in s.facts:
        return "cause"
    return None if s.together(x, y) or any(s.knows.get((x, t)) == y for t in s.things) else "knows"


def sorry(s: State, y: str, x: str) -> str | None:
    """Y is sorry for a wrong done to X."""
    return meet(s, x, y) if ("wronged", x, y) in s.facts else "cause"


def forgive(s: State, x: str, y: str) -> str | None:
    if ("wronged", x, y) not in s.facts:
        return "cause"
    s.facts.discard(("wronged", x, y))
    s.facts.add(("owes", y, x))
    return meet(s, x, y)


def comfort(s: State, y: str, x: str) -> str | None:
    if not s.facts & {("sad", x), ("afraid", x)}:
        return "cause"
    s.facts -= {("sad", x), ("afraid", x)}
    s.facts.add(("owes", x, y))
    return meet(s, x, y)


HANDLERS: dict[str, Handler] = {
    **dict(friend=friend, friend_at=friend_at, meet=meet, part=meet, go_with=go_with, follow=follow, show=show),
    **dict(give=give, lend=lend, give_back=give_back, ask_for=ask_for, refuse=refuse, deal=deal, trade=trade),
    **dict(wish=wish, glad=glad, thank=thank, saw=saw, see=see, ask_where=ask_where, tell=tell, tell_who=tell),
    **dict(unknown=unknown, believe=believe, promise=promise, kept=kept, angry=angry, sorry=sorry),
    **dict(forgive=forgive, comfort=comfort),
}
