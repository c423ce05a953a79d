"""`ask` on small rendered videos with a tiny random model."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import mirasol_cli
from mirasol_cli.batches.collate import media_batch
from mirasol_cli.batches.masking import without_audio
from mirasol_cli.checkpoints import runs as checkpoints_runs
from mirasol_cli.checkpoints.runs import choose_checkpoint
from mirasol_cli.config.schema import AugmentRecipe, EvalRecipe
from mirasol_cli.errors import CheckpointError, DataError, MediaError, UsageError
from mirasol_cli.inference import chat
from mirasol_cli.inference import video as inference_video
from mirasol_cli.inference.answerer import Answerer, Question
from mirasol_cli.inference.chat import HELP, Chat
from mirasol_cli.inference.command import ask
from mirasol_cli.inference.session import Model, load
from mirasol_cli.media import decode_pool
from mirasol_cli.media.clip import clip_samples
from mirasol_cli.media.decode import decode_clips
from mirasol_cli.media.probe import probe
from mirasol_cli.media.sampling import ClipRequest
from tests.evaluation.tiny import tiny_config, tiny_model, tiny_recipe, tiny_vocabulary, write_tiny_checkpoint
from tests.shards.samples import SMALL


def render(path: Path, seconds: float = 1.0, *, audio: str = "tone", seed: int = 0, frames_per_second: int = 12) -> Path:
    """A small real video: noise that drifts, with a tone, silence, or no sound stream."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=frames_per_second)
        video.width, video.height, video.pix_fmt = 48, 40, "yuv420p"
        audio_stream = file.add_stream("aac", rate=16000, layout="mono") if audio != "none" else None
        for _ in range(round(seconds * frames_per_second)):
            image = np.full((40, 48, 3), rng.integers(0, 255, 3), np.uint8)
            file.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(video.encode(None))
        if audio_stream is not None:
            wave = 0.3 * np.sin(2 * math.pi * 440 * np.arange(round(seconds * 16000)) / 16000) * (audio == "tone")
            for start in range(0, len(wave), 1024):
                part = av.AudioFrame.from_ndarray(wave[None, start : start + 1024].astype(np.float32), format="fltp", layout="mono")
                part.sample_rate, part.pts = 16000, start
                file.mux(audio_stream.encode(part))
            file.mux(audio_stream.encode(None))
    return path


REAL_POOL = decode_pool.DecodePool


class HerePool:
    """A DecodePool that decodes in this process: starting a child for every test takes long."""

    def __init__(self, _workers, geometry, *, allow_audio_only=False):
        self.geometry, self.options, self.waiting = geometry, {"allow_audio_only": allow_audio_only}, []

    def submit(self, job, path, requests):
        self.waiting.append((job, path, requests))

    def submit_probe(self, job, path):
        self.waiting.append((job, path, None))

    def results(self):
        while self.waiting:
            job, path, requests = self.waiting.pop(0)
            try:
                if requests is None:
                    yield job, [probe(path)]
                else:
                    yield job, list(clip_samples(decode_clips(path, requests, self.geometry, **self.options), self.geometry))
            except MediaError as error:
                yield job, [error]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(autouse=True)
def decoded_here(monkeypatch):
    monkeypatch.setattr(decode_pool, "DecodePool", HerePool)


@pytest.fixture
def clip(tmp_path):
    return render(tmp_path / "clip.mp4", 0.3, frames_per_second=40)


@pytest.fixture
def run(tmp_path):
    """A run folder with one checkpoint."""
    write_tiny_checkpoint(tmp_path / "runs" / "tiny" / "checkpoints", tiny_recipe(tmp_path))
    return tmp_path / "runs" / "tiny"


def model_of(combiner: str = "transformer", seed: int = 0) -> Model:
    answerer = Answerer(tiny_model(seed, combiner=combiner), tiny_vocabulary(), EvalRecipe(max_tokens=6))
    return Model(answerer, Path("tiny"))


