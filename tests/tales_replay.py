"""A second opinion on whether a story holds together: its events replayed in a world that shares no code with minilm.

Written from what the sentences mean, for the one question "could this be so?". Of minilm it uses only the tables' words
and limits. How a sentence is read: a name means its bearer, I and my the teller of a letter or diary. Another pronoun
means the first of its sex in the sentence, else the one of that sex spoken of last, else the only one of that sex.
Someone left unsaid is the other one spoken of last, else the only other one. A noun means the one known thing of that
name, "it" (and a thing left unsaid) the only thing there is, else the one spoken of last.
"""

from __future__ import annotations

import tomllib
from functools import cache
from typing import NamedTuple

from tales_replay_ground import PEOPLE, PLACES, SEX, TABLES, THINGS, Broken, Someone, Something, need, words_of
from tales_replay_world import World

TELLER = ("I", "my", "My", "me")
NEW_PERSON = {"person": 1, "dweller": 1, "friend": 2, "friend_at": 2}
NEW_THING = dict.fromkeys(("lose", "hold", "keep", "left", "locked"), 2)


class Line(NamedTuple):
    """One sentence, open to damage."""

    literals: list[str]
    """Text before each field, and after the last."""
    fields: list[str]
    """"X.name": letter and slot; places are a letter only."""
    words: list[str]
    """What fills the fields; some adjectives and traits with their article."""
    events: tuple[tuple[str, ...], ...]
    style: str

    def text(self) -> str:
        return "".join(a + b for a, b in zip(self.literals, [*self.words, ""], strict=True))


@cache
def told_by(style: str) -> frozenset[str]:
    """The kinds of events for which a style has words of its own."""
    table = tomllib.loads((TABLES / "styles.toml").read_text("ascii"))
    return frozenset(event.split()[0] for key in table.get(style, {}) for event in key.split(","))


class Reader:
    """Reads lines as the module says, and lets their events happen in `world`."""

    def __init__(self, level: int, style: str, world: World) -> None:
        self.words, self.style, self.world = words_of(level), style, world
        self.teller: Someone | None = None
        self.last_people: list[Someone] = []
        self.last_things: list[Something] = []

    def read(self, line: Line) -> None:
        kinds = {event[0] for event in line.events}
        if line.style != self.style:
            need(not kinds & (told_by(self.style) | told_by(line.style)), "another style")
        said = [(*field.partition(".")[::2], word) for field, word in zip(line.fields, line.words, strict=True)]
        for _, slot, word in said:
            if slot[:2] in ("a_", "A_"):
                article, word = word.lower().split()
                need((article == "an") == (word[0] in "aeiou"), "a or an")
        what: dict[str, object] = {}
        for letter, _, word in said:
            if letter in PLACES:
                need(what.setdefault(letter, word) == word, "two places for one")
        what |= self.people(line, said)
        what |= self.things(line, said)
        for kind, *letters in line.events:
            self.world.happen(kind, [what[letter] for letter in letters])
        if "person" in kinds and self.style in ("letter", "diary"):
            self.teller = what["X"]  # type: ignore[assignment]

    def people(self, line: Line, said: list[tuple[str, str, str]]) -> dict[str, Someone]:
        known = self.world.people
        new = {event[NEW_PERSON[event[0]]] for event in line.events if event[0] in NEW_PERSON}
        who: dict[str, Someone] = {}
        first: dict[str, Someone] = {}
        for letter, slot, word in said:
            if letter not in PEOPLE or slot in ("girl", "kin") or slot.endswith("trait"):
                continue
            if word in TELLER:
                need(self.teller, "I, before the teller is known")
                one: Someone | None = self.teller
            elif word.lower() in SEX:
                one = first.get(SEX[word.lower()])
                # nobody asks herself, or is her own cousin: another is meant than the one who was named
                not_self = slot == "him" or (slot == "his" and new & set(PEOPLE))
                if not_self and one in [other for x, other in who.items() if x != letter]:
                    one = who.get(letter)
                    need(not one or (one.sex == SEX[word.lower()] and one is not self.teller), "a wrong pronoun")
                one = one or self.meant(SEX[word.lower()], list(who.values()) if not_self else [])
            elif letter in new:
                need(word not in known, "a known person introduced")
                one = who.get(letter) or Someone(word, self.words.sex[word])
                need(one.name == word, "two names for one")
            else:
                one = known.get(word)
                need(one, "a name that was not introduced")
                need(one is not self.teller or slot == "own", "the teller by name")
            assert one is not None
            need(who.setdefault(letter, one) is one, "two people for one")
            if one is not self.teller:
                first.setdefault(one.sex, one)
        letters = list(dict.fromkeys(x for event in line.events for x in event[1:] if x in PEOPLE))
        for letter in letters:
            if letter not in who:
                need(letter not in new, "introduced without a name")
                others = [p for p in self.last_people if p not in who.values()]
                others = others or [p for p in known.values() if p not in who.values()]
                if line.events[-1][0].startswith("end") and self.world.wish:
                    others = [self.world.wish[1]]
                need(len(others) == 1, "someone unsaid")
                who[letter] = others[0]
        need(len(set(who.values())) == len(who), "one person in two roles")
        for letter, slot, word in said:
            if slot in ("girl", "kin") and word not in ("cousin", "schoolfellow"):
                need(self.words.sex[word] == who[letter].sex, f"{word} {who[letter].name}")
        if who:
            self.last_people = list(who.values())
        return who

    def meant(self, sex: str, others: list[Someone]) -> Someone:
        fit = [p for p in self.world.people.values() if p.sex == sex and p is not self.teller and p not in others]
        able = [p for p in fit if p in self.last_people] or fit
        need(len(able) == 1, "a pronoun for nobody, or for two")
        return able[0]

    def things(self, line: Line, said: list[tuple[str, str, str]]) -> dict[str, Something]:
        known = self.world.things
        new = {event[NEW_THING[event[0]]] for event in line.events if event[0] in NEW_THING}
        what: dict[str, Something] = {}
        spoken = []
        for letter in dict.fromkeys(t for event in line.events for t in event[1:] if t in THINGS):
            mine = [(slot.lower().removeprefix("a_"), word.split()[-1]) for x, slot, word in said if x == letter]
            nouns, adjs = ({word for slot, word in mine if slot == wanted} for wanted in ("noun", "adj"))
            need(len(nouns) < 2 and len(adjs) < 2, "two names for one thing")
            if letter in new:
                what[letter] = Something(*adjs, *nouns)
            else:
                able = [t for t in known if {t.noun} >= nouns and {t.adj} >= adjs]
                if not nouns and len(known) > 1:
                    able = self.last_things
                need(len(able) == 1, "a thing that is unknown or could be two")
                what[letter] = able[0]
            if nouns or any(slot == "it" for slot, _ in mine):
                spoken.append(what[letter])
            for slot, word in mine:
                if slot in ("use", "used", "done"):
                    form = ("use", "used", "done").index(slot)
                    need(self.words.verbs[what[letter].noun][form] == word, f"{word} the {what[letter].noun}")
        need(len(set(what.values())) == len(what), "one thing in two roles")
        self.last_things = spoken or self.last_things
        return what


def fault(lines: list[Line], level: int, style: str) -> str:
    """Why the story cannot be so; empty where it can."""
    world = World(level)
    reader = Reader(level, style, world)
    try:
        for line in lines:
            reader.read(line)
        need(world.over, "nothing is settled at the end")
    except Broken as broken:
        return str(broken)
    return ""
