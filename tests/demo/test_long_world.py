"""The demo world in long clips: true answers, and sights that few chunks pass over and many chunks see."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np

from mirasol_cli.config.reader import load_recipe
from mirasol_cli.datasets.demo_long import WORLD
from mirasol_cli.demo.render import SAMPLE_RATE_HZ, draw, play
from mirasol_cli.demo.world import EVENT_S, FORMS, LONG_FRAME_RATES, LONG_SECONDS, Question, Scene, long_questions, long_scenes
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.sampling import sample_times
from mirasol_cli.media.tubes import cut_tubes
from mirasol_cli.training.resume import changed_keys


def geometry(chunks: int) -> ClipGeometry:
    return replace(load_recipe("demo-long").clip, frames=8 * chunks, chunks=chunks)


def test_as_many_clips_as_promised_and_questions_of_every_need_about_them() -> None:
    assert WORLD.sizes() == {"train": 400, "val": 40, "test": 100}
    asked = {
        split: Counter(q.type for q in long_questions(0, split, long_scenes(0, split, count))) for split, count in WORLD.sizes().items()
    }
    for counts in asked.values():
        assert set(counts) == {"picture", "sound", "both", "order", "count", "long", "next"}
    assert sum(asked["train"].values()) > 2000
    assert min(asked["test"].values()) >= 12


def test_events_are_short_and_one_at_a_time() -> None:
    for scene in long_scenes(0, "train", 200):
        assert scene.seconds == LONG_SECONDS
        assert scene.seconds * scene.frames_per_second >= 512
        for events in ([(s.enter, s.leave) for s in scene.sights], [(s.start, s.end) for s in scene.sounds]):
            assert events[0][0] > 0
            assert events[-1][1] < 1
            lengths = [(end - start) * scene.seconds for start, end in events]
            assert EVENT_S[0] - 1e-9 <= min(lengths) <= max(lengths) <= EVENT_S[1] + 1e-9
            assert all(before[1] < after[0] for before, after in pairwise(events))
    starts = [sight.enter for scene in long_scenes(0, "train", 400) for sight in scene.sights]
    assert np.histogram(starts, bins=4, range=(0, 1))[0].min() > 0.15 * len(starts), "events come at any time"


def right_answer(question: Question) -> str | None:
    """From the scene alone, in other words than the world's own; None for forms that are not checked here."""
    seen = sorted(question.scene.sights, key=lambda sight: sight.enter)
    order = [sound.instrument for sound in question.scene.sounds]
    words = question.question.rstrip("?").split()
    match question.form:
        case "seen-first" | "seen-last":
            return seen[0 if question.form == "seen-first" else -1].instrument
        case "heard-first" | "heard-last":
            return order[0 if question.form == "heard-first" else -1]
        case "played":
            return "yes" if words[-1] in order else "no"
        case "heard-before":
            return "yes" if order.index(words[2]) < order.index(words[-1]) else "no"
        case "heard-after":
            return order[order.index(words[-1]) + 1]
        case "ends":
            return "yes" if order[0] == order[-1] else "no"
        case "heard-next":
            place = next(place for place in range(1, len(order)) if order[place:] == order[:-place])  # the shortest period
            return order[len(order) % place]
        case "colour-heard":
            return next(sight.colour for sight in seen if sight.instrument == order[0])
    return None


def test_answers_are_true_to_the_scene() -> None:
    train = long_questions(0, "train", long_scenes(0, "train", 1200))
    checked = [question for question in train if right_answer(question) is not None]
    assert len({question.form for question in checked}) == 10
    for question in checked:
        assert question.answer == right_answer(question), question
        if question.form in ("heard-before", "heard-after"):
            order = [sound.instrument for sound in question.scene.sounds]
            assert order.count(question.question.rstrip("?").split()[-1]) == 1, "the question has one answer"
    assert {question.form for question in train} <= set(FORMS)