def test_the_library_example(run, clip):
    model = mirasol_cli.load(run, device="cpu")
    reply = model.ask(str(clip), "what is it")
    assert str(reply) == reply.answer
    assert reply.logprob < 0
    assert reply.to_plain()["probability"] == pytest.approx(math.exp(reply.logprob), abs=1e-4)
    assert model.ask(clip, "what is it").answer == reply.answer
    assert model.ask(clip, "what is it", context="title: a red drum").logprob != reply.logprob


def test_json_has_the_fields_of_the_contract(run, clip):
    said = []
    result = ask(str(clip), "what is it", checkpoint=str(run), device="cpu", say=said.append)
    assert {"answer", "logprob", "video", "timings_s", "checkpoint", "warnings", "why"} <= result.keys()
    assert {"seconds", "frames", "audio"} <= result["video"].keys()
    assert result["video"]["frames"] == 8
    assert result["video"]["audio"] == "audible"
    assert result["video"]["seconds"] == pytest.approx(0.3, abs=0.05)
    assert result["why"] is None
    assert {"load", "decode", "encode", "answer"} <= result["timings_s"].keys()
    assert any("step-00000007" in line for line in said)  # it says which checkpoint
    json.dumps(result)


def test_ask_answers_as_eval_does(run, clip):
    """The same sample through the batch path and through the streaming path."""
    model = load(run, device="cpu")
    opened = model.open(clip)
    ((batch,),) = model.answerer.answers(model.answerer.encode([opened.sample]), [[Question("who plays")]])
    streamed = model.answer(opened, "who plays")
    assert streamed.answer == batch.text
    assert streamed.logprob == pytest.approx(batch.logprob, abs=1e-4)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_pieces_make_the_answer(run, clip):
    live, plain = Terminal(), io.StringIO()
    result = ask(str(clip), "what is it", checkpoint=str(run), device="cpu", stream=live)
    ask(str(clip), "what is it", checkpoint=str(run), device="cpu", stream=plain)
    beside = f"  (probability {math.exp(result['logprob']):.1g})"
    assert live.getvalue() == plain.getvalue().removesuffix("\n") + beside + "\n"
    assert plain.getvalue().rstrip("\n") == "".join(chat._printable(result["answer"])).rstrip("\n")


def test_control_characters_do_not_reach_the_terminal():
    assert chat._visible("red\x1b[2Jdrum") == "red\ufffd[2Jdrum"


def test_many_questions_from_a_file(run, clip, tmp_path):
    (tmp_path / "q.txt").write_text("what is it\n\nwho plays\n")
    out = io.StringIO()
    result = ask(str(clip), questions=tmp_path / "q.txt", checkpoint=str(run), device="cpu", stream=out)
    assert [one["question"] for one in result["answers"]] == ["what is it", "who plays"]
    assert out.getvalue().startswith("what is it  ")
    assert len(ask(str(clip), questions=tmp_path / "q.txt", limit=1, checkpoint=str(run), device="cpu")["answers"]) == 1
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UsageError, match="contains no question"):
        ask(str(clip), questions=tmp_path / "empty.txt", checkpoint=str(run), device="cpu")


def test_the_warnings_of_many_questions_are_those_of_all_of_them(run, tmp_path):
    few = render(tmp_path / "few.mp4", 0.4, frames_per_second=10)
    (tmp_path / "q.txt").write_text(f"what is it\n{'who plays ' * 40}\n{'who plays ' * 40}\n{'who plays ' * 41}\n")
    said = []
    result = ask(str(few), questions=tmp_path / "q.txt", checkpoint=str(run), device="cpu", say=said.append)
    frames, *cuts = result["warnings"]
    assert "only 4 distinct frames" in frames
    assert len(cuts) == 2
    assert all("tokens were cut" in cut for cut in cuts)
    assert [line for line in said if line.startswith("note: ")] == [f"note: {warning}" for warning in result["warnings"]]


