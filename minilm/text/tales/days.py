"""What befalls people: weather, the time of day, hunger, tiredness, sleep, fear, pride.

Handlers as in `things`.
"""

from __future__ import annotations

from minilm.text.tales.world import HOURS, Handler, State


def hour(name: str) -> Handler:
    index = HOURS.index(name)

    def pass_time(s: State) -> str | None:
        if s.hour >= index:
            return "cause"
        s.hour = index
        return None

    return pass_time


def sky(before: tuple[str, ...], after: str) -> Handler:
    def change(s: State) -> str | None:
        if s.sky not in before:
            return "cause"
        s.sky = after
        return None

    return change


def wet(s: State, x: str) -> str | None:
    """X got wet: X walked through the rain, or is in it now and under no roof."""
    if ("soaked", x) not in s.facts and (s.sky == "clear" or ("sheltered", x) in s.facts):
        return "cause"
    s.facts.discard(("soaked", x))
    s.facts.add(("wet", x))
    return None


def dry(s: State, x: str) -> str | None:
    """X dries: X was in the rain, and the rain is over."""
    if not s.facts & {("wet", x), ("soaked", x)} or s.sky != "clear":
        return "cause"
    s.facts -= {("wet", x), ("soaked", x)}
    return None


def shelter(s: State, x: str) -> str | None:
    s.facts.add(("sheltered", x))
    return "cause" if s.sky == "clear" else None


def tired(s: State, x: str) -> str | None:
    s.facts.add(("tired", x))
    return None if s.steps.get(x) else "cause"


def rest(s: State, x: str) -> str | None:
    if ("tired", x) not in s.facts and not s.steps.get(x):
        return "cause"
    s.facts.discard(("tired", x))
    s.steps[x] = 0
    return None


def hungry(s: State, x: str) -> str | None:
    if s.facts & {("fed", x), ("hungry", x)}:
        return "cause"
    s.facts.add(("hungry", x))
    return None


def eat(s: State, x: str) -> str | None:
    if ("fed", x) in s.facts:
        return "cause"
    s.facts.discard(("hungry", x))
    s.facts.add(("fed", x))
    return None


def share(s: State, y: str, x: str) -> str | None:
    """Y gives X something to eat."""
    if not s.together(x, y):
        return "where"
    s.facts.add(("owes", x, y))
    return eat(s, x)


def sleep(s: State, x: str) -> str | None:
    s.asleep.add(x)
    return None if s.hour == 3 else "cause"


def wake(s: State, x: str) -> str | None:
    """X wakes in the morning of the next day."""
    if x not in s.asleep:
        return "cause"
    s.asleep.discard(x)
    s.hour = 0
    s.steps[x] = 0
    s.facts -= {("fed", x), ("tired", x), ("afraid", x)}
    return None


def lonely(s: State, x: str) -> str | None:
    return "cause" if any(s.together(x, y) for y in s.people) else None


def afraid(s: State, x: str) -> str | None:
    """Of the dark or of the storm."""
    s.facts |= {("afraid", x), ("scared", x)}
    return None if s.hour == 3 or s.sky == "storm" else "cause"


def calm(s: State, x: str) -> str | None:
    """The fear passes with what caused it."""
    if ("scared", x) not in s.facts or s.hour == 3 or s.sky == "storm":
        return "cause"
    s.facts -= {("afraid", x), ("scared", x)}
    return None


def proud(s: State, x: str) -> str | None:
    if ("deed", x) not in s.facts:
        return "cause"
    s.facts.discard(("deed", x))
    return None


HANDLERS: dict[str, Handler] = {
    **{name: hour(name) for name in HOURS[1:]},
    "rain": sky(("clear",), "rain"),
    "storm": sky(("rain",), "storm"),
    "clear": sky(("rain", "storm"), "clear"),
    **dict(wet=wet, dry=dry, shelter=shelter, tired=tired, rest=rest, hungry=hungry, eat=eat, share=share),
    **dict(sleep=sleep, wake=wake, lonely=lonely, afraid=afraid, calm=calm, proud=proud),
}
