"""The world of the second opinion (tales_replay): what each kind of event needs, and what is so afterwards.

X and Y are people, T and U things, P is a place. An event that cannot happen raises `Broken`.
"""

from __future__ import annotations

from tales_replay_ground import Ground, Someone, Something, need

DAY = ("morning", "noon", "evening", "night")


class World(Ground):
    def happen(self, kind: str, args: list) -> None:
        need(not self.over, "the story has ended")
        spoken_of = {"steal": 2, "tell_who": 3, "want_give": 2, "end_give": 2, "kept": 1, "angry": 1}.get(kind)
        for i, one in enumerate(args):
            need(
                i == spoken_of or kind == "wake" or not isinstance(one, Someone) or "asleep" not in one.is_,
                f"asleep at {kind}",
            )
        if kind in DAY:
            need(DAY.index(kind) > self.hour, "time runs backwards")
            self.hour = DAY.index(kind)
        elif kind in ("rain", "storm", "clear"):
            before = {"rain": ("clear",), "storm": ("rain",), "clear": ("rain", "storm")}[kind]
            need(self.sky in before, f"{kind} after {self.sky}")
            self.sky = kind
        elif kind.startswith("want_"):
            self.want(kind[5:], *args)
        elif kind.startswith("end"):
            self.end(kind[4:], *args)
        else:
            getattr(self, f"do_{kind}")(*args)

    # -- where people go --------------------------------------------------------------------------------------------

    def do_at(self, x: Someone, p: str) -> None:
        need(x.place == p, "is elsewhere")

    do_leave = do_at

    def do_go(self, x: Someone, p: str) -> None:
        need(x.place != p, "goes where they are")
        self.known_place(p)
        x.came_from, x.place = x.place, p
        x.is_.discard("sheltered")
        x.been.add(p)
        x.walks += 1
        if self.sky != "clear":
            x.is_.add("rained_on")

    def do_go_with(self, x: Someone, y: Someone, p: str) -> None:
        self.together(x, y)
        self.do_go(x, p)
        self.do_go(y, p)

    def do_follow(self, y: Someone, x: Someone) -> None:
        need(x.came_from == y.place, "follows one who did not leave")
        self.do_go(y, x.place)

    def do_carry(self, x: Someone, t: Something, p: str) -> None:
        need(t.spot is x, "carries what they do not have")
        self.do_go(x, p)

    def do_carry_back(self, x: Someone, t: Something, p: str) -> None:
        need(p in x.been, "back to where they never were")
        self.do_carry(x, t, p)

    def do_meet(self, x: Someone, y: Someone) -> None:
        self.together(x, y)

    do_part = do_meet

    # -- what is done with things -----------------------------------------------------------------------------------

    def do_take(self, x: Someone, t: Something) -> None:
        need(t.spot == x.place and t.hidden_by in (None, x) and not t.locked, "takes what does not lie open here")
        t.spot, t.hidden_by, t.laid_by, t.lost = x, None, None, False
        x.is_.discard("sad")
        self.witness(x.place, t)

    def do_steal(self, x: Someone, t: Something, y: Someone) -> None:
        need(t.owner is y and (y.place != x.place or "asleep" in y.is_), "no theft")
        self.do_take(x, t)
        y.wronged_by.add(x)

    def do_put(self, x: Someone, t: Something) -> None:
        need(t.spot is x, "puts down what they do not have")
        t.spot, t.laid_by = x.place, x
        self.witness(x.place, t)
        if self.wish[:1] == ("bring",) and self.wish[2:] == (t, x.place):
            self.wish[1].owes.add(x)

    def do_hide(self, x: Someone, t: Something) -> None:
        need(not self.company(x), "hides it under eyes")
        self.do_put(x, t)
        t.hidden_by = x

    def do_search(self, x: Someone, t: Something) -> None:
        need(t.hidden_by or t.lost, "searches for what is neither hidden nor lost")
        need(t.hidden_by is not x, "searches for what they hid themselves")
        t.hidden_by = None
        self.do_find(x, t)
        t.lost = False
        x.is_.add("successful")

    def do_find(self, x: Someone, t: Something) -> None:
        if t.spot is None and x.place not in t.not_at:
            t.spot = x.place
        self.in_sight(x, t)
        x.believes[t] = x.place

    def do_see(self, x: Someone, t: Something) -> None:
        self.in_sight(x, t)
        x.believes[t] = x.place

    def do_absent(self, x: Someone, t: Something, p: str) -> None:
        need(x.place == p and t.place != p and self.hour != 3, "cannot miss it there")
        t.not_at.add(p)
        if x.believes.get(t) == p:
            del x.believes[t]

    def do_unlock(self, x: Someone, t: Something, u: Something) -> None:
        need(t.locked and t.key is u and u.spot is x and t.spot == x.place, "cannot open it")
        t.locked = False
        x.is_.add("successful")

    def do_use(self, x: Someone, t: Something) -> None:
        t.broken &= self.words.verbs[t.noun][0] != "mend"
        need(t.spot is x and not t.broken, "cannot use it")
        x.used.add((t, x.place))

    def do_drop(self, x: Someone, t: Something) -> None:
        need(t.spot is x and not t.broken, "cannot drop and break it")
        t.broken = True
        if t.owner is not x:
            t.owner.wronged_by.add(x)  # type: ignore[union-attr]

    def do_fix(self, x: Someone, t: Something) -> None:
        need(t.broken and t.place == x.place, "cannot mend it")
        t.broken = False
        x.is_.add("successful")
        if t.owner is not x:
            t.owner.owes.add(x)  # type: ignore[union-attr]

    def pass_on(self, x: Someone, y: Someone, t: Something) -> None:
        need(t.spot is x, "hands over what they do not have")
        self.together(x, y)
        t.spot = y
        x.handed.add((y, t))
        y.is_.discard("sad")
        self.witness(x.place, t)
        y.owes.add(x)

    def do_give(self, x: Someone, y: Someone, t: Something) -> None:
        self.pass_on(x, y, t)
        t.owner = y if t.owner is x else t.owner

    def do_lend(self, x: Someone, y: Someone, t: Something) -> None:
        need(t.owner is x, "lends what is not theirs")
        self.pass_on(x, y, t)

    def do_give_back(self, x: Someone, y: Someone, t: Something) -> None:
        need(t.owner is y, "gives back what was not theirs")
        self.pass_on(x, y, t)

    def do_trade(self, x: Someone, y: Someone, u: Something, t: Something) -> None:
        need(u.spot is x and t.spot is y, "trades what they do not have")
        self.together(x, y)
        u.spot, t.spot = y, x
        u.owner = y if u.owner is x else u.owner
        t.owner = x if t.owner is y else t.owner
        x.handed.add((y, u))
        y.handed.add((x, t))
        self.witness(x.place, u)
        self.witness(x.place, t)

    def do_show(self, x: Someone, y: Someone, t: Something) -> None:
        need(t.spot is x, "shows what they do not have")
        self.together(x, y)
        self.witness(x.place, t)

    # -- what people say and know -----------------------------------------------------------------------------------

    def be_at(self, t: Something, p: str) -> None:
        """It is told that the thing is there: so it was lost, and may be there, or must be."""
        self.known_place(p)
        if t.spot is None and p not in t.not_at:
            t.spot = p
        need(t.place == p, "it is elsewhere")

    def do_recall(self, x: Someone, t: Something, p: str) -> None:
        need(t.spot is not x, "has it")
        self.be_at(t, p)
        x.believes[t] = t.spot  # type: ignore[assignment]

    def do_saw(self, y: Someone, t: Something, p: str) -> None:
        self.be_at(t, p)
        need(t.spot == p, "it was in someone's hands")
        y.believes[t] = p

    def do_ask_where(self, x: Someone, y: Someone, t: Something) -> None:
        self.together(x, y)
        need(t not in x.believes, "asks what they know")
        x.asked_about.add((y, t))

    def do_tell(self, y: Someone, x: Someone, t: Something, where: str | Someone) -> None:
        self.together(x, y)
        need(where in self.could_believe(y, t) and x not in (where, t.spot), "tells what they do not know")
        x.believes[t] = where
        x.owes.add(y)

    do_tell_who = do_tell

    def do_unknown(self, y: Someone, x: Someone, t: Something) -> None:
        self.together(x, y)
        need((y, t) in x.asked_about and t not in y.believes, "not asked, or knows")

    def do_believe(self, x: Someone, t: Something, p: str) -> None:
        need(p in self.could_believe(x, t), "has no reason to think so")

    def do_ask_for(self, x: Someone, y: Someone, t: Something) -> None:
        self.together(x, y)
        need(t.spot is y, "asks one who does not have it")
        x.asked_for.add((y, t))

    def do_refuse(self, y: Someone, x: Someone, t: Something) -> None:
        self.together(x, y)
        need((y, t) in x.asked_for and t.spot is y, "refuses what was not asked for")
        x.wronged_by.add(y)

    def do_deal(self, y: Someone, x: Someone, t: Something, u: Something) -> None:
        self.together(x, y)
        need(t.spot is y and u.spot is not y, "no deal to make")

    def do_wish(self, y: Someone, u: Something) -> None:
        need(u.spot is not y and u.owner is not y, "has it, or it is theirs")

    def do_glad(self, y: Someone, u: Something) -> None:
        need(u.spot is y, "no reason to be glad")

    def do_promise(self, x: Someone, y: Someone, t: Something) -> None:
        self.together(x, y)
        need(t.spot is not y, "has it")
        x.promised.add((y, t))
        y.owes.add(x)

    def do_kept(self, x: Someone, y: Someone, t: Something) -> None:
        need((y, t) in x.promised & x.handed and t.spot is y, "no promise kept")
        x.promised.remove((y, t))
        x.is_.add("successful")

    def do_thank(self, y: Someone, x: Someone) -> None:
        self.together(x, y)
        need(x in y.owes, "nothing to thank for")
        y.owes.remove(x)

    def do_angry(self, x: Someone, y: Someone) -> None:
        need(y in x.wronged_by, "no wrong was done")
        need(x.place == y.place or y in x.believes.values(), "does not know who did it")

    def do_sorry(self, y: Someone, x: Someone) -> None:
        self.together(x, y)
        need(y in x.wronged_by, "no wrong was done")

    def do_forgive(self, x: Someone, y: Someone) -> None:
        self.together(x, y)
        need(y in x.wronged_by, "nothing to forgive")
        x.wronged_by.remove(y)
        y.owes.add(x)

    # -- how people feel --------------------------------------------------------------------------------------------

    def turn(self, x: Someone, old: str, new: str = "") -> None:
        need(old in x.is_, f"not {old}")
        x.is_.remove(old)
        x.is_ |= {new} - {""}

    def do_sad(self, x: Someone, t: Something) -> None:
        need(t.place != x.place, "misses what is here")
        x.is_.add("sad")

    def do_smile(self, x: Someone, t: Something) -> None:
        need(t.spot is x, "no reason to smile")

    def do_wet(self, x: Someone) -> None:
        need("rained_on" in x.is_ or (self.sky != "clear" and "sheltered" not in x.is_), "wet of nothing")
        x.is_ = x.is_ - {"rained_on"} | {"wet"}

    def do_dry(self, x: Someone) -> None:
        need(self.sky == "clear" and x.is_ & {"rained_on", "wet"}, "dry in the rain, or never wet")
        x.is_ -= {"rained_on", "wet"}

    def do_shelter(self, x: Someone) -> None:
        need(self.sky != "clear", "shelter from nothing")
        x.is_.add("sheltered")

    def do_tired(self, x: Someone) -> None:
        need(x.walks, "tired of nothing")
        x.is_.add("tired")

    def do_rest(self, x: Someone) -> None:
        need(x.walks or "tired" in x.is_, "rests from nothing")
        x.is_.discard("tired")
        x.walks = 0

    def do_hungry(self, x: Someone) -> None:
        need(not x.is_ & {"hungry", "fed"}, "hungry again")
        x.is_.add("hungry")

    def do_eat(self, x: Someone) -> None:
        need("fed" not in x.is_, "eats again")
        x.is_ = x.is_ - {"hungry"} | {"fed"}

    def do_share(self, y: Someone, x: Someone) -> None:
        self.together(x, y)
        self.do_eat(x)
        x.owes.add(y)

    def do_sleep(self, x: Someone) -> None:
        need(self.hour == 3, "asleep by day")
        x.is_.add("asleep")

    def do_wake(self, x: Someone) -> None:
        self.turn(x, "asleep")
        x.is_ -= {"fed", "tired", "afraid"}
        x.walks = self.hour = 0

    def do_lonely(self, x: Someone) -> None:
        need(not self.company(x), "lonely in company")

    def do_afraid(self, x: Someone) -> None:
        need(self.hour == 3 or self.sky == "storm", "afraid of nothing")
        x.is_ |= {"afraid", "scared"}

    def do_calm(self, x: Someone) -> None:
        need(self.hour != 3 and self.sky != "storm", "calm in danger")
        self.turn(x, "scared")
        x.is_.discard("afraid")

    def do_comfort(self, y: Someone, x: Someone) -> None:
        self.together(x, y)
        need(x.is_ & {"sad", "afraid"}, "comforted for nothing")
        x.is_ -= {"sad", "afraid"}
        x.owes.add(y)

    def do_proud(self, x: Someone) -> None:
        self.turn(x, "successful")

    # -- wants ------------------------------------------------------------------------------------------------------

    def want(self, kind: str, x: Someone, t: Something, *goal: str | Someone) -> None:
        need(not self.wish, "a second want")
        need((kind in ("have", "give")) <= (t.owner is x), "wants back, or to give, what is another's")
        need((kind == "have") <= (t.lost or t.spot != x.place), "wants back what is here")
        need((kind == "get") <= (t.owner is not x), "wants what is their own")
        need((kind == "bring") <= (t.place not in goal), "it is there")
        for p in goal:
            if isinstance(p, str):
                self.known_place(p)
        self.wish = (kind, x, t, *goal)
        need(not self.come_true(), "wants what is so")

    def come_true(self) -> bool:
        kind, x, t, *goal = self.wish
        if kind == "use":
            return (t, *goal) in x.used
        to = goal[0] if goal else x
        return t.spot == to and (kind == "bring" or t.owner is to)

    def end(self, kind: str, *told: object) -> None:
        need(self.wish and self.wish[1] is told[0], "no want of theirs")
        need(not kind or (kind, *told) == self.wish, "not what was wanted")
        need(self.come_true(), "did not come true")
        self.over = True