@pytest.mark.parametrize(
    ("video", "error", "says"),
    [
        ("https://example.org/a.mp4", UsageError, "is a URL"),
        ("nothing.mp4", MediaError, "'nothing.mp4' does not exist"),
        (".", MediaError, "is a folder"),
        ("picture.png", MediaError, "still image"),
        ("page.mp4", MediaError, "'page.mp4' cannot be read: not a media file"),
        ("empty.mp4", MediaError, "empty file"),
    ],
)
def test_what_is_no_video_gets_one_helpful_line(tmp_path, monkeypatch, run, video, error, says):
    monkeypatch.chdir(tmp_path)
    Path("picture.png").write_bytes(b"x")
    Path("page.mp4").write_text("<html>not found</html>")
    Path("empty.mp4").touch()
    with pytest.raises(error, match=says) as caught:
        ask(video, "what is it", checkpoint=str(run), device="cpu")
    assert caught.value.exit_code in (2, 4)
    assert caught.value.hint or "cannot be read" in caught.value.message


def test_a_near_name_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("holiday.mp4").touch()
    with pytest.raises(MediaError) as caught:
        inference_video.find_video("holidy.mp4")
    assert "holiday.mp4" in caught.value.hint


def test_the_word_demo_means_a_file_of_that_name_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference_video, "SAMPLE_CLIP", tmp_path / "sample.mp4")
    with pytest.raises(DataError, match="no sample clip"):
        inference_video.find_video("demo")
    (tmp_path / "sample.mp4").touch()
    assert inference_video.find_video("demo") == tmp_path / "sample.mp4"
    Path("demo").touch()
    assert inference_video.find_video("demo") == Path("demo")


@pytest.mark.parametrize(("audio", "says"), [("none", "no audio"), ("silent", "silent")])
def test_warnings_about_sound(tmp_path, audio, says):
    reply = model_of().ask(render(tmp_path / "c.mp4", 0.3, audio=audio, frames_per_second=40), "what is it")
    assert any(says in warning for warning in reply.warnings)
    assert reply.to_plain()["video"]["audio"] == audio


def test_a_cut_context_and_a_lack_of_frames_are_told(tmp_path):
    model = model_of()
    few = render(tmp_path / "few.mp4", 0.4, frames_per_second=10)
    assert any("only 4 distinct frames" in warning for warning in model.ask(few, "what is it").warnings)
    assert any("tokens were cut" in warning for warning in model.ask(few, "what is it", context="a long title " * 40).warnings)


def test_a_span_is_looked_at_alone(tmp_path):
    video = render(tmp_path / "v.mp4", 3.0)
    model = model_of()
    whole, part = model.ask(video, "what is it"), model.ask(video, "what is it", start_s=1.0, end_s=1.3)
    assert part.clip.start_s == pytest.approx(1.0)
    assert part.clip.seconds == pytest.approx(0.3)
    assert part.logprob != whole.logprob
    with pytest.raises(UsageError, match="must be before"):
        model.ask(video, "what is it", start_s=2.0, end_s=1.0)
    with pytest.raises(MediaError, match="outside the video"):
        model.ask(video, "what is it", start_s=50.0)


def test_the_video_is_encoded_once_for_several_questions(clip):
    model = model_of()
    first = model.open(clip)
    assert model.open(clip) is first
    assert model.open(clip, 0.0, 0.2) is not first


