"""Clips of a minute in the demo world, for the ablations of long input: rendered, with a manifest of questions.

    python tests/benchmarks/long_clips.py [--clips 240]
    mirasol prepare data/demo-long/long.jsonl --recipe recipes/ablations/long-4-ttm.yaml        (and long-16-ttm, long-64-ttm)

A clip has eight periods of eight seconds. In five of them something plays, in four something is seen, for one, two, four or
eight seconds. Of 32 frames over a minute one falls every two seconds, so that some of what is seen is met by no frame; of 128
frames none is missed. What is heard is in the spectrogram at every length, only finer with more chunks. So more frames hold
more, by construction; whether a model makes use of it is what the ablation asks.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

from common import ROOT  # noqa: F401  (puts the source tree on the path)

from mirasol_cli.datasets.demo_world import COLOURS, INSTRUMENTS, Question, Scene, Sight, Sound

PERIODS, PERIOD_S = 8, 8.0
LENGTHS_S = (1.0, 2.0, 4.0, 8.0)
TIMES = {1: "once", 2: "twice"}


def scene(rng: random.Random, name: str) -> Scene:
    """Five sounds, at most two of one instrument and never one twice in a row, and four sights of different instruments."""
    heard = sorted(rng.sample(range(PERIODS), 5))
    while True:
        played = [rng.choice(INSTRUMENTS) for _ in heard]
        if max(Counter(played).values()) <= 2 and all(a != b for a, b in pairwise(played)):
            break
    seen = rng.sample(INSTRUMENTS, 4)
    # Two of the sights are in a period with a sound, so that what plays while they are seen can be asked.
    shown = [*rng.sample(heard, 2), *rng.sample([period for period in range(PERIODS) if period not in heard], 2)]
    sounds = tuple(Sound(what, *_span(rng, period), rng.uniform(0.88, 1.14)) for what, period in zip(played, heard, strict=True))
    sights = tuple(
        Sight(what, rng.choice(COLOURS), rng.randrange(3), *_span(rng, period)) for what, period in zip(seen, shown, strict=True)
    )
    return Scene(
        name=name, family="minute", seconds=PERIODS * PERIOD_S, frames_per_second=8, sights=sights, sounds=sounds,
        distractors=rng.randrange(0, 3), noise=rng.random(), title="a song",
    )  # fmt: skip


def _span(rng: random.Random, period: int) -> tuple[float, float]:
    """Around the period's middle, so that of two in one period the shorter lies within the longer; as fractions of the clip."""
    half = rng.choice(LENGTHS_S) / 2
    middle = (period + 0.5) * PERIOD_S
    return (middle - half) / (PERIODS * PERIOD_S), (middle + half) / (PERIODS * PERIOD_S)


def ask(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """Every question that this clip can answer; `form` is its wording, within which answers are balanced."""
    order = [sound.instrument for sound in scene.sounds]
    yield Question(scene, "first", "ends", "what plays first?", order[0])
    yield Question(scene, "last", "ends", "what plays last?", order[-1])
    once = [(a, b) for a, b in pairwise(order) if order[:-1].count(a) == 1]
    if once:
        before, after = rng.choice(once)
        yield Question(scene, "after", "order", f"what plays after the {before}?", after)
    counted = rng.choice(sorted(set(order)))
    yield Question(scene, "count", "count", f"how often does the {counted} play?", TIMES[order.count(counted)])
    for sight in scene.sights:
        seconds = round((sight.leave - sight.enter) * scene.seconds)
        yield Question(scene, "colour", f"seen {seconds} s", f"what color is the {sight.instrument}?", sight.colour)
        during = [sound.instrument for sound in scene.sounds if sound.start < sight.leave and sight.enter < sound.end]
        if during:
            yield Question(scene, "during", "both", f"what plays while the {sight.instrument} is seen?", during[0])


def balanced(asked: Sequence[Question], rng: random.Random) -> list[Question]:
    """As many of every answer of a form as of its rarest, and a tenth more at most, in the order given."""
    by_form: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, question in enumerate(asked):
        by_form[question.form][question.answer].append(number)
    kept: set[int] = set()
    for answers in by_form.values():
        most = max(1, round(1.1 * min(map(len, answers.values()))))
        for numbers in answers.values():
            kept.update(rng.sample(numbers, min(len(numbers), most)))
    return [question for number, question in enumerate(asked) if number in kept]


def questions(seed: int, split: str, clips: int) -> list[Question]:
    """All of a split: a pure function of its arguments; clip i does not depend on `clips`."""
    scenes = [scene(random.Random(f"long/{seed}/{split}/{i}"), f"long{seed}-{split}-{i:04d}") for i in range(clips)]
    rng = random.Random(f"long/{seed}/{split}/questions")
    return balanced([question for one in scenes for question in ask(one, rng)], rng)


def draw(job: tuple[Scene, Path]) -> None:
    from mirasol_cli.datasets.demo_render import render

    one, path = job
    if not path.exists():
        render(one, path)


def main() -> None:
    from mirasol_cli.files import write_jsonl
    from mirasol_cli.recipe import data_root

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=240, help="training clips; the test split has a third as many")
    parser.add_argument("--seed", type=int, default=0, help="another world")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    root = data_root("demo-long")
    (root / "videos").mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    scenes: dict[str, Scene] = {}
    for split, clips in (("train", args.clips), ("test", max(1, args.clips // 3))):
        for number, question in enumerate(questions(args.seed, split, clips)):
            one = scenes.setdefault(question.scene.name, question.scene)
            row = {"video": f"videos/{one.name}.mp4", "split": split, "id": f"{one.name}-{number}", "type": question.type}
            rows.append({**row, "question": question.question, "answer": question.answer})
    with ProcessPoolExecutor(args.workers) as pool:
        for done, _ in enumerate(pool.map(draw, [(one, root / "videos" / f"{one.name}.mp4") for one in scenes.values()]), 1):
            print(f"\r{done} of {len(scenes)} clips", end="", flush=True)
    print()
    write_jsonl(root / "long.jsonl", rows)
    for chunks in (4, 16, 64):
        print(f"next: mirasol prepare {root / 'long.jsonl'} --recipe recipes/ablations/long-{chunks}-ttm.yaml")


if __name__ == "__main__":
    main()
