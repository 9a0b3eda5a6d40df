"""Tokens to text as it grows: characters as soon as they are certain, an end at the first stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from minilm.text.tokenizer_engines import Stream


class GrowingText:
    """The text of one row. It ends before the stop string that is complete first, wherever tokens are cut."""

    def __init__(self, decoder: Stream, stops: Sequence[str], ends: Collection[int]) -> None:
        self.decoder, self.stops, self.ends = decoder, stops, ends
        self.held = ""  # may be the beginning of a stop string

    def push(self, token: int, last: bool) -> tuple[str, bool]:
        """What is certain now, and whether a stop string has ended the text. last: the row ends with this token."""
        text = "" if token in self.ends else self.decoder.push(token)
        if last:
            text += self.decoder.flush()
        if not self.stops:
            return text, False
        before, stopped = cut_at_stop(self.held + text, self.stops, len(self.held))
        if stopped:
            return before, True
        n_held = 0 if last else _n_uncertain(before, self.stops)
        self.held = before[len(before) - n_held :]
        return before[: len(before) - n_held], False


def cut_at_stop(text: str, stops: Sequence[str], n_searched: int = 0) -> tuple[str, bool]:
    """The text before the stop string that is complete first (of several at once the longest); whether there is one.

    No stop string is complete in the first n_searched characters.
    """
    best: tuple[int, int] | None = None
    for stop in stops:
        begin = text.find(stop, max(0, n_searched - len(stop) + 1))
        if begin >= 0 and (best is None or (begin + len(stop), begin) < best):
            best = begin + len(stop), begin
    return (text, False) if best is None else (text[: best[1]], True)


def _n_uncertain(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of the text with which a stop string may begin."""
    longest = min(len(text), max(map(len, stops)) - 1)
    return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0)
