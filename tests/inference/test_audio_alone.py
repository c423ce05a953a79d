"""`ask` about files of sound alone, and models that were trained without video."""

from pathlib import Path

import pytest

from mirasol_cli.config.schema import EvalRecipe
from mirasol_cli.errors import MediaError
from mirasol_cli.inference.answerer import Answerer
from mirasol_cli.inference.session import Model
from tests.datasets.test_esc50 import tone
from tests.evaluation.tiny import tiny_model, tiny_vocabulary
from tests.inference.test_command import render


def model(*, video: bool) -> Model:
    return Model(Answerer(tiny_model(0), tiny_vocabulary(), EvalRecipe(max_tokens=4), video=video), Path("tiny"))


def test_a_model_of_sound_alone_hears_a_sound_file(tmp_path: Path) -> None:
    reply = model(video=False).ask(tone(tmp_path / "a.wav"), "what is it")
    assert reply.answer is not None
    assert not [words for words in reply.warnings if "frames" in words or "picture" in words]


def test_it_does_not_see_the_picture_of_a_video_and_says_so(tmp_path: Path) -> None:
    first, second = (render(tmp_path / f"{seed}.mp4", 0.5, seed=seed) for seed in (1, 2))  # the same tone, other pictures
    deaf, replies = model(video=True), [model(video=False).ask(path, "what is it") for path in (first, second)]
    assert replies[0].logprob == pytest.approx(replies[1].logprob, abs=1e-5)
    assert deaf.ask(first, "what is it").logprob != pytest.approx(deaf.ask(second, "what is it").logprob, abs=1e-5)
    assert "this model was trained without video; the video is ignored" in replies[0].warnings


def test_a_model_of_video_refuses_a_sound_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no video stream") as caught:
        model(video=True).ask(tone(tmp_path / "a.wav"), "what is it")
    assert caught.value.hint == "the file has audio only, and this model needs video"
