"""The words of a level's tables: their classes, what fills a template's fields, and the cast of one story."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from typing import NamedTuple

PEOPLE, THINGS, PLACES, LOOSE = "XYZW", "TUVS", "PQRO", "D"
"""Letters of templates and plans. D stands for words that carry nothing to remember. X is the hero."""

PRONOUNS = {"she": {"he": "she", "his": "her", "him": "her"}, "he": {"he": "he", "his": "his", "him": "him"}}
"""Sex (named by the subject pronoun) -> slot -> word."""

VERB_FORMS = ("use", "used", "done")
"""Infinitive, past and participle of what a thing is for: wear, wore, worn."""

# Slot -> the class that its word belongs to in a skeleton. "her" is possessive and object, hence one class for three.
SLOT_CLASS = dict.fromkeys(("name", "own", "whom"), "name")
SLOT_CLASS |= {"he": "he", "He": "He", "his": "his", "him": "his", "His": "His"}
SLOT_CLASS |= {"girl": "girl", "kin": "kin", "trait": "trait", "noun": "thing", "adj": "adj", "": "place"}
SLOT_CLASS |= dict.fromkeys(VERB_FORMS, "use")


def with_article(word: str) -> str:
    """'a brave', 'an old'. The tables hold no word whose first letter misleads (hour, useful)."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


class Person:
    """A person's words, as templates name them. `whom` is the name as an object: me, where the person tells the story;
    `own` is the name even there."""

    __slots__ = ("A_trait", "He", "His", "a_trait", "girl", "he", "him", "his", "kin", "name", "own", "trait", "whom")

    def __init__(self, name: str, sex: str, girl: str, kin: str, trait: tuple[str, str, str], narrates: bool) -> None:
        self.own, self.girl, self.kin = name, girl, kin
        self.trait, self.a_trait, self.A_trait = trait
        if narrates:
            self.name = self.he = self.He = "I"
            self.his, self.him, self.whom, self.His = "my", "me", "me", "My"
        else:
            self.name = self.whom = name
            self.he, self.his, self.him = PRONOUNS[sex].values()
            self.He, self.His = self.he.capitalize(), self.his.capitalize()


class Thing:
    """A thing's words, as templates name them."""

    __slots__ = ("A_adj", "It", "a_adj", "adj", "done", "it", "noun", "use", "used")

    def __init__(self, noun: str, adj: tuple[str, str, str], verbs: list[str]) -> None:
        self.noun = noun
        self.adj, self.a_adj, self.A_adj = adj
        self.use, self.used, self.done = verbs
        self.it, self.It = "it", "It"


class Cast(NamedTuple):
    """Who and what the letters of one story stand for."""

    words: dict[str, object]
    she: int
    """Bit i is set where PEOPLE[i] is female; the narrator is in neither."""
    he: int


def _articles(words: list[str]) -> list[tuple[str, str, str]]:
    return [(word, with_article(word), with_article(word).capitalize()) for word in words]


