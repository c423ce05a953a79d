"""The checkpoint that ships, on clips rendered here: it answers, and says what its answers rest on."""

import io
import shutil
from pathlib import Path

import pytest

import mirasol_cli as mirasol
from mirasol_cli.demo.render import render
from mirasol_cli.demo.world import SCENE_NAME, Question, long_scenes, questions, scenes
from mirasol_cli.evaluation.metrics import exact
from mirasol_cli.inference.chat import NO_ANSWER
from mirasol_cli.inference.command import ask
from mirasol_cli.inference.session import CAVEAT, Model
from mirasol_cli.inference.video import SAMPLE_CLIP
from tests.evaluation.tiny import tiny_recipe, write_tiny_checkpoint

CHUNKS = 4


@pytest.fixture(scope="module")
def model() -> Model:
    return mirasol.load("demo")


@pytest.fixture(scope="module")
def world() -> list[Question]:
    return questions(0, "test", scenes(0, "test", 400))


def file_of(question: Question, folder: Path) -> Path:
    path = folder / f"{question.scene.name}.mp4"
    if not path.exists():
        render(question.scene, path)
    return path


def right_by_type(model: Model, asked: list[Question], folder: Path) -> dict[str, list[bool]]:
    """Questions about a clip follow one another in a world: each clip is encoded once."""
    right: dict[str, list[bool]] = {}
    for q in asked:
        answer = str(model.ask(file_of(q, folder), q.question, q.context))
        right.setdefault(q.type, []).append(exact(answer, [q.answer]))
    return right


def about_the_first(clips: int, world: list[Question]) -> list[Question]:
    return [q for q in world if int(q.scene.name.rpartition("-")[2]) < clips]


def test_it_answers_most_questions_about_clips_it_has_never_seen(model: Model, world: list[Question], tmp_path: Path) -> None:
    right = [one for part in right_by_type(model, about_the_first(8, world), tmp_path).values() for one in part]
    assert len(right) > 40
    assert sum(right) / len(right) > 0.8


@pytest.mark.slow
def test_every_type_comes_near_the_figures_of_its_card(model: Model, world: list[Question], tmp_path: Path) -> None:
    found = right_by_type(model, about_the_first(100, world), tmp_path)
    assert found.keys() == {"picture", "sound", "both", "order", "count", "long", "context"}
    for kind, right in found.items():
        assert sum(right) / len(right) > 0.75, kind


def weights(model: Model, asked: list[Question], folder: Path) -> list[tuple[bool, bool, float]]:
    """Per clip: sound weighs more than the picture; the heaviest chunk is one in which it plays; share of the weight in those."""
    found = []
    for question in asked:
        why = model.ask(file_of(question, folder), question.question, why=True).why
        assert why is not None
        (sound,) = question.scene.sounds
        playing = [t for t in range(CHUNKS) if sound.start < (t + 0.99) / CHUNKS and sound.end > (t + 0.01) / CHUNKS]
        positive = [max(value, 0.0) for value in why.chunks]
        share = sum(positive[t] for t in playing) / max(sum(positive), 1e-9)
        found.append((why.audio > why.video, positive.index(max(positive)) in playing, share))
    return found


def only_audio_tells(world: list[Question]) -> list[Question]:
    return [q for q in world if q.form == "playing" and len(q.scene.sounds) == 1]


def test_why_puts_the_weight_on_the_sound_and_on_the_chunks_in_which_it_plays(
    model: Model, world: list[Question], tmp_path: Path
) -> None:  # fmt: skip
    for sound_most, right_chunk, share in weights(model, only_audio_tells(world)[:5], tmp_path):
        assert sound_most
        assert right_chunk
        assert share > 0.5


@pytest.mark.slow
def test_why_over_a_hundred_clips(model: Model, world: list[Question], tmp_path: Path) -> None:
    found = weights(model, only_audio_tells(world)[:100], tmp_path)
    assert len(found) == 100
    assert sum(sound_most for sound_most, _, _ in found) >= 95
    assert sum(right_chunk for _, right_chunk, _ in found) >= 95
    assert sum(share for _, _, share in found) / 100 > 0.9


def test_no_answer_about_a_video_that_it_does_not_know_can_be_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything else, beside the answer on stdout, in `--json`, in the library, and nowhere for a clip of the demo world."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "holiday.mp4"
    shutil.copy(SAMPLE_CLIP, own)  # under this name nobody can tell that it is of the demo world
    said: list[str] = []
    out = io.StringIO()
    result = ask(str(own), "what is playing?", checkpoint="demo", device="cpu", why=True, stream=out, say=said.append)
    assert said[0] == f"note: {result['caveat']}"
    assert "not an answer" in result["caveat"]
    assert "--checkpoint" in result["caveat"]
    assert "own videos" in result["caveat"]
    assert out.getvalue().splitlines()[0] == f"{result['answer']}  ({NO_ANSWER})"
    assert result["warnings"][0] == result["caveat"]
    with pytest.warns(UserWarning, match="not an answer"):
        mirasol.load("demo").ask(own, "what is playing?")

    out = io.StringIO()
    known = ask("demo", "what is playing?", checkpoint="demo", device="cpu", stream=out)
    assert known["caveat"] is None
    assert out.getvalue() == f"{known['answer']}\n"


def test_a_run_on_the_demo_world_says_so_too(tmp_path: Path) -> None:
    for dataset, warned in (("demo", [CAVEAT]), ("demo-long", [CAVEAT]), ("msrvtt", [])):
        write_tiny_checkpoint(tmp_path / dataset, tiny_recipe(tmp_path, dataset))
        model = mirasol.load(tmp_path / dataset / "step-00000007", device="cpu")
        assert model.warnings_about(tmp_path / "holiday.mp4") == warned
        assert CAVEAT not in model.warnings_about(tmp_path / "minute0-test-00003.mp4")


def test_scenes_of_both_worlds_are_known_by_name() -> None:
    assert all(SCENE_NAME.fullmatch(scene.name) for world in (scenes, long_scenes) for scene in world(3, "train", 4))
    assert not SCENE_NAME.fullmatch("demo")
