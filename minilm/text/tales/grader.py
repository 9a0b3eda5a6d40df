"""The grader: reads a story back sentence by sentence and names the first rule that it breaks.

A sentence costs one dictionary look-up; then its mentions are resolved to people and things, and its events are
applied to the world. Any string is judged, none raises; time is linear in the length, and reading ends at the first
fault.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from minilm.text.tales.events import apply
from minilm.text.tales.grammar import STYLES, Grammar, Reading, grammar, split_words
from minilm.text.tales.words import PEOPLE, VERB_FORMS
from minilm.text.tales.world import State

SEX_OF = {"his": {"his": "he", "her": "she"}, "him": {"him": "he", "her": "she"}, "he": {"he": "he", "she": "she"}}
"""Slot -> word -> sex."""

EITHER_SEX = ("cousin", "schoolfellow")
"""Kin whom the tables draw for one sex only, though the word fits both."""

CODE = re.compile(rf"({'|'.join(STYLES)}): ")


class Verdict(NamedTuple):
    """What the grader found."""

    passed: bool
    rule: str | None
    """The first broken rule, a key of `RULES`."""
    sentences: int
    """Sentences in the text."""
    before: int
    """Sentences before the broken one; all of them where only the end is missing."""
    broken: str
    """The sentence that breaks the rule; empty where the story passes or only the end is missing."""


def grade(text: str, level: int = 1, style: str | None = None) -> Verdict:
    """Judges one story. Its control code says the style, none being plain; a given `style` must be the one it has.

    UsageError: no such level or style.
    """
    text = text.strip()
    code = CODE.match(text)
    told = code[1] if code else "plain"
    g = grammar(level, style or told)
    reader = _Reader(g)
    sentences = (text[code.end() :] if code else text).split(". ")
    count = len(sentences)
    if sentences[-1].endswith("."):
        sentences[-1] = sentences[-1][:-1]
    else:
        sentences[-1] += "\n"  # no sentence of any grammar: the text stops in the middle of one
    if told != (style or told):
        return Verdict(False, "style", count, 0, sentences[0].rstrip("\n")[: g.longest])
    for i, sentence in enumerate(sentences):
        rule = reader.read(sentence)
        if rule is not None:
            return Verdict(False, rule, count, i, sentence.rstrip("\n")[: g.longest])
    if not reader.state.ended:
        return Verdict(False, "ending" if reader.state.want else "want", count, count, "")
    return Verdict(True, None, count, count, "")


class _Reader:
    """What has been read of one story, and who and what was spoken of last."""

    def __init__(self, g: Grammar) -> None:
        self.g = g
        self.state = State(g.limits)
        self.narrator = ""
        self.people: list[str] = []
        self.things_said: list[str] = []

    def read(self, sentence: str) -> str | None:
        """Parses one sentence and lets its events happen. Returns the broken rule, if any."""
        g = self.g
        if len(sentence) > g.longest or "<" in sentence:
            return "parse"
        words = split_words(sentence)
        symbol = g.lexicon.symbol
        skeleton = " ".join([symbol.get(word, word) for word in words])
        reading = g.readings.get(skeleton)
        if reading is None:
            return "style" if g.told_otherwise(skeleton) else "parse"
        found: dict[str, str] = {}
        spoken: dict[str, str] = {}
        adjs: dict[str, str] = {}
        its: set[str] = set()
        verb = None
        if reading.narrator:
            if not self.narrator:
                return "introduced"
            found[reading.narrator] = self.narrator
        first: dict[str, str] = {}
        for i, slot, letter in reading.slots:
            word = words[i]
            if slot == "":
                if found.setdefault(letter, word) != word:
                    return "where"
            elif slot in ("name", "whom", "own"):
                if rule := self._name(reading, letter, word, slot, found):
                    return rule
                first.setdefault(g.lexicon.sex[word], word)
            elif slot in ("girl", "kin"):
                if word not in EITHER_SEX:
                    spoken[letter] = (g.lexicon.girls if slot == "girl" else g.lexicon.kin)[word]
            elif slot in ("adj", "trait"):
                if (article := words[i - 1].lower()) in ("a", "an") and (article == "an") != (word[0] in "aeiou"):
                    return "parse"
                if slot == "adj":
                    adjs[letter] = word
            elif slot == "noun":
                if spoken.setdefault(letter, word) != word:
                    return "introduced"
            elif slot in ("it", "It"):
                its.add(letter)
            elif slot in VERB_FORMS:
                verb = (letter, VERB_FORMS.index(slot), word)
            elif slot.lower() in SEX_OF and letter != "D":
                sex = SEX_OF[slot.lower()].get(word.lower())
                if sex is None:
                    return "parse"
                if rule := self._pronoun(letter, sex, first, found, self._apart(reading, letter, slot)):
                    return rule
        for letter, sex in spoken.items():
            if letter in reading.people and letter in found and g.lexicon.sex[found[letter]] != sex:
                return "pronoun"
        return (
            self._unsaid_people(reading, found)
            or self._things(reading, found, spoken, adjs, its, verb)
            or self._happen(reading, found)
        )

    def _name(self, reading: Reading, letter: str, word: str, slot: str, found: dict[str, str]) -> str | None:
        if letter in reading.new:
            if letter == "X" and self.g.first_person and not self.narrator and slot == "own":
                self.narrator = word
        elif word not in self.state.people:
            return "introduced"
        if self.narrator == word and slot != "own":
            return "style"
        if found.setdefault(letter, word) != word:
            return "style" if slot == "own" else "introduced" if letter in reading.new else "pronoun"
        return None

    @staticmethod
    def _apart(reading: Reading, letter: str, slot: str) -> bool:
        """Whether the pronoun cannot mean someone else in the sentence: Ann asked her, Ann, her cousin."""
        return slot == "him" or (slot == "his" and letter not in reading.new and not reading.new.isdisjoint(PEOPLE))

    def _pronoun(self, letter: str, sex: str, first: dict[str, str], found: dict[str, str], apart: bool) -> str | None:
        """A pronoun means the first of its sex in the sentence, else the one spoken of last, else the only one."""
        sexes = self.g.lexicon.sex
        meant = first.get(sex)
        others = [x for other, x in found.items() if apart and other != letter]
        if meant in others:
            meant = found.get(letter)
            meant = meant if meant and sexes[meant] == sex and meant != self.narrator else None
        if meant is None:
            fit = [x for x in self.state.people if sexes[x] == sex and x != self.narrator and x not in others]
            able = [x for x in self.people if x in fit] or fit
            if not self.state.people and letter not in found:
                return "introduced"
            if len(able) != 1:
                return "pronoun"
            meant = able[0]
            first.setdefault(sex, meant)
        return None if found.setdefault(letter, meant) == meant else "pronoun"

    def _unsaid_people(self, reading: Reading, found: dict[str, str]) -> str | None:
        """Whom a sentence means without saying so: the one other person spoken of last, else the only other one."""
        said = [found[letter] for letter in reading.people if letter in found]
        for letter in reading.people:
            if letter in found:
                continue
            if letter in reading.new or not self.state.people:
                return "introduced"
            if reading.events[-1][0].startswith("end") and self.state.want:
                found[letter] = self.state.want[1]  # an ending that names nobody speaks of the want's own
                continue
            able = [x for x in self.people if x not in said] or [x for x in self.state.people if x not in said]
            if len(able) != 1:
                return "pronoun"
            found[letter] = able[0]
        people = [found[letter] for letter in reading.people]
        if len(set(people)) < len(people):
            return "pronoun"
        if people:
            self.people = people
        return None

    def _things(
        self,
        reading: Reading,
        found: dict[str, str],
        spoken: dict[str, str],
        adjs: dict[str, str],
        its: set[str],
        verb: tuple | None,
    ) -> str | None:
        """Replaces nouns and 'it' by the things they mean. A thing's identity is its adjective and noun."""
        known = self.state.things
        said: list[str] = []
        for letter in reading.things:
            noun, adj = spoken.get(letter), adjs.get(letter)
            if letter in reading.new:
                found[letter] = f"{adj} {noun}"
            else:
                if noun is None:
                    able = known if len(known) == 1 else self.things_said
                elif adj is None:
                    able = [thing for thing in known if thing.endswith(f" {noun}")]
                else:
                    able = [thing for thing in known if thing == f"{adj} {noun}"]
                if len(able) != 1:
                    return "pronoun" if known and noun is None else "introduced"
                found[letter] = able[0]
            if noun is not None or letter in its:
                said.append(found[letter])
            if verb and verb[0] == letter:
                _, form, word = verb
                if self.g.lexicon.verbs[found[letter].split()[1]][form] != word:
                    return "parse"
        if len(set(said)) < len(said):
            return "introduced"
        if said:
            self.things_said = said
        return None

    def _happen(self, reading: Reading, found: dict[str, str]) -> str | None:
        for kind, *letters in reading.events:
            args = [found[letter] for letter in letters]
            if kind == "key" and not args[0].endswith(" key"):
                return "cause"
            if kind == "use" and self.g.lexicon.verbs[args[1].split()[1]][0] == "mend":
                self.state.facts.discard(("broken", args[1]))
            if rule := apply(self.state, (kind, *args)):
                return rule
        return None
