"""Every kind of event, and `apply`, the only code that lets one happen.

The generator's plans are replayed through it before a word is written, and the grader replays through it what it reads.
"""

from __future__ import annotations

from minilm.text.tales import days, people, things
from minilm.text.tales.world import Event, State

HANDLERS = things.HANDLERS | people.HANDLERS | days.HANDLERS

INTRODUCES = {
    "person": 1,
    "dweller": 1,
    "friend": 2,
    "friend_at": 2,
    **dict.fromkeys(("lose", "hold", "keep", "left", "locked"), 2),
}
"""Kind -> index in the event of what it introduces."""


MENTIONED = {"steal": 3, "tell_who": 4, "want_give": 3, "end_give": 3, "kept": 2, "angry": 2}
"""Kind -> index in the event of someone who is spoken of and may be asleep."""


def apply(state: State, event: Event) -> str | None:
    """Lets the event happen. Returns None, or the rule that it breaks; the state is then of no further use."""
    if state.ended:
        return "ending"
    if state.asleep and event[0] != "wake":
        silent = MENTIONED.get(event[0], 0)
        if any(x in state.asleep for i, x in enumerate(event) if i != silent):
            return "cause"
    return HANDLERS[event[0]](state, *event[1:])