def test_a_long_video_goes_through_in_pieces_that_equal_all_at_once(tmp_path):
    """TTM: two pieces of the video with memory handed on equal one clip of twice as many chunks."""
    usual = inference_video.usual_seconds(SMALL)
    assert usual == pytest.approx(2 * 16 * 0.01)
    video = render(tmp_path / "long.mp4", 0.6, frames_per_second=40)
    model = model_of("ttm")
    opened = model.open(video)
    assert opened.chunks == 4
    assert opened.frames == 16
    assert "with a memory" in opened.sampled

    double = replace(SMALL, frames=16, chunks=4)
    twice = Answerer(tiny_model(geometry=double, combiner="ttm"), tiny_vocabulary(), EvalRecipe(max_tokens=6))
    twice.model.latent.transformer.window = 2
    (sample,) = clip_samples(decode_clips(video, [ClipRequest()], double), double)
    media = media_batch([sample], double)
    encoded = twice.model.encode(media)
    last_two = replace(encoded, latents_BTMD=encoded.latents_BTMD[:, 2:])
    with torch.inference_mode():
        expected = list(twice.stream(twice.model.text_kv(last_two), Question("what is it")))[-1]
    assert model.answer(opened, "what is it").logprob == pytest.approx(expected.logprob, abs=1e-3)


def test_what_counts_as_long_comes_from_the_training_clips(tmp_path):
    video = render(tmp_path / "v.mp4", 0.6, frames_per_second=40)
    model = model_of("ttm")
    model.usual_clip_s = 0.6
    assert model.open(video).chunks == 2
    model.usual_clip_s = 0.2
    assert model.open(video, 0.0).chunks == 6