def test_a_round_goes_on_in_its_order_at_equal_distances() -> None:
    rounds = [scene for scene in long_scenes(0, "train", 300) if scene.family == "round"]
    assert len(rounds) == 100
    for scene in rounds:
        order = [sound.instrument for sound in scene.sounds]
        assert order == [order[turn % len(set(order))] for turn in range(len(order))]
        assert np.ptp(np.diff([sound.start for sound in scene.sounds])) < 1e-9
    assert {len(set(scene.heard)) for scene in rounds} == {2, 3}


def looks(chunks: int) -> np.ndarray:
    """Seconds of the frames that are seen whole: the first of each chunk."""
    return sample_times((0, LONG_SECONDS), 8 * chunks)[::8]


def test_few_chunks_pass_over_most_sights_and_many_chunks_over_none() -> None:
    sights = [(sight.enter * LONG_SECONDS, sight.leave * LONG_SECONDS) for scene in long_scenes(0, "test", 400) for sight in scene.sights]

    def share_seen(chunks: int) -> float:
        return float(np.mean([((start <= looks(chunks)) & (looks(chunks) < end)).any() for start, end in sights]))

    assert share_seen(4) < 0.25
    assert 0.6 < share_seen(16) < 0.9
    assert share_seen(64) == 1


def changed_tokens(scene: Scene, chunks: int, tube: int) -> int:
    """How many tokens of one tube kind are not what they are without any sight."""
    clip = geometry(chunks)
    empty = replace(scene, sights=tuple(replace(sight, enter=2.0, leave=2.0) for sight in scene.sights))
    times = sample_times((0, LONG_SECONDS), clip.frames)
    tokens = []
    for one in (scene, empty):
        frames = draw(one)[(times * one.frames_per_second).astype(int)][:, ::2, ::2]
        tokens.append(cut_tubes(frames.reshape(clip.chunks, 8, clip.size, clip.size, 3), clip)[tube].astype(int))
    return int((abs(tokens[0] - tokens[1]).max(-1) > 40).sum())


def test_the_tubes_that_cover_the_picture_look_when_the_test_above_says() -> None:
    scene = next(scene for scene in long_scenes(0, "test", 400) if len(scene.sights) == 1)
    between = looks(16)[5] + 0.3
    unseen = replace(scene, sights=(replace(scene.sights[0], enter=between / LONG_SECONDS, leave=(between + 2) / LONG_SECONDS),))
    whole_frame = len(geometry(16).tubes) - 1
    assert geometry(16).tubes[whole_frame].kernel == (1, 16, 16)
    assert changed_tokens(unseen, 4, whole_frame) == 0
    assert changed_tokens(unseen, 16, whole_frame) == 0
    assert changed_tokens(unseen, 64, whole_frame) >= 2


def test_the_track_plays_when_the_scene_says_and_is_never_digital_silence() -> None:
    scene = long_scenes(0, "train", 2)[1]
    assert scene.family == "many"
    track = play(scene)
    assert len(track) == LONG_SECONDS * SAMPLE_RATE_HZ
    playing = np.zeros(len(track), bool)
    for sound in scene.sounds:
        first, last = round(sound.start * len(track)), round(sound.end * len(track))
        playing[first:last] = True
        assert (track[first:last] ** 2).mean() > 50 * 0.005**2
    assert 0 < (track[~playing] ** 2).mean() < 2 * 0.005**2


def test_the_file_has_a_frame_for_each_that_64_chunks_ask_for() -> None:
    assert min(LONG_FRAME_RATES) * LONG_SECONDS >= geometry(64).frames


def test_the_recipe_goes_on_from_one_of_the_short_world() -> None:
    short, long = load_recipe("demo"), load_recipe("demo-long")
    assert long.model == short.model
    differing = {key for key in changed_keys(short, long) if not key.startswith("train.")}
    assert differing <= {"name", "run.dir", "data.dataset", "data.clips", "clip.frames", "clip.chunks"}
