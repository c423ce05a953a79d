"""The demo world in short clips: what it asks for, and that picture, sound and file are what the scene says."""

from collections import Counter

import av
import numpy as np

from mirasol_cli.demo.render import SAMPLE_RATE_HZ, draw, play, render
from mirasol_cli.demo.world import INSTRUMENTS, Scene, Sight, Sound, questions, scenes


def test_every_kind_of_need_is_asked_for() -> None:
    counts = Counter(question.type for question in questions(0, "train", scenes(0, "train", 1200)))
    assert set(counts) == {"picture", "sound", "both", "order", "count", "long", "context"}
    assert min(counts.values()) > 200


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


def test_the_file_is_real(tmp_path) -> None:
    render(scene(), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        assert file.streams.audio[0].codec_context.name == "aac"
        assert sum(1 for _ in file.decode(video=0)) == 40


def test_a_scene_has_the_same_bytes_whatever_was_rendered_before_it(tmp_path) -> None:
    world = scenes(0, "train", 2000)[:24]

    def rendered(order: list[Scene]) -> dict[str, bytes]:
        for one in order:
            render(one, tmp_path / f"{one.name}.mp4")
        return {one.name: (tmp_path / f"{one.name}.mp4").read_bytes() for one in world}

    assert rendered(world) == rendered(world[::-1])
