"""The demo world: scenes of simple instruments with their own look and sound, and questions whose answers are known.

Nothing here touches a file: a scene is a list of what is seen and what is heard when, a pure function of
(seed, split, number). Its questions need the picture, the sound, both, the order in time, counting, the far ends of a
long clip, or the context text; per question form the answers are balanced, so that none can be guessed from the words.
There are clips of 4 to 10 seconds, and of a minute.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

INSTRUMENTS = ("drum", "bell", "flute", "horn", "guitar", "whistle")
COLOURS = ("red", "green", "blue", "yellow")
NUMBERS = ("no", "one", "two", "three")

# Combinations that only the test split shows.
HELD_OUT_LOOKS = frozenset({("drum", "red"), ("flute", "blue"), ("guitar", "green")})
HELD_OUT_ORDERS = frozenset({("drum", "flute"), ("bell", "horn"), ("whistle", "guitar")})


@dataclass(frozen=True)
class Sight:
    """An instrument on screen; `enter` and `leave` are fractions of the clip."""

    instrument: str
    colour: str
    slot: int  # 0 left, 1 middle, 2 right
    enter: float
    leave: float


@dataclass(frozen=True)
class Sound:
    """An instrument that plays; `start` and `end` are fractions of the clip, `pitch` a factor around 1."""

    instrument: str
    start: float
    end: float
    pitch: float


@dataclass(frozen=True)
class Scene:
    name: str  # file stem
    family: str
    seconds: float
    frames_per_second: int
    sights: tuple[Sight, ...]
    sounds: tuple[Sound, ...]
    distractors: int  # grey shapes that mean nothing
    noise: float  # 0 to 1, of picture and sound
    title: str  # the context text

    @property
    def heard(self) -> tuple[str, ...]:
        """Distinct instruments in the order in which they first play."""
        return tuple(dict.fromkeys(sound.instrument for sound in self.sounds))

    def caption(self) -> str:
        seen = " and ".join(f"a {sight.colour} {sight.instrument}" for sight in sorted(self.sights, key=lambda s: s.enter))
        heard = " then ".join(f"a {sound.instrument}" for sound in self.sounds)
        return f"{seen} seen, {heard or 'nothing'} heard"


@dataclass(frozen=True)
class Question:
    scene: Scene
    form: str  # the wording's family; answers are balanced within one
    type: str  # what is needed: picture, sound, both, order, count, long, context, next (what comes after the clip)
    question: str
    answer: str
    context: str = ""


SCENE_NAME = re.compile(r"(demo|minute)\d+-(train|val|test)-\d{5,}")
"""Names of all scenes, short and long."""


def scenes(seed: int, split: str, count: int) -> list[Scene]:
    """`count` scenes of a split; scene i does not depend on `count`."""
    return [_scene(random.Random(f"{seed}/{split}/{i}"), f"demo{seed}-{split}-{i:05d}", i, held_out=split == "test") for i in range(count)]


FAMILIES = ("duo", "choice", "melody", "melody", "long", "choice", "duo", "long")
"""duo: one seen, one heard. choice: several seen, one of them heard. melody: several heard in turn. long: many turns."""


def _scene(rng: random.Random, name: str, number: int, *, held_out: bool) -> Scene:
    family = FAMILIES[number % len(FAMILIES)]
    turns = {"duo": 1, "choice": 1, "melody": 4, "long": 8}[family]
    seen_count = 1 if family == "duo" else rng.choice((2, 3)) if family == "choice" else rng.choice((1, 2, 3))
    seen = looks_of(rng, seen_count, held_out=held_out)

    if family == "duo":
        order = [seen[0][0] if rng.random() < 0.5 else rng.choice([other for other in INSTRUMENTS if other != seen[0][0]])]
        if rng.random() < 0.28:  # as often as any one instrument is the answer to "what is playing?"
            order = []
    elif family == "choice":
        order = [rng.choice(seen)[0]]
    elif family == "long":
        order = turns_with_ends(rng, (turns,), (3,), held_out=held_out)
    else:
        order = turns_of(rng, turns, distinct=rng.choice((1, 2, 3)), held_out=held_out)

    sounds = tuple(Sound(played, i / len(order), (i + 1) / len(order), rng.uniform(0.88, 1.14)) for i, played in enumerate(order))
    if family in ("duo", "choice") and order:  # plays in some quarters only, so that silence alone says nothing
        first = rng.randrange(0, 3)
        sounds = (Sound(order[0], first / 4, rng.randrange(first + 1, 5) / 4, rng.uniform(0.88, 1.14)),)

    quarters = rng.sample(range(4), seen_count) if family != "duo" else [rng.randrange(0, 3)]
    slots = rng.sample(range(3), seen_count)
    sights = tuple(
        Sight(instrument, colour, slot, enter=quarter / 4, leave=_leaving(rng, quarter))
        for (instrument, colour), slot, quarter in zip(seen, slots, sorted(quarters), strict=True)
    )
    heard = list(dict.fromkeys(order))
    named = heard[0] if heard and rng.random() < 0.5 else rng.choice([other for other in INSTRUMENTS if other not in heard])
    return Scene(
        name=name,
        family=family,
        seconds=rng.choice((4.0, 4.8, 5.6, 6.4)) * (1.5 if family == "long" else 1.0),
        frames_per_second=rng.choice((8, 10, 12)),
        sights=sights,
        sounds=sounds,
        distractors=rng.randrange(0, 3),
        noise=rng.random(),
        title=f"{rng.choice(('lesson one', 'my evening', 'live', 'a song'))}: {named}",
    )


def _leaving(rng: random.Random, quarter: int) -> float:
    """Most stay to the end; the others leave at the border of a later quarter."""
    return 1.0 if rng.random() < 0.6 else rng.randrange(quarter + 1, 5) / 4


def looks_of(rng: random.Random, count: int, *, held_out: bool) -> list[tuple[str, str]]:
    """Distinct instruments in distinct colours; combinations held out for the test split do not occur in the others."""
    while True:
        instruments, colours = rng.sample(INSTRUMENTS, count), rng.sample(COLOURS, count)
        looks = list(zip(instruments, colours, strict=True))
        if held_out or not HELD_OUT_LOOKS.intersection(looks):
            return looks


def turns_of(rng: random.Random, turns: int, *, distinct: int, held_out: bool) -> list[str]:
    """`turns` instruments in a row with exactly `distinct` different ones, each playing on or handing over."""
    while True:
        pool = rng.sample(INSTRUMENTS, distinct)
        order = [rng.choice(pool) for _ in range(turns)]
        pairs = {(a, b) for a, b in pairwise(order) if a != b}
        if len(set(order)) == distinct and (held_out or not HELD_OUT_ORDERS & pairs):
            return order


def turns_with_ends(rng: random.Random, turns: Sequence[int], distinct: Sequence[int], *, held_out: bool) -> list[str]:
    """As `turns_of`, with one of the given numbers of turns and of instruments; in half of all scenes the first is also the last."""
    same_ends = rng.random() < 0.5
    while True:
        order = turns_of(rng, rng.choice(turns), distinct=rng.choice(distinct), held_out=held_out)
        if (order[0] == order[-1]) == same_ends:
            return order


def questions(seed: int, split: str, world: list[Scene]) -> list[Question]:
    """All questions of a split, balanced per form, in scene order."""
    rng = random.Random(f"{seed}/{split}/questions")
    return balanced([question for scene in world for question in _ask(scene, rng)], rng)


def balanced(asked: list[Question], rng: random.Random) -> list[Question]:
    """Those to keep, so that within a form no answer is commoner than the rarest by more than a tenth, rounded to
    whole questions: guessing stays guessing."""
    by_form: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, question in enumerate(asked):
        by_form[question.form][question.answer].append(index)
    kept: set[int] = set()
    for answers in by_form.values():
        most = max(1, round(1.1 * min(len(indices) for indices in answers.values())))
        for indices in answers.values():
            kept.update(rng.sample(indices, min(len(indices), most)))
    return [question for index, question in enumerate(asked) if index in kept]


FORMS = {  # form: (what its answer needs, wording)
    "colour": ("picture", "what color is the {}?"),
    "shown": ("picture", "is there a {} in the picture?"),
    "count-seen": ("count", "how many instruments are seen?"),
    "seen-first": ("order", "what is seen first?"),
    "seen-last": ("order", "what comes into the picture last?"),
    "played": ("sound", "can you hear a {}?"),
    "count-heard": ("count", "how many instruments play?"),
    "playing": ("sound", "what is playing?"),
    "title": ("context", "does the title name what plays?"),
    "same": ("both", "is the one you see the one you hear?"),
    "colour-heard": ("both", "what color is the one that plays?"),
    "heard-first": ("order", "what plays first?"),
    "heard-last": ("order", "what plays last?"),
    "heard-after": ("order", "what plays after the {}?"),
    "heard-before": ("order", "does the {} play before the {}?"),
    "heard-next": ("next", "what will play next?"),
    "ends": ("long", "does the same instrument play first and last?"),
    "long-first": ("long", "what plays at the very start?"),
    "long-last": ("long", "what plays at the very end?"),
}


def ask(scene: Scene, form: str, answer: str, *names: str, context: str = "") -> Question:
    """The question of this form about `names`."""
    need, wording = FORMS[form]
    return Question(scene, form, need, wording.format(*names), answer, context)


def yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _ask(scene: Scene, rng: random.Random) -> Iterator[Question]:
    heard = scene.heard
    yield from about_picture(scene, rng)
    if heard:
        yield about_sound(scene, rng)
        if scene.family != "long":
            yield ask(scene, "count-heard", NUMBERS[len(heard)])
    if len(heard) == 1:
        yield ask(scene, "playing", heard[0])
        yield ask(scene, "title", yes(scene.title.endswith(heard[0])), context=f"title: {scene.title}")
        yield from about_both(scene)
    if not heard:
        yield ask(scene, "playing", "nothing")

    if scene.family == "melody" and len(heard) > 1:
        order = [sound.instrument for sound in scene.sounds]
        yield ask(scene, "heard-first", order[0])
        yield ask(scene, "heard-last", order[-1])
        handovers = [(a, b) for a, b in pairwise(order) if a != b]
        unique = [(a, b) for a, b in handovers if Counter(x for x, _ in handovers)[a] == 1]
        if unique:
            before, after = rng.choice(unique)
            yield ask(scene, "heard-after", after, before)
    if scene.family == "long":
        first, last = scene.sounds[0].instrument, scene.sounds[-1].instrument
        yield ask(scene, "ends", yes(first == last))
        yield ask(scene, "long-first", first)
        yield ask(scene, "long-last", last)


def about_picture(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """What is seen, in which colour, how many, and in which order they come."""
    seen = [sight.instrument for sight in scene.sights]
    sight = rng.choice(scene.sights)
    yield ask(scene, "colour", sight.colour, sight.instrument)
    shown = rng.choice(seen) if rng.random() < 0.5 else rng.choice([name for name in INSTRUMENTS if name not in seen])
    yield ask(scene, "shown", yes(shown in seen), shown)
    yield ask(scene, "count-seen", NUMBERS[len(seen)])
    if len(seen) > 1:
        entering = sorted(scene.sights, key=lambda s: s.enter)
        yield ask(scene, "seen-first", entering[0].instrument)
        yield ask(scene, "seen-last", entering[-1].instrument)


def about_sound(scene: Scene, rng: random.Random) -> Question:
    """Whether one is heard, in a scene with sound."""
    heard = scene.heard
    played = rng.choice(heard) if rng.random() < 0.5 else rng.choice([name for name in INSTRUMENTS if name not in heard])
    return ask(scene, "played", yes(played in heard), played)


def about_both(scene: Scene) -> Iterator[Question]:
    """What ties picture and sound together, in a scene in which one instrument plays."""
    (played,) = scene.heard
    if len(scene.sights) == 1:
        yield ask(scene, "same", yes(scene.sights[0].instrument == played))
    else:
        for sight in scene.sights:
            if sight.instrument == played:
                yield ask(scene, "colour-heard", sight.colour)


# ------------------------------------------------------------------------------------------------ the same in long clips

# A minute in which an instrument shows or plays for a few seconds, and nothing happens in between. Looks, voices and wordings
# are those above, so that a model of the short clips can go on here. OURS: a sight lasts 1.5 to 4 s. The tubes that cover the
# whole picture look at the first frame of each chunk, so 4 chunks of the minute (one look every 15 s) pass over most sights,
# 16 chunks (3.75 s) over some, and 64 chunks (0.94 s) over none. Sound is heard at any number of chunks, only in coarser columns.
LONG_SECONDS = 60.0
LONG_FRAME_RATES = (9, 10)  # at least 512 different frames
EVENT_S = (1.5, 4.0)
GAP_S = 0.5
"""At least this much between two sights, and between two sounds."""

LONG_FAMILIES = ("solo", "many", "round")
"""solo: one instrument plays, now and then. many: two or three take turns. round: two or three play one after the other, again and
again and at equal distances, so that what comes next follows from what came before, within the clip and after its end."""
ROUND_TURNS = (7, 8, 9, 10, 11)


def long_scenes(seed: int, split: str, count: int) -> list[Scene]:
    """`count` scenes of a split; scene i does not depend on `count`."""
    return [
        _long_scene(random.Random(f"long/{seed}/{split}/{i}"), f"minute{seed}-{split}-{i:05d}", i, held_out=split == "test")
        for i in range(count)
    ]


def long_questions(seed: int, split: str, world: list[Scene]) -> list[Question]:
    """All questions of a split, balanced per form, in scene order."""
    rng = random.Random(f"long/{seed}/{split}/questions")
    return balanced([question for scene in world for question in _ask_long(scene, rng)], rng)


def _long_scene(rng: random.Random, name: str, number: int, *, held_out: bool) -> Scene:
    family = LONG_FAMILIES[number % len(LONG_FAMILIES)]
    seen = looks_of(rng, rng.choice((1, 2, 3)), held_out=held_out)
    if family == "solo":
        order = _solo(rng, [instrument for instrument, _ in seen])
    elif family == "many":
        order = turns_with_ends(rng, (3, 4, 5), (2, 3), held_out=held_out)
    else:
        order = _round(rng, held_out=held_out)
    slots = rng.sample(range(3), len(seen))
    sights = tuple(
        Sight(instrument, colour, slot, enter, leave)
        for (instrument, colour), slot, (enter, leave) in zip(seen, slots, _moments(rng, len(seen)), strict=True)
    )
    sounds = tuple(
        Sound(instrument, start, end, rng.uniform(0.88, 1.14))
        for instrument, (start, end) in zip(order, (_beats if family == "round" else _moments)(rng, len(order)), strict=True)
    )
    return Scene(
        name=name,
        family=family,
        seconds=LONG_SECONDS,
        frames_per_second=rng.choice(LONG_FRAME_RATES),
        sights=sights,
        sounds=sounds,
        distractors=rng.randrange(0, 3),
        noise=rng.random(),
        title=f"one minute: {order[0]}",
    )


def _solo(rng: random.Random, seen: list[str]) -> list[str]:
    """One instrument, up to three times: one of those seen, but where only one is seen in half of the scenes another."""
    played = rng.choice(seen)
    if len(seen) == 1 and rng.random() < 0.5:
        played = rng.choice([other for other in INSTRUMENTS if other not in seen])
    return [played] * rng.choice((1, 2, 3))


def _round(rng: random.Random, *, held_out: bool) -> list[str]:
    """Two or three instruments in an order that is repeated to the end, which may come in the middle of it."""
    while True:
        motif = rng.sample(INSTRUMENTS, rng.choice((2, 3)))
        if held_out or not HELD_OUT_ORDERS & set(pairwise([*motif, motif[0]])):
            return [motif[turn % len(motif)] for turn in range(rng.choice(ROUND_TURNS))]


def _beats(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """(start, end) of `count` events at equal distances, as fractions of the clip; all are equally long."""
    length = rng.uniform(EVENT_S[0], min(EVENT_S[1], LONG_SECONDS / count - 2 * GAP_S)) / LONG_SECONDS
    first = rng.uniform(GAP_S / LONG_SECONDS, 1 / count - length - GAP_S / LONG_SECONDS)
    return [(first + turn / count, first + turn / count + length) for turn in range(count)]


def _moments(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """(start, end) of `count` events, one after the other, anywhere in the clip and as fractions of it."""
    lengths = [rng.uniform(*EVENT_S) for _ in range(count)]
    free = LONG_SECONDS - sum(lengths) - GAP_S * (count + 1)
    waits = sorted(rng.uniform(0, free) for _ in range(count))
    before = accumulate((length + GAP_S for length in lengths), initial=GAP_S)
    starts = [wait + taken for wait, taken in zip(waits, before, strict=False)]
    return [(start / LONG_SECONDS, (start + length) / LONG_SECONDS) for start, length in zip(starts, lengths, strict=True)]


def _ask_long(scene: Scene, rng: random.Random) -> Iterator[Question]:
    yield from about_picture(scene, rng)
    yield about_sound(scene, rng)
    yield ask(scene, "count-heard", NUMBERS[len(scene.heard)])
    if scene.family == "solo":
        yield from about_both(scene)
        return
    order = [sound.instrument for sound in scene.sounds]
    if scene.family == "round":
        motif = len(scene.heard)
        yield ask(scene, "heard-next", order[len(order) - motif])
        return
    yield ask(scene, "heard-first", order[0])
    yield ask(scene, "heard-last", order[-1])
    yield ask(scene, "ends", yes(order[0] == order[-1]))
    once = [name for name, times in Counter(order).items() if times == 1]
    followed = [name for name in once if name != order[-1]]
    if followed:
        before = rng.choice(followed)
        yield ask(scene, "heard-after", order[order.index(before) + 1], before)
    if len(once) > 1:
        one, other = rng.sample(once, 2)
        yield ask(scene, "heard-before", yes(order.index(one) < order.index(other)), one, other)