def test_the_beginning_of_a_long_video_reaches_the_answer(tmp_path):
    """Only the first of five pieces differs; memory must carry it to the end."""
    rng_a, rng_b = render(tmp_path / "a.mp4", 1.6, audio="none"), tmp_path / "b.mp4"
    frames = []
    with av.open(str(rng_a)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(str(rng_b), "w") as file:
        video = file.add_stream("mpeg4", rate=12)
        video.width, video.height, video.pix_fmt = 48, 40, "yuv420p"
        for number, image in enumerate(frames):
            shown = 255 - image if number < 3 else image
            file.mux(video.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        file.mux(video.encode(None))
    model = model_of("ttm")
    a, b = model.open(rng_a), model.open(rng_b)
    assert a.chunks == 10
    assert a.audio == "none"
    assert model.answer(a, "what is it").logprob != model.answer(b, "what is it").logprob


def test_the_cache_of_a_long_video_does_not_grow(tmp_path, monkeypatch):
    sizes = []
    original = Answerer.encode_further

    def watched(self, sample, state):
        text_kv, state = original(self, sample, state)
        sizes.append(sum(tensor.numel() for pair in state.latent.layers for tensor in pair))
        return text_kv, state

    monkeypatch.setattr(Answerer, "encode_further", watched)
    model = model_of("ttm")
    model.open(render(tmp_path / "long.mp4", 2.0, audio="none"))
    assert len(sizes) == 7  # pieces of 0.29 s
    assert len(set(sizes[1:])) == 1
    assert model.answerer.model.latent.transformer.window == 0  # put back


class BadPieces(HerePool):
    """A pool in which some pieces of a long video cannot be decoded."""

    bad: frozenset[int] = frozenset()

    def results(self):
        for job, result in super().results():
            yield job, [MediaError(f"piece {job} is broken")] if job in self.bad else result


@pytest.mark.parametrize(("bad", "at"), [({0}, "0"), ({2}, "2"), ({3}, "3"), ({0, 1, 3}, "0")])
def test_pieces_that_cannot_be_decoded_cost_a_warning(tmp_path, monkeypatch, bad, at):
    video = render(tmp_path / "long.mp4", 4.0)
    monkeypatch.setattr(decode_pool, "DecodePool", BadPieces)
    monkeypatch.setattr(BadPieces, "bad", frozenset(bad))
    model = model_of("ttm")
    model.usual_clip_s = 1.1
    opened = model.open(video)
    assert opened.chunks == 8
    assert opened.warnings == [f"{len(bad)} of 4 pieces of 1 s could not be decoded and are skipped, the first at {at} s"]
    assert model.answer(opened, "what is it").warnings == opened.warnings


def test_after_a_first_piece_that_is_lost_the_rest_is_read_as_if_alone(tmp_path, monkeypatch):
    video = render(tmp_path / "long.mp4", 4.0)
    whole, rest, lacking = (model_of("ttm") for _ in range(3))
    for model in (whole, rest, lacking):
        model.usual_clip_s = 1.1
    expected = rest.ask(video, "what is it", start_s=1.0).logprob
    all_read = whole.ask(video, "what is it").logprob
    monkeypatch.setattr(decode_pool, "DecodePool", BadPieces)
    monkeypatch.setattr(BadPieces, "bad", frozenset({0}))
    assert lacking.ask(video, "what is it").logprob == pytest.approx(expected, abs=1e-4)
    assert abs(all_read - expected) > 1e-3


def test_a_long_video_of_which_no_piece_can_be_decoded_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_pool, "DecodePool", BadPieces)
    monkeypatch.setattr(BadPieces, "bad", frozenset(range(4)))
    model = model_of("ttm")
    model.usual_clip_s = 1.1
    with pytest.raises(MediaError, match=r"long\.mp4' cannot be read: piece 0 is broken"):
        model.open(render(tmp_path / "long.mp4", 4.0))


def test_a_clip_hardly_longer_than_those_of_training_is_looked_at_whole(tmp_path):
    video, model = render(tmp_path / "v.mp4", 1.0), model_of("ttm")
    model.usual_clip_s = 0.97
    assert model.open(video).chunks == 2
    model.usual_clip_s = 0.94
    assert model.open(video, 0.0).chunks == 4


def test_a_video_without_ttm_says_how_thinly_it_was_sampled_from_twice_the_usual_length_on(tmp_path):
    video, model = render(tmp_path / "long.mp4", 2.0), model_of()
    (warning,) = model.open(video).warnings
    assert warning == "only 8 frames were sampled, one every 0.25 s; use --start and --end to look at a part in more detail"
    model.usual_clip_s = 0.9  # of its training clips
    (warning,) = model.open(video, 0.0).warnings
    assert "one every 0.25 s, and the model was trained on clips of up to 0.9 s; use" in warning
    model.usual_clip_s = 1.1  # longer than those, but not much: nothing to worry about
    assert model.open(video, 0.0, 2.0).warnings == []


def test_why_is_the_fall_of_the_log_probability(clip, tmp_path):
    model = model_of()
    reply = model.ask(clip, "what is it", why=True)
    assert len(reply.why.chunks) == 2
    ((whole,),) = model.answerer.likelihoods(reply.clip.text_kv, [[Question("what is it")]], [[[reply.answer]]])
    deaf = model.answerer.encode([without_audio(reply.clip.sample)])
    ((without,),) = model.answerer.likelihoods(deaf, [[Question("what is it")]], [[[reply.answer]]])
    assert reply.why.audio == pytest.approx(whole[0] - without[0], abs=1e-3)
    assert reply.why.audio != 0
    assert {"chunks", "audio", "video"} <= reply.to_plain()["why"].keys()


def only(sample: dict, shown: set[int]) -> dict:
    """The sample with sound and picture of the chunks in `shown` alone."""
    kept = {name: value for name, value in sample.items() if name in ("span", "frame_times", "audio_state")}
    for name in sample.keys() - kept.keys():
        value = np.array(sample[name])
        for chunk in set(range(len(value))) - shown:
            value[chunk] = 0
        kept[name] = value
    return kept


def test_why_of_a_chunk_is_the_mean_of_what_it_takes_away_and_what_it_brings(clip):
    model = model_of(seed=3)
    model.answerer = Answerer(tiny_model(3, replace(SMALL, frames=12, chunks=3)), tiny_vocabulary(), EvalRecipe(max_tokens=6))
    reply = model.ask(clip, "what is it", why=True)

    def likelihood(shown: set[int]) -> float:
        text_kv = model.answerer.encode([only(reply.clip.sample, shown)])
        return model.answerer.likelihoods(text_kv, [[Question("what is it")]], [[[reply.answer]]])[0][0][0]

    everything = {0, 1, 2}
    takes = [likelihood(everything) - likelihood(everything - {chunk}) for chunk in range(3)]
    brings = [likelihood({chunk}) - likelihood(set()) for chunk in range(3)]
    assert reply.why.chunks == pytest.approx([(take + bring) / 2 for take, bring in zip(takes, brings, strict=True)], abs=2e-3)
    assert all(abs(take - bring) > 0.02 for take, bring in zip(takes, brings, strict=True))  # so that neither alone would do


def test_why_of_a_model_that_was_trained_without_masks_says_so(clip, tmp_path):
    recipe = tiny_recipe(tmp_path)
    for name, drop_modality, drop_chunks in (("none", 0.0, 0.0), ("some", 0.0, 0.1)):
        augment = AugmentRecipe(drop_modality=drop_modality, drop_chunks=drop_chunks)
        write_tiny_checkpoint(tmp_path / name, replace(recipe, train=replace(recipe.train, augment=augment)))
    none, some = (load(tmp_path / name / "step-00000007", device="cpu") for name in ("none", "some"))
    (warning,) = none.ask(clip, "what is it", why=True).warnings
    assert "was trained without masks" in warning
    assert none.ask(clip, "what is it").warnings == []
    assert some.ask(clip, "what is it", why=True).warnings == []


def test_why_without_sound_gives_sound_no_weight(tmp_path):
    reply = model_of().ask(render(tmp_path / "c.mp4", 0.3, audio="none", frames_per_second=40), "what is it", why=True)
    assert reply.why.audio == pytest.approx(0, abs=1e-4)
    assert reply.why.video != 0


def test_why_is_drawn_in_the_terminal_and_as_a_picture(run, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    result = ask(str(clip), "what $is^ it", checkpoint=str(run), device="cpu", why=True, stream=out)
    why = result["why"]
    ends = [*why["chunk_starts_s"][1:], why["end_s"]]
    rows = [("audio", why["audio"]), ("video", why["video"])]
    rows += [(f"{start:.1f}-{end:.1f} s", value) for start, end, value in zip(why["chunk_starts_s"], ends, why["chunks"], strict=True)]
    shown = [re.match(r" *(\S.*?) +([+-][\d.]+) ", line) for line in out.getvalue().splitlines()]
    assert [match.groups() for match in shown if match] == [(name, f"{value:+.2f}") for name, value in rows]
    assert Path(result["why"]["image_file"]) == Path("clip-why.png")
    assert Path("clip-why.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_why_draws_any_script_without_a_warning(tmp_path, recwarn):
    from mirasol_cli.inference.attribution import Why
    from mirasol_cli.inference.attribution_picture import draw

    why = Why(chunks=[0.5, -0.2], audio=0.1, video=0.3, starts_s=[0.0, 1.0], end_s=2.0)
    assert draw(why, tmp_path / "a.png", "谁在演奏 🥁  鼓").read_bytes().startswith(b"\x89PNG")
    assert not recwarn.list


def test_why_says_where_nothing_of_the_clip_counts_and_draws_no_bars_of_nothing(clip, monkeypatch):
    from mirasol_cli.inference import session as inference_session
    from mirasol_cli.inference.attribution import LEAST, UNUSED, Why, time_line

    def why(change: float) -> Why:
        return Why(chunks=[0.0, change], audio=0.001, video=-0.002, starts_s=[0.0, 1.0], end_s=2.0)

    for change, told in ((0.9 * LEAST, [UNUSED]), (-2 * LEAST, [])):
        monkeypatch.setattr(inference_session, "measure", lambda *_, change=change: why(change))
        assert model_of().ask(clip, "what is it", why=True).warnings == told
    bars = list(time_line(why(0.9 * LEAST)).columns[2].cells)
    assert [len(bar) for bar in bars] == [1, 1, 1, 3]
    assert str(bars[0]) == "·"


@pytest.mark.parametrize("wrong", [{"question": None}, {"question": 123}, {"context": None}, {"start_s": -1.0}, {"end_s": math.nan}])
def test_a_library_call_with_a_wrong_value_says_which(clip, wrong):
    with pytest.raises(UsageError, match=r"must be text|is not a valid time"):
        model_of().ask(**{"video": clip, "question": "what is it", **wrong})


def test_why_of_a_long_video_keeps_the_answer_and_says_what_to_do(tmp_path):
    model, video = model_of("ttm"), render(tmp_path / "long.mp4", 1.0)
    reply = model.ask(video, "what is it", why=True)
    assert reply.answer == model.ask(video, "what is it").answer
    assert reply.why is None
    assert reply.to_plain()["why"] is None
    (warning,) = reply.warnings
    assert "processed in pieces" in warning
    assert "--start and --end" in warning


def test_why_of_a_long_video_is_told_by_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_checkpoint(
        tmp_path / "runs" / "ttm" / "checkpoints", replace(tiny_recipe(tmp_path), model=tiny_config("ttm")), combiner="ttm"
    )
    out, said = io.StringIO(), []
    video = render(tmp_path / "long.mp4", 1.0)
    result = ask(str(video), "what is it", checkpoint="runs/ttm", device="cpu", why=True, stream=out, say=said.append)
    assert result["why"] is None
    assert out.getvalue().strip()
    assert sum("processed in pieces" in line for line in said) == 1
    assert not list(tmp_path.glob("*.png"))


def test_the_newest_finished_run_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints_runs, "demo_checkpoint", lambda: Path("the-demo"))
    recipe = tiny_recipe(tmp_path)
    runs = tmp_path / "runs"
    assert choose_checkpoint(None, runs)[0] == "the-demo"
    for name, status, ended in (("old", "finished", "2026-01-01"), ("new", "finished", "2026-03-01"), ("broken", "failed", "2026-04-01")):
        write_tiny_checkpoint(runs / name / "checkpoints", recipe)
        (runs / name / "run.json").write_text(json.dumps({"status": status, "ended": ended}))
    (runs / "bare").mkdir()
    (runs / "bare" / "run.json").write_text(json.dumps({"status": "finished", "ended": "2026-05-01"}))  # it kept no checkpoint
    chosen, reason = choose_checkpoint(None, runs)
    assert Path(chosen).parent.parent == runs / "new"
    assert "newest finished run" in reason
    assert choose_checkpoint("named", runs) == ("named", "as given")


def test_a_run_that_was_only_pretrained_is_named_as_such(tmp_path):
    runs, recipe = tmp_path / "runs", tiny_recipe(tmp_path)

    def finished(name: str, stage: str, ended: str) -> None:
        write_tiny_checkpoint(runs / name / "checkpoints", recipe)
        (runs / name / "run.json").write_text(json.dumps({"status": "finished", "ended": ended, "stage": stage}))

    finished("before", "pretrain", "2026-03-01")
    finished("after", "pretrain", "2026-04-01")
    chosen, reason = choose_checkpoint(None, runs)
    assert Path(chosen).parent.parent == runs / "after"
    assert "only pretrained" in reason
    finished("tuned", "finetune", "2026-05-01")
    chosen, reason = choose_checkpoint(None, runs)
    assert Path(chosen).parent.parent == runs / "tuned"
    assert reason == f"of the newest finished run, '{runs / 'tuned'}'"


def test_without_any_checkpoint_it_says_how_to_train_one(tmp_path, monkeypatch, clip):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mirasol_cli.checkpoints.runs.DEMO_CHECKPOINT", tmp_path / "none")
    with pytest.raises(CheckpointError) as caught:
        ask(str(clip), "what is it", device="cpu")
    assert "mirasol finetune demo" in caught.value.hint


def test_no_question_without_a_terminal_is_refused(clip, run):
    with pytest.raises(UsageError, match="no question"):
        ask(str(clip), checkpoint=str(run), device="cpu", stream=io.StringIO())
    with pytest.raises(UsageError, match="question is empty"):
        ask(str(clip), "  ", checkpoint=str(run), device="cpu")


def session(clip, lines, monkeypatch, model=None):
    """A session fed with lines; an exception class among them is raised as if the key was pressed."""
    model = model or model_of()
    out, said = io.StringIO(), []
    waiting = iter(lines)

    def typed(_prompt):
        line = next(waiting, EOFError)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    one = Chat(model, model.open(clip), "", out, said.append)
    return one, one.run(), out.getvalue(), said


def test_a_session_answers_keeps_the_clip_and_takes_commands(clip, tmp_path, monkeypatch):
    other = render(tmp_path / "other.mp4", 0.3, seed=5, frames_per_second=40)
    lines = ["what is it", "/context a title", "what is it", "/clear", "what is it", f"/video {other}", "what is it", "/video nothing.mp4",
             "/wrong", "/help", "/quit", "not read"]  # fmt: skip
    one, result, out, said = session(clip, lines, monkeypatch)
    first, with_context, again, elsewhere = result["answers"]
    assert first == again
    assert with_context["logprob"] != first["logprob"]
    assert elsewhere["logprob"] != first["logprob"]
    assert one.clip.path == str(other)  # the wrong name left the clip as it was
    assert out.count("\n") == 4
    assert any("the file 'nothing.mp4' does not exist" in line for line in said)
    assert any("unknown command '/wrong'" in line for line in said)
    assert said[-1] == HELP  # that of /help, with no complaint about it


def test_a_session_tells_what_was_cut_and_what_was_said_of_the_video_only_once(tmp_path, monkeypatch):
    few = render(tmp_path / "few.mp4", 0.4, frames_per_second=10)
    lines = ["what is it", f"/context {'a long title ' * 40}", "what is it", "what is it", "/clear", "what is it", f"/video {few}"]
    _, result, _, said = session(few, lines, monkeypatch)
    assert len(result["answers"]) == 4
    assert sum("tokens were cut" in line for line in said) == 2
    assert sum("distinct frames" in line for line in said) == 1  # at /video; `ask` itself tells it of the first


def test_a_session_says_how_far_a_long_video_was_read(tmp_path, monkeypatch):
    video, model = render(tmp_path / "long.mp4", 2.1), model_of("ttm")
    model.usual_clip_s = 0.1
    _, _, _, said = session(render(tmp_path / "short.mp4", 0.1, frames_per_second=80), [f"/video {video}"], monkeypatch, model)
    assert any(re.fullmatch(r"read 20 of 2\d pieces", line) for line in said)


def test_one_interrupt_stops_the_answer_two_leave(clip, monkeypatch):
    lines = [KeyboardInterrupt, "what is it", KeyboardInterrupt, KeyboardInterrupt, "never asked"]
    _, result, _, said = session(clip, lines, monkeypatch)
    assert len(result["answers"]) == 1
    assert sum("again to leave" in line for line in said) == 2

    model = model_of()
    opened = model.open(clip)
    stopped = Chat(model, opened, "", io.StringIO(), lambda _: None)

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mirasol_cli.inference.chat.print_answer", interrupt)
    waiting = iter(["what is it", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(waiting))
    assert stopped.run() == {"answers": []}


def test_importing_the_package_loads_no_torch():
    code = "import sys, mirasol_cli; mirasol_cli.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_decoding_is_supervised(clip, monkeypatch):
    """The one test here with the real child process."""
    monkeypatch.setattr(decode_pool, "DecodePool", REAL_POOL)
    model = model_of()
    assert model.open(clip).audio == "audible"
    clip.write_bytes(clip.read_bytes()[:200])
    with pytest.raises(MediaError, match="cannot be read"):
        model.open(clip)