class Lexicon:
    """Classes of words, and `cast`, which draws a story's own."""

    def __init__(self, words: dict, held_out: dict) -> None:
        self.sex = {name: sex for sex in PRONOUNS for name in words[sex].split()}
        self.girls = {girl: sex for sex in PRONOUNS for girl in words["person"][sex].split()}
        self.kin = {kin: sex for sex in PRONOUNS for kin in words["kin"][sex].split()}
        self.verbs = {noun: key.split() for key, nouns in words["use"].items() for noun in nouns.split()}
        self.places: list[str] = words["place"].split()
        self.traits, self.adjs = words["trait"].split(), words["adj"].split()
        self.loose: dict[str, list[str]] = {name: said.split() for name, said in words["loose"].items()}
        self._known = list(self.sex), [noun for noun in self.verbs if noun != "key"]
        for sex in PRONOUNS:
            self.sex |= dict.fromkeys(held_out[sex].split(), sex)
        self.verbs |= {noun: key.split() for key, nouns in held_out["use"].items() for noun in nouns.split()}
        self._new = (
            [name for name in self.sex if name not in self._known[0]],
            [noun for noun in self.verbs if noun not in (*self._known[1], "key")],
        )
        self._girls = {sex: [w for w, s in self.girls.items() if s == sex] for sex in PRONOUNS}
        self._kin = {sex: [w for w, s in self.kin.items() if s == sex] for sex in PRONOUNS}
        self._traits, self._adjs = _articles(self.traits), _articles(self.adjs)
        self.Loose = _loose_class(self.loose)
        used = {verb for verbs in self.verbs.values() for verb in verbs}
        classes: dict[str, object] = {"name": self.sex, "girl": self.girls, "kin": self.kin, "thing": self.verbs}
        classes |= {"place": self.places, "use": used, "trait": self.traits, "adj": self.adjs, **self.loose}
        classes |= {"he": ["he", "she"], "He": ["He", "She"], "his": ["his", "him", "her"], "His": ["His", "Her"]}
        self.symbol: dict[str, str] = {}
        """Word -> its class, as it stands in a skeleton."""
        for name, members in classes.items():
            for word in members:  # type: ignore[attr-defined]
                if self.symbol.setdefault(word, f"<{name}>") != f"<{name}>":
                    raise ValueError(f"'{word}' stands in two classes of words: {self.symbol[word]} and <{name}>")

    def cast(self, r: Random, people: int, things: int, narrates: bool, split: str) -> Cast:
        """Draws words for the first `people` and `things` letters, one key (S) and all places.

        `split` "names" or "things" takes the hero's name or the first thing from the words held out of all other
        splits; "pairs" takes a pair of the two that is held out (1 in 16), which all others avoid.
        """
        random = r.random
        known_names, known_nouns = self._known
        while True:
            names = _different(random, known_names, people)
            nouns = _different(random, known_nouns, min(things, 3))
            if split == "names":
                names[0] = r.choice(self._new[0])
            elif split == "things":
                nouns[0] = r.choice(self._new[1])
            elif is_held_out_pair(names[0], nouns[0]) != (split == "pairs"):
                continue
            break
        words: dict[str, object] = dict(zip(PLACES, _different(random, self.places, len(PLACES)), strict=True))
        she = he = 0
        for i, name in enumerate(names):
            sex = self.sex[name]
            girls, kin, traits = self._girls[sex], self._kin[sex], self._traits
            first = narrates and i == 0
            words[PEOPLE[i]] = Person(
                name,
                sex,
                girls[int(random() * len(girls))],
                kin[int(random() * len(kin))],
                traits[int(random() * len(traits))],
                first,
            )
            if not first:
                she |= (sex == "she") << i
                he |= (sex == "he") << i
        for letter, noun in zip(THINGS[:3], nouns, strict=False):
            words[letter] = Thing(noun, self._adjs[int(random() * len(self._adjs))], self.verbs[noun])
        if "key" in self.verbs:
            words["S"] = Thing("key", self._adjs[int(random() * len(self._adjs))], self.verbs["key"])
        words["D"] = self.Loose(random)
        return Cast(words, she, he)


def is_held_out_pair(name: str, noun: str) -> bool:
    """One pair in 16 of a hero's name and a thing's noun, spread evenly over both."""
    return (_spread(name) + 3 * _spread(noun)) % 16 == 5


@cache
def _spread(word: str) -> int:
    return sum(word.encode()) + 7 * len(word)


def _different(random: Callable[[], float], words: list[str], n: int) -> list[str]:
    """n different ones of the words."""
    drawn: list[str] = []
    while len(drawn) < n:
        word = words[int(random() * len(words))]
        if word not in drawn:
            drawn.append(word)
    return drawn


def _loose_class(loose: dict[str, list[str]]) -> Callable[[Callable[[], float]], object]:
    """A class whose attributes draw anew each time they are read: {D.spot} is another spot in every sentence."""

    def property_of(words: list[str]) -> property:
        return property(lambda self: words[int(self.random() * len(words))])

    def init(self: object, random: Callable[[], float]) -> None:
        self.random = random  # type: ignore[attr-defined]

    fields = {name: property_of(words) for name, words in loose.items()}
    members = {"__init__": init, "__slots__": ("random",), **fields}
    made: Callable[[Callable[[], float]], object] = type("Loose", (), members)
    return made
