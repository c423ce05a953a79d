"""What strangers have on disk, through `prepare` and through `ask`: the same outcome and the same words in both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirasol_cli.config.schema import EvalRecipe
from mirasol_cli.errors import MediaError
from mirasol_cli.inference.answerer import Answerer
from mirasol_cli.inference.session import Model
from mirasol_cli.media import decode_pool
from mirasol_cli.prepare.command import prepare
from mirasol_cli.shards.reader import ShardFolder, ShardSplit
from tests.evaluation.tiny import tiny_model, tiny_vocabulary
from tests.inference.test_command import HerePool
from tests.media.fake_decoding import write_recipe
from tests.media.made_clips import clicks, regular, write_clip
from tests.media.test_broken_inputs import EXPECTED, make

NOT_THERE = ("folder", "pipe", "link to nowhere", "missing")
"""For `prepare` these are missing files; `ask` says of each what it is."""


def half(path: Path) -> None:
    options = {"movflags": "faststart"}
    whole = write_clip(path, regular(250, 25), keyframe_every=10, mux_options=options, audio=clicks([5.0], 10.0)).read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


USABLE: dict[str, Callable[[Path], Any]] = {
    "one frame": lambda path: write_clip(path, [0.0]),
    "half": half,
    "short sound": lambda path: write_clip(path, regular(50, 25), audio=clicks([0.3], 0.8)),
    "late sound": lambda path: write_clip(path, regular(50, 25), audio=clicks([0.3], 0.8), audio_start_s=1.0),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("broken") / "videos"
    folder.mkdir()
    paths = {name: make(folder, name) for name in EXPECTED}
    for name, write in USABLE.items():
        paths[name] = folder / f"{name}.mp4"
        write(paths[name])
    return paths


def prepared(files: dict[str, Path], out: Path, **options: Any) -> tuple[dict[str, Any], ShardSplit]:
    rows = [{"video": path.name, "caption": name} for name, path in files.items()]
    (out.parent / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"root": files["one frame"].parent, "recipe": str(write_recipe(out.parent)), "workers": 2, "max_failed": 100.0}
    summary = prepare(str(out.parent / "all.jsonl"), out=out, say=lambda line: None, **settings, **options)
    return summary["splits"]["train"], ShardFolder(out).split("train")


def test_prepare_lists_each_with_its_reason(files: dict[str, Path], tmp_path: Path) -> None:
    before = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    counts, split = prepared(files, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/train/failures.jsonl").read_text().splitlines()]
    reasons = {line["video"]: line["reason"] for line in lines}
    half_reason = reasons.pop("half.mp4")
    assert half_reason.startswith("truncated: decoded 3")
    assert reasons == {files[name].name: reason for name, reason in EXPECTED.items() if name not in NOT_THERE}
    assert (counts["missing"], counts["failed"], counts["kept"]) == (len(NOT_THERE), len(EXPECTED) - len(NOT_THERE) + 1, 3)
    assert {name: path.read_bytes() for name, path in files.items() if path.is_file()} == before, "originals are never touched"

    media = {split.clips[clip]["video"]: split.media(clip) for clip in split.kept}
    assert media["one frame.mp4"]["frame_valid"].flatten().tolist() == [1] + [0] * 7
    short, late = media["short sound.mp4"]["mel_valid"].bool(), media["late sound.mp4"]["mel_valid"].bool()
    assert short[0].any()
    assert not short[1].any()
    assert not late[0][:-1].any()  # the coder begins 21 ms early
    assert late[1].any()


def test_prepare_keeps_what_it_is_told_to_keep_and_marks_it(files: dict[str, Path], tmp_path: Path) -> None:
    some = {name: files[name] for name in ("one frame", "half", "sound only", "html")}
    counts, split = prepared(some, tmp_path / "out", keep_truncated=True, allow_audio_only=True)
    assert (counts["kept"], counts["failed"]) == (3, 1)
    media = {split.clips[clip]["video"]: split.media(clip) for clip in split.kept}
    assert media["half.mp4"]["frame_valid"].flatten().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert not media["sound only.mp4"]["frame_valid"].any()
    assert media["sound only.mp4"]["mel_valid"].any()


def test_ask_says_the_same(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "DecodePool", HerePool)
    model = Model(Answerer(tiny_model(), tiny_vocabulary(), EvalRecipe(max_tokens=2)), Path("tiny"))
    instead = {"folder": "is a folder", "pipe": "not a regular file", "link to nowhere": "does not exist", "missing": "does not exist"}
    for name, reason in {**EXPECTED, "half": "truncated: decoded 3"}.items():
        with pytest.raises(MediaError) as caught:
            model.ask(files[name], "what is it")
        assert caught.value.exit_code == 4
        assert instead.get(name, reason) in caught.value.message
        assert str(files[name]) in caught.value.message
        assert "\n" not in caught.value.message
        hint = caught.value.hint or ""
        assert "--keep-truncated" not in hint, "ask has no such option"
        assert "--allow-audio-only" not in hint
        assert str(files[name]) not in hint, "no file is meant by its own name"
    for name in ("one frame", "short sound", "late sound"):
        assert model.ask(files[name], "what is it").answer is not None
    assert model.open(files["half"], end_s=3.0).seconds == pytest.approx(3.0, abs=0.1)
