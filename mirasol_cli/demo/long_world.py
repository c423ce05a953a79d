"""The demo world in long clips: a minute in which an instrument shows or plays for a few seconds, and nothing happens in between.

Looks, voices and the wordings of the questions are those of the short world (`demo_world`), so that a model of it can go on
here. What differs is time. OURS: a sight lasts 1.5 to 4 s. The tubes that cover the whole picture look at the first frame
of each chunk, so 4 chunks of the minute (one look every 15 s) pass over most sights, 16 chunks (3.75 s) over some, and 64
chunks (0.94 s) over none. Sound is heard at any number of chunks, only in coarser columns.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

from mirasol_cli.demo.world import (
    INSTRUMENTS,
    NUMBERS,
    Question,
    Scene,
    Sight,
    Sound,
    about_both,
    about_picture,
    about_sound,
    ask,
    balanced,
    looks_of,
    turns_with_ends,
    yes,
)

SECONDS = 60.0
FRAME_RATES = (9, 10)  # at least 512 different frames
EVENT_S = (1.5, 4.0)
GAP_S = 0.5
"""At least this much between two sights, and between two sounds."""

FAMILIES = ("solo", "many")
"""solo: one instrument plays, now and then. many: two or three take turns."""


def scenes(seed: int, split: str, count: int) -> list[Scene]:
    """`count` scenes of a split; scene i does not depend on `count`."""
    return [
        _scene(random.Random(f"long/{seed}/{split}/{i}"), f"demo-long{seed}-{split}-{i:05d}", FAMILIES[i % 2], held_out=split == "test")
        for i in range(count)
    ]


def questions(seed: int, split: str, world: list[Scene]) -> list[Question]:
    """All questions of a split, balanced per form, in scene order."""
    rng = random.Random(f"long/{seed}/{split}/questions")
    return balanced([question for scene in world for question in _ask(scene, rng)], rng)


def _scene(rng: random.Random, name: str, family: str, *, held_out: bool) -> Scene:
    seen = looks_of(rng, rng.choice((1, 2, 3)), held_out=held_out)
    order = (
        _solo(rng, [instrument for instrument, _ in seen])
        if family == "solo"
        else turns_with_ends(rng, (3, 4, 5), (2, 3), held_out=held_out)
    )
    slots = rng.sample(range(3), len(seen))
    sights = tuple(
        Sight(instrument, colour, slot, enter, leave)
        for (instrument, colour), slot, (enter, leave) in zip(seen, slots, _moments(rng, len(seen)), strict=True)
    )
    sounds = tuple(
        Sound(instrument, start, end, rng.uniform(0.88, 1.14))
        for instrument, (start, end) in zip(order, _moments(rng, len(order)), strict=True)
    )
    return Scene(
        name=name,
        family=family,
        seconds=SECONDS,
        frames_per_second=rng.choice(FRAME_RATES),
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


def _moments(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """(start, end) of `count` events, one after the other, anywhere in the clip and as fractions of it."""
    lengths = [rng.uniform(*EVENT_S) for _ in range(count)]
    free = SECONDS - sum(lengths) - GAP_S * (count + 1)
    waits = sorted(rng.uniform(0, free) for _ in range(count))
    before = accumulate((length + GAP_S for length in lengths), initial=GAP_S)
    starts = [wait + taken for wait, taken in zip(waits, before, strict=False)]
    return [(start / SECONDS, (start + length) / SECONDS) for start, length in zip(starts, lengths, strict=True)]


def _ask(scene: Scene, rng: random.Random) -> Iterator[Question]:
    yield from about_picture(scene, rng)
    yield about_sound(scene, rng)
    yield ask(scene, "count-heard", NUMBERS[len(scene.heard)])
    if scene.family == "solo":
        yield from about_both(scene)
        return
    order = [sound.instrument for sound in scene.sounds]
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
