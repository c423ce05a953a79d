"""The demo world: deterministic, balanced, and true to what it renders."""

from collections import Counter, defaultdict

import av
import numpy as np
import pytest

from mirasol_cli.datasets.demo_render import SAMPLE_RATE_HZ, draw, play, render
from mirasol_cli.datasets.demo_world import HELD_OUT_LOOKS, HELD_OUT_ORDERS, INSTRUMENTS, Question, Scene, Sight, Sound, questions, scenes


def by_form(asked: list[Question]) -> dict[str, list[Question]]:
    forms: dict[str, list[Question]] = defaultdict(list)
    for question in asked:
        forms[question.form].append(question)
    return forms


@pytest.fixture(scope="module")
def train() -> list[Question]:
    return questions(0, "train", scenes(0, "train", 1200))


def test_a_scene_does_not_depend_on_how_many_there_are() -> None:
    assert scenes(3, "train", 40)[:10] == scenes(3, "train", 10)
    assert scenes(3, "train", 10) != scenes(4, "train", 10)
    assert questions(3, "val", scenes(3, "val", 40)) == questions(3, "val", scenes(3, "val", 40))


def test_every_kind_of_need_is_asked_for(train: list[Question]) -> None:
    counts = Counter(question.type for question in train)
    assert set(counts) == {"picture", "sound", "both", "order", "count", "long", "context"}
    assert min(counts.values()) > 200


def test_no_answer_of_a_form_is_much_commoner_than_another(train: list[Question]) -> None:
    for form, asked in by_form(train).items():
        answers = Counter(question.answer for question in asked)
        assert max(answers.values()) <= 1.1 * min(answers.values()) + 1, (form, answers)


def test_the_words_of_a_question_do_not_tell_its_answer(train: list[Question]) -> None:
    test = by_form(questions(0, "test", scenes(0, "test", 600)))
    for form, asked in by_form(train).items():
        seen: dict[str, Counter] = defaultdict(Counter)
        for question in asked:
            seen[question.question][question.answer] += 1
        guessed = [seen[q.question].most_common(1)[0][0] == q.answer for q in test[form] if q.question in seen]
        majority = max(Counter(q.answer for q in test[form]).values()) / len(test[form])
        assert np.mean(guessed) <= majority + 0.05, form


def test_held_out_combinations_are_seen_in_the_test_split_only() -> None:
    def looks_and_orders(world: list[Scene]) -> tuple[set, set]:
        looks = {(sight.instrument, sight.colour) for scene in world for sight in scene.sights}
        turns = [s for scene in world if scene.family == "melody" for s in zip(scene.sounds, scene.sounds[1:], strict=False)]
        return looks, {(a.instrument, b.instrument) for a, b in turns}

    for split in ("train", "val"):
        looks, orders = looks_and_orders(scenes(0, split, 400))
        assert not looks & HELD_OUT_LOOKS
        assert not orders & HELD_OUT_ORDERS
    looks, orders = looks_and_orders(scenes(0, "test", 400))
    assert looks >= HELD_OUT_LOOKS
    assert orders >= HELD_OUT_ORDERS


def scene(**changes: object) -> Scene:
    values: dict = {
        "name": "one", "family": "duo", "seconds": 4.0, "frames_per_second": 10, "noise": 0.2, "distractors": 0, "title": "live: horn",
        "sights": (Sight("drum", "red", 1, 0.5, 1.0),), "sounds": (Sound("flute", 0.25, 0.5, 1.0),),
    }  # fmt: skip
    return Scene(**(values | changes))


def test_the_picture_shows_the_instrument_from_its_entry_on() -> None:
    frames = draw(scene()).astype(int)
    red = ((frames[..., 0] > 150) & (frames[..., 1] < 90) & (frames[..., 2] < 90)).sum((1, 2))
    assert len(frames) == 40
    assert red[:20].max() == 0
    assert red[20:].min() > 200


def test_the_sound_is_where_the_scene_says() -> None:
    track = play(scene())
    power = (track.reshape(4, -1) ** 2).mean(1)
    assert len(track) == 4 * SAMPLE_RATE_HZ
    assert power[1] > 100 * power[[0, 2, 3]].max()
    assert power.min() > 0, "the track must never be digital silence"


def test_every_instrument_sounds_and_looks_different() -> None:
    spectra, shapes = [], []
    for name in INSTRUMENTS:
        one = scene(sights=(Sight(name, "red", 1, 0.0, 1.0),), sounds=(Sound(name, 0.0, 1.0, 1.0),))
        spectrum = np.abs(np.fft.rfft(play(one)[:SAMPLE_RATE_HZ]))[: SAMPLE_RATE_HZ // 2].reshape(80, -1).sum(1)
        spectra.append(spectrum / np.linalg.norm(spectrum))
        shapes.append(draw(one)[3, :, :, 0] > 150)
    for i in range(len(INSTRUMENTS)):
        for j in range(i):
            assert spectra[i] @ spectra[j] < 0.9, (INSTRUMENTS[i], INSTRUMENTS[j])
            assert (shapes[i] ^ shapes[j]).sum() > 0.2 * min(shapes[i].sum(), shapes[j].sum())


def test_the_file_is_real_and_the_same_each_time(tmp_path) -> None:
    for name in ("a.mp4", "b.mp4"):
        render(scene(), tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        assert file.streams.audio[0].codec_context.name == "aac"
        assert sum(1 for _ in file.decode(video=0)) == 40
