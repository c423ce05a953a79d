"""The whole of `mirasol eval` on made-up shards and a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mirasol_cli.batches.collate import media_batch
from mirasol_cli.checkpoints.runs import checkpoint_folder
from mirasol_cli.cli.output import metrics_table
from mirasol_cli.config.reader import dump_recipe
from mirasol_cli.config.schema import EvalRecipe
from mirasol_cli.errors import CheckpointError, DataError, ShardError, UsageError
from mirasol_cli.evaluation import predict
from mirasol_cli.evaluation.command import evaluate
from mirasol_cli.evaluation.job import Options
from mirasol_cli.evaluation.predict import Plan, write_predictions
from mirasol_cli.evaluation.protocols import protocol_of
from mirasol_cli.evaluation.results import follows_media
from mirasol_cli.evaluation.subsets import SUBSETS, Subset, choose
from mirasol_cli.evaluation.validation import validation_figures
from mirasol_cli.files import read_jsonl, write_jsonl
from mirasol_cli.inference.answerer import Answerer, Question
from mirasol_cli.runtime.distributed import World
from mirasol_cli.runtime.folder_lock import folder_lock
from mirasol_cli.shards.reader import ShardFolder
from mirasol_cli.text.prompt import encode_prompt
from tests.evaluation.tiny import tiny_model, tiny_recipe, tiny_vocabulary, write_texts_split, write_tiny_checkpoint

VIDEOS = [f"v{clip}.mp4" for clip in range(11)]
MISSING = (4,)


def texts(answers=("yes", "no")):
    """Two or three questions per clip; the annotation interleaves the clips."""
    return [
        {"id": f"{clip}-{q}", "clip": clip, "question": question, "answer": answers[(clip + q) % 2], "type": f"t{q}"}
        for q, question in enumerate(("what is it", "who plays", "describe the clip"))
        for clip in range(11)
        if q < 2 or clip % 2
    ]


@pytest.fixture
def world(tmp_path):
    """A recipe with its shards and its one checkpoint."""
    recipe = tiny_recipe(tmp_path)
    write_texts_split(tmp_path / "shards" / "test", texts(), VIDEOS, missing=MISSING)
    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", recipe)
    return recipe


def run_folder(recipe):
    return Path(recipe.run.dir) / "eval" / "test"


def test_predictions_hold_every_question_once_in_clip_order_and_missing_clips_count_as_wrong(world):
    results = evaluate(world, Options(report=False))
    rows = read_jsonl(run_folder(world) / "predictions.jsonl")
    assert [row["id"] for row in rows] == [t["id"] for t in sorted(texts(), key=lambda t: t["clip"])]
    assert [row["clip"] for row in rows if row.get("missing")] == [4, 4]
    assert results["n"] == len(rows) == 27
    assert results["missing"] == 2
    assert results["missing_videos"] == ["v4.mp4"]
    share = sum(row["correct"] for row in rows) / 27
    assert results["metrics"]["exact_match"] == pytest.approx(share)
    assert {"dataset", "split", "by_type", "intervals", "protocol"} <= results.keys()
    assert json.loads(json.dumps(results)) == json.loads((run_folder(world) / "results.json").read_text())
    assert {"id", "clip", "video", "question", "type", "answer", "prediction", "correct", "correct_normalised", "logprob"} <= rows[0].keys()


def test_gold_answers_that_the_model_gives_are_counted_as_right(world, tmp_path):
    evaluate(world, Options(report=False))
    given = read_jsonl(run_folder(world) / "predictions.jsonl")
    relabelled = tiny_recipe(tmp_path / "b")
    as_answered = [{"id": r["id"], "clip": r["clip"], "question": r["question"], "answer": r["prediction"] or "x"} for r in given]
    write_texts_split(tmp_path / "b" / "shards" / "test", as_answered, VIDEOS, missing=MISSING)
    write_tiny_checkpoint(tmp_path / "b" / "run" / "checkpoints", relabelled)
    figures = evaluate(relabelled, Options(report=False))["metrics"]
    answered = sum(bool(r["prediction"].strip()) for r in given)
    assert answered > 20  # the random model does say something
    assert figures["exact_match"] == pytest.approx(answered / 27)
    assert figures["exact_match_present"] == pytest.approx(answered / 25)


def as_if_killed(path, content):
    """The predictions file and its origin as a process leaves them that is killed on the way."""
    path.write_bytes(content)
    origin = path.with_name("predictions.origin.json")
    unfinished = {key: value for key, value in json.loads(origin.read_text()).items() if key != "sha256"}
    origin.write_text(json.dumps(unfinished))


def test_two_evaluations_and_an_interrupted_one_make_the_same_bytes(world, tmp_path):
    evaluate(world, Options(report=False))
    path = run_folder(world) / "predictions.jsonl"
    whole = path.read_bytes()
    path.unlink()
    evaluate(world, Options(report=False))
    assert path.read_bytes() == whole

    for kept in (0, 100, len(whole) // 2, len(whole) - 3, len(whole)):  # killed anywhere, also in the middle of a line
        as_if_killed(path, whole[:kept])
        evaluate(world, Options(report=False))
        assert path.read_bytes() == whole


def test_an_interrupted_evaluation_does_not_answer_again_what_it_has(world, monkeypatch):
    evaluate(world, Options(report=False))
    path = run_folder(world) / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    as_if_killed(path, b"".join(lines[:-1]))
    done = []
    original = predict._predict_batch

    def counted(plan, answerer, clips, shown):
        done.append(len(clips))
        return original(plan, answerer, clips, shown)

    monkeypatch.setattr(predict, "_predict_batch", counted)
    evaluate(world, Options(report=False))
    assert done == [2]  # the last of four batches: clips 9 and 10


@pytest.mark.parametrize("decode", ["sample", "beam"])
def test_sampling_and_beam_search_repeat_exactly(world, decode):
    recipe = replace(world, eval=replace(world.eval, decode=decode, beams=2))
    evaluate(recipe, Options(report=False))
    path = run_folder(world).with_name(f"test-{decode}" + "-beams-2" * (decode == "beam")) / "predictions.jsonl"
    first = path.read_bytes()
    path.unlink()
    evaluate(recipe, Options(report=False))
    assert path.read_bytes() == first


@pytest.mark.parametrize("decode", ["greedy", "sample"])
def test_the_batch_size_changes_no_answer(world, decode):
    folder = run_folder(world).with_name("test" if decode == "greedy" else "test-sample")
    world = replace(world, eval=replace(world.eval, decode=decode))
    evaluate(world, Options(report=False))
    rows = read_jsonl(folder / "predictions.jsonl")
    evaluate(replace(world, eval=replace(world.eval, batch_size=1)), Options(report=False))
    alone = read_jsonl(folder / "predictions.jsonl")
    assert [r["prediction"] for r in rows] == [r["prediction"] for r in alone]
    logprobs, logprobs_alone = ([row["logprob"] for row in some if not row.get("missing")] for some in (rows, alone))
    assert logprobs == pytest.approx(logprobs_alone, abs=1e-3)


def test_several_processes_make_the_file_of_one(world, tmp_path):
    evaluate(world, Options(report=False))
    whole = (run_folder(world) / "predictions.jsonl").read_bytes()
    split = ShardFolder(tmp_path / "shards").split("test")
    plan = Plan.of(split, "qa", protocol_of("manifest", "qa"))
    answerer = Answerer(tiny_model(), tiny_vocabulary(), world.eval)
    folder = tmp_path / "parts"
    folder.mkdir()
    for rank in range(3):
        write_predictions(folder, plan, answerer, {}, rank=rank, size=3)
    predict.finish_predictions(folder, plan, world.eval.batch_size, 3, {})
    assert (folder / "predictions.jsonl").read_bytes() == whole
    assert sorted(entry.name for entry in folder.iterdir()) == ["predictions.jsonl", "predictions.origin.json"]


@pytest.mark.slow
def test_two_real_processes_give_the_figures_of_one(world, tmp_path):
    evaluate(world, Options(report=False))
    whole = (run_folder(world) / "predictions.jsonl").read_bytes()
    figures = json.loads((run_folder(world) / "results.json").read_text())
    (run_folder(world) / "predictions.jsonl").unlink()
    (tmp_path / "tiny.yaml").write_text(dump_recipe(world))
    command = [sys.executable, "-m", "mirasol_cli", "eval", str(tmp_path / "tiny.yaml"), "--nproc", "2", "--control", "no-audio"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exact_match ") == 1
    assert (run_folder(world) / "predictions.jsonl").read_bytes() == whole
    again = json.loads((run_folder(world) / "results.json").read_text())
    assert again["metrics"] == figures["metrics"]
    assert (run_folder(world) / "no-audio" / "results.json").is_file()


def test_only_the_rows_of_the_plan_are_scored(world):
    evaluate(world, Options(report=False))
    path = run_folder(world) / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    plan = Plan.of(ShardFolder(Path(world.data.shards)).split("test"), "qa", protocol_of("manifest", "qa"))
    assert len(predict.read_finished(path.parent, plan)) == 27
    for wrong in (lines[:-1], [*lines, lines[0]], [lines[1], *lines[1:]], [lines[1], lines[0], *lines[2:]]):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(DataError, match="does not answer exactly the 27 questions"):
            predict.read_finished(path.parent, plan)


def test_rows_that_another_process_wrote_in_between_are_never_scored(world, monkeypatch):
    path = run_folder(world) / "predictions.jsonl"
    original = predict._predict_batch

    def disturbed(plan, answerer, clips, shown):
        with open(path, "ab") as file:
            file.write(b'{"id": "0-0", "prediction": "of another checkpoint"}\n')
        return original(plan, answerer, clips, shown)

    monkeypatch.setattr(predict, "_predict_batch", disturbed)
    with pytest.raises(DataError, match="does not answer exactly"):
        evaluate(world, Options(report=False))
    assert not (run_folder(world) / "results.json").exists()
    monkeypatch.undo()
    assert evaluate(world, Options(report=False))["n"] == 27  # what is right of the file is kept, the rest is made anew


def test_a_finished_file_that_was_edited_is_not_taken_for_the_models_own(world):
    evaluate(world, Options(report=False))
    path = run_folder(world) / "predictions.jsonl"
    path.write_text(path.read_text().replace('"prediction": "', '"prediction": "HACK ', 1))
    with pytest.raises(DataError, match="is not as it was written"):
        evaluate(world, Options(report=False))
    assert "HACK" in path.read_text()  # nothing is lost
    assert evaluate(world, Options(predictions=path, report=False))["n"] == 27


def test_a_second_evaluation_of_the_same_folder_is_refused_before_it_touches_anything(world):
    evaluate(world, Options(report=False))
    before = {path.name: path.read_bytes() for path in run_folder(world).iterdir()}
    given = run_folder(world) / "predictions.jsonl"
    with folder_lock(run_folder(world)):
        child = "import sys; from mirasol_cli.cli.app import main; main()"
        command = [sys.executable, "-c", child, "eval", str(Path(world.run.dir) / "recipe.yaml"), "--json"]
        (Path(world.run.dir) / "recipe.yaml").write_text(dump_recipe(world))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"is in use by process {os.getpid()} on" in json.loads(done.stdout)["error"]["message"]
    assert {path.name: path.read_bytes() for path in run_folder(world).iterdir()} == before
    with folder_lock(run_folder(world).with_name("test-predictions")), pytest.raises(UsageError, match="is in use by process"):
        evaluate(world, Options(predictions=given, report=False))


def written(world):
    return {path.parent.name for path in (Path(world.run.dir) / "eval").glob("*/results.json")}


def test_what_differs_from_the_runs_own_evaluation_goes_to_a_folder_of_its_own(world, tmp_path):
    evaluate(world, Options(report=False))
    whole = (run_folder(world) / "results.json").read_bytes()
    other = write_tiny_checkpoint(tmp_path / "other" / "checkpoints", world, seed=1)
    texts_as_captions = [{**text, "id": f"c{text['id']}"} for text in texts()]
    write_texts_split(tmp_path / "captions" / "test", texts_as_captions, VIDEOS, task="caption")
    beams = replace(world.eval, decode="beam", beams=3)
    for recipe, options, folder in (
        (world, Options(limit=2, report=False), "test-limit-2"),
        (world, Options(checkpoint=str(tmp_path / "other"), report=False), f"test-other-{other.name}"),
        (replace(world, eval=beams), Options(report=False), "test-beam-beams-3"),
        (replace(world, eval=replace(world.eval, max_tokens=2)), Options(limit=1, report=False), "test-max-tokens-2-limit-1"),
        (replace(world, data=replace(world.data, audio=False)), Options(limit=1, report=False), "test-without-audio-limit-1"),
        (
            replace(world, data=replace(world.data, task="caption", shards=str(tmp_path / "captions"))), Options(report=False),
            f"test-caption-{tmp_path.name}-captions",
        ),
    ):  # fmt: skip
        before = written(world)
        evaluate(recipe, options)
        assert written(world) - before == {folder}
    assert (run_folder(world) / "results.json").read_bytes() == whole
    evaluate(world, Options(checkpoint="latest", report=False))  # which is the best one, too
    evaluate(world, Options(checkpoint=str(tmp_path / "run"), report=False))
    assert len(written(world)) == 7


def test_results_of_another_checkpoint_are_replaced_with_their_controls_and_that_is_said(world, tmp_path):
    evaluate(world, Options(controls=("no-audio",)))
    assert (run_folder(world) / "no-audio" / "results.json").is_file()
    said = []
    again = evaluate(world, Options(report=False), say=said.append)  # the same again: what is finished stays
    assert again["controls"].keys() == {"none", "no-audio"}
    assert "control no-audio: answers already exist" in said
    assert not [line for line in said if "replaced" in line]

    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", world, seed=3)  # training went on
    evaluate(world, Options(report=False), say=said.append)
    assert [line for line in said if "are replaced: they are of another checkpoint" in line]
    assert not (run_folder(world) / "no-audio").exists()
    assert not (run_folder(world) / "report.html").exists()


def test_two_files_of_predictions_have_folders_of_their_own(world, tmp_path):
    evaluate(world, Options(report=False))
    rows = read_jsonl(run_folder(world) / "predictions.jsonl")
    for name in ("ours", "theirs"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        evaluate(world, Options(predictions=tmp_path / f"{name}.jsonl", report=False))
    assert written(world) == {"test", "test-ours", "test-theirs"}
    (tmp_path / "new").mkdir()
    write_jsonl(tmp_path / "new" / "ours.jsonl", rows)
    said = []
    evaluate(world, Options(predictions=tmp_path / "new" / "ours.jsonl", report=False), say=said.append)
    assert any(f"are replaced: they are of '{tmp_path / 'ours.jsonl'}'" in line for line in said)


def test_what_is_cut_or_can_never_be_answered_is_counted(tmp_path):
    recipe = tiny_recipe(tmp_path, max_tokens=8)
    long = " ".join(["drum"] * 200)
    rows = [{"id": f"{c}", "clip": c, "question": "what is it", "answer": "yes"} for c in range(8)]
    rows[0] |= {"question": long}
    rows[1] |= {"context": long}
    rows[2] |= {"answer": "a red drum a blue bell"}
    rows[3] |= {"answer": long, "references": ["no"]}
    rows[4] |= {"answer": long}
    rows[5] |= {"answer": "a red drum"}  # 8 tokens, just as many as may be given
    write_texts_split(tmp_path / "shards" / "test", rows, VIDEOS[:8])
    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", recipe)
    said = []
    notes = evaluate(recipe, Options(report=False), say=said.append)["notes"]
    assert "1 of 8 questions are cut: they are longer than the model reads (model.text.max_question=128)" in notes
    assert "1 of 8 contexts are cut: they are longer than the model reads (model.text.max_context=24)" in notes
    (never,) = [note for note in notes if "cannot be generated" in note]
    assert never.startswith("2 of 8 answers cannot be generated: they are longer than eval.max_tokens=8 (the first is that to '2')")
    assert [said.count(note) for note in notes] == [1] * len(notes)


def test_a_choice_is_scored_by_its_likelihood_per_token(tmp_path):
    """Summed likelihoods prefer short choices: the published multiple-choice figures divide by the tokens."""
    recipe = tiny_recipe(tmp_path, dataset="nextqa", task="mc")
    choices = ["no", "a red drum", "who plays a blue bell", "yes yes yes yes yes yes", "describe the clip"]
    rows = [{"id": f"{c}_1", "clip": c, "question": q, "answer": "no", "choices": choices} for c, q in enumerate(["what is it"] * 8)]
    write_texts_split(tmp_path / "shards" / "test", rows, VIDEOS[:8], task="mc")
    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", recipe)
    evaluate(recipe, Options(report=False))
    answers = read_jsonl(run_folder(recipe) / "predictions.jsonl")
    vocabulary, summed_would_differ = tiny_vocabulary(), 0
    model, split = tiny_model(), ShardFolder(tmp_path / "shards").split("test")
    for row in answers:
        expected, summed = [], []
        for choice in choices:
            log_likelihood, tokens = teacher_forced(model, vocabulary, split.media(row["clip"]), row["question"], choice)
            expected.append(log_likelihood / tokens)
            summed.append(log_likelihood)
        assert row["scores"] == pytest.approx(expected, abs=2e-3)
        assert row["prediction"] == choices[expected.index(max(expected))]
        summed_would_differ += summed.index(max(summed)) != expected.index(max(expected))
    assert summed_would_differ


def test_a_candidate_is_scored_as_answers_are_trained_without_outer_blanks():
    answerer = Answerer(tiny_model(), tiny_vocabulary(), EvalRecipe())
    ((plain, spaced),) = answerer.likelihoods(None, [[Question("what is it")]], [[["yes", " yes "]]])[0]
    assert plain == spaced


def teacher_forced(model, vocabulary, sample, question, answer):
    """Log-likelihood of the answer with its end, straight from the logits, and how many tokens that is."""
    target = [*vocabulary.encode(answer), vocabulary.eos]
    prompt = encode_prompt(vocabulary, question, "", model.config.text).ids
    with torch.inference_mode():
        memory = model.text_kv(model.encode(media_batch([sample], model.geometry)))
        logits = model.text(torch.tensor([[[*prompt, *target[:-1]]]]), None, memory)
    logprob = logits[0, 0, -len(target) :].log_softmax(dim=-1)
    return sum(float(logprob[position, token]) for position, token in enumerate(target)), len(target)


def test_limit_takes_the_first_clips_and_is_marked(world):
    results = evaluate(world, Options(limit=3, report=False))
    assert results["limited"] is True
    assert results["n"] == 7
    assert {row["clip"] for row in read_jsonl(run_folder(world).with_name("test-limit-3") / "predictions.jsonl")} == {0, 1, 2}


def test_minitrain_is_always_the_same_part_of_train_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(SUBSETS, "minitrain", replace(SUBSETS["minitrain"], clips=4))
    recipe = tiny_recipe(tmp_path)
    write_texts_split(tmp_path / "shards" / "train", texts(), VIDEOS, missing=MISSING)
    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", recipe)
    results = evaluate(recipe, Options(split="minitrain", report=False))
    assert results["split"] == "minitrain"
    assert results["subset"] == {"of": "train", "clips": 4, "of_clips": 11, "purpose": "to gauge memorization"}
    rows = read_jsonl(tmp_path / "run" / "eval" / "minitrain" / "predictions.jsonl")
    chosen = {row["video"] for row in rows}
    assert len(chosen) == 4

    # other clips that come or go exchange no more than what has to be exchanged, and a media file that is lost changes nothing
    later = tiny_recipe(tmp_path / "later")
    more = [*texts(), *({"id": f"n{c}", "clip": c, "question": "what is it", "answer": "yes"} for c in (11, 12))]
    write_texts_split(tmp_path / "later" / "shards" / "train", more, [*VIDEOS, "w0.mp4", "w1.mp4"], missing=(0, 1, 2, 3))
    write_tiny_checkpoint(tmp_path / "later" / "run" / "checkpoints", later)
    evaluate(later, Options(split="minitrain", report=False))
    again = {row["video"] for row in read_jsonl(tmp_path / "later" / "run" / "eval" / "minitrain" / "predictions.jsonl")}
    assert again - {"w0.mp4", "w1.mp4"} <= chosen


def test_a_larger_sample_holds_the_smaller_one():
    keys = [f"v{i}" for i in range(100)]
    assert choose(keys, 10) < choose(reversed(keys), 30)
    assert len(choose(keys, 500)) == 100


def test_what_share_of_the_split_is_at_hand_is_said(tmp_path):
    recipe = tiny_recipe(tmp_path, dataset="activitynet")
    write_texts_split(tmp_path / "shards" / "test", texts(), VIDEOS, missing=MISSING)
    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", recipe)
    said = []
    results = evaluate(recipe, Options(), say=said.append)
    assert results["prepared"] == {"clips": 11, "present": 10, "share": 10 / 11, "questions": 27, "published_questions": 8000}
    assert "10 of 11 clips of split 'test' are available (90.9%)" in said
    warning = "the annotation at hand has 27 questions where the published split 'test' has 8,000"
    assert any(warning in note for note in results["notes"])
    page = (run_folder(recipe) / "report.html").read_text()
    assert "the annotation at hand has 27 questions" in page
    assert "10 of 11 clips" in page


def test_every_control_has_its_folder_and_one_line_of_the_table(world):
    results = evaluate(world, Options(controls=("all",), report=False))
    names = {"no-audio", "no-video", "text-only", "shuffle-chunks", "swap-media", "own-chunk", "last-chunk"}
    assert results["controls"].keys() == names | {"none"}
    for name in names:
        own = json.loads((run_folder(world) / name / "results.json").read_text())
        assert own["protocol"]["control"] == name
    changed = {name: results["controls"][name]["changed_answers"] for name in names}
    assert changed["text-only"] > 0.3
    assert changed["swap-media"] > 0.3
    assert results["controls"]["none"]["changed_answers"] == 0.0
    types = {name: part["exact_match"] for name, part in results["by_type"].items()}
    assert len(types) > 1
    assert results["controls"]["none"]["by_type"] == pytest.approx(types)
    table = metrics_table(results).splitlines()
    assert max(map(len, table)) <= 80
    first, second = (number for number, line in enumerate(table) if line.split()[:2] == ["exact", "match"])
    assert table[first].split()[2:] == ["no-", "no-", "text-", "shuffle-", "swap-"]
    assert table[first + 1].split() == ["all", "audio", "video", "only", "chunks", "media"]
    assert (table[second].split()[2:], table[second + 1].split()) == (["own-", "last-"], ["chunk", "chunk"])
    figures = table[first + 2 : first + 2 + len(types)]
    assert {line.split()[0]: float(line.split()[1]) for line in figures} == pytest.approx(types, abs=1e-4)
    logprobs = {
        name: [row["logprob"] for row in read_jsonl(run_folder(world) / name / "predictions.jsonl")]
        for name in (".", "own-chunk", "last-chunk")
    }
    assert len(set(map(tuple, logprobs.values()))) == 3  # each cut reaches the model
    # with neither sound nor picture, all clips look alike: the same question gets the same answer
    blind = [row for row in read_jsonl(run_folder(world) / "text-only" / "predictions.jsonl") if not row.get("missing")]
    assert len({row["prediction"] for row in blind if row["question"] == "what is it"}) == 1
    swapped = read_jsonl(run_folder(world) / "swap-media" / "predictions.jsonl")
    plain = {(row["clip"], row["question"]): row["prediction"] for row in read_jsonl(run_folder(world) / "predictions.jsonl")}
    for row in swapped:
        if not row.get("missing"):
            assert row["shown"] != row["clip"]
            if row["question"] == "what is it":
                assert row["prediction"] == plain[row["shown"], row["question"]]


def test_a_control_of_what_the_model_lacks_is_refused(world):
    with pytest.raises(UsageError, match=r"no-memory: the Combiner 'transformer' .* carries nothing"):
        evaluate(world, Options(controls=("no-memory",)))


def test_follows_media_counts_answers_of_the_clip_that_was_shown():
    rows = [
        {"clip": 0, "shown": 1, "question": "describe the clip", "answer": "a dog", "prediction": "a cat", "correct": False},
        {"clip": 1, "shown": 2, "question": "describe the clip", "answer": "a cat", "prediction": "a cat", "correct": True},
        {"clip": 2, "shown": 0, "question": "describe the clip", "answer": "a cow", "prediction": "a dog", "correct": False},
        {"clip": 2, "shown": 0, "question": "how many", "answer": "two", "prediction": "two", "correct": True},  # clip 0 is not asked this
    ]
    assert follows_media(rows, protocol_of("manifest", "qa")) == {"n": 3, "follows": 2, "keeps": 1, "share": pytest.approx(2 / 3)}


def test_multiple_choice_picks_the_likeliest_choice(tmp_path):
    recipe = tiny_recipe(tmp_path, dataset="nextqa", task="mc")
    choices = ["yes", "no", "a red drum", "a blue bell", "who"]
    rows = [
        {"id": f"{100 + c}_{q}", "clip": c, "question": "what is it", "answer": choices[c % 5], "type": ("CW", "TP")[q], "choices": choices}
        for c in range(11)
        for q in range(2)
    ]
    write_texts_split(tmp_path / "shards" / "test", rows, VIDEOS, task="mc", missing=MISSING)
    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", recipe)
    results = evaluate(recipe, Options(report=False))
    predictions = read_jsonl(run_folder(recipe) / "predictions.jsonl")
    for row in predictions:
        if not row.get("missing"):
            assert len(row["scores"]) == 5
            assert row["prediction"] == choices[row["scores"].index(max(row["scores"]))]
    assert results["by_type"].keys() == {"CW", "TN"}
    assert results["groups"].keys() == {"C", "T"}
    submitted = json.loads((run_folder(recipe) / "submission.json").read_text())
    assert submitted["100_0"] == {"prediction": choices.index(predictions[0]["prediction"]), "answer": 0}
    assert submitted["104_1"]["prediction"] == -1  # the clip is missing


def test_class_sets_generate_names_and_rank_all_of_them(tmp_path):
    recipe = tiny_recipe(tmp_path, dataset="vggsound", task="label")
    labels = ("class one", "class two", "yes")
    rows = [{"id": f"c{c}", "clip": c, "question": "what is it", "answer": labels[c % 3]} for c in range(11)]
    write_texts_split(tmp_path / "shards" / "test", rows, VIDEOS, task="label", missing=MISSING, labels=labels)
    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", recipe)
    figures = evaluate(recipe, Options(report=False))["metrics"]
    assert {"valid_class", "closed_top1", "closed_top5", "mAP", "mAUC", "mean_per_class"} <= figures.keys()
    predictions = read_jsonl(run_folder(recipe) / "predictions.jsonl")
    best = [labels[row["scores"].index(max(row["scores"]))] for row in predictions if not row.get("missing")]
    gold = [row["answer"] for row in predictions if not row.get("missing")]
    assert figures["closed_top1"] == pytest.approx(sum(b == g for b, g in zip(best, gold, strict=True)) / 11)
    # a stored file gives the same figures without the model
    again = evaluate(recipe, Options(predictions=run_folder(recipe) / "predictions.jsonl", report=False))
    assert again["metrics"] == pytest.approx(figures)


def test_a_split_without_labels_is_predicted_but_not_scored(tmp_path):
    recipe = tiny_recipe(tmp_path, dataset="activitynet")
    rows = [{"id": f"v_{c}_1", "clip": c, "question": "what is it", "answer": None} for c in range(11)]
    write_texts_split(tmp_path / "shards" / "test", rows, VIDEOS)
    write_tiny_checkpoint(tmp_path / "run" / "checkpoints", recipe)
    results = evaluate(recipe, Options(controls=("no-audio",)))
    assert results["metrics"] == {}
    assert any("without labels" in note for note in results["notes"])
    submitted = json.loads((run_folder(recipe) / "submission.json").read_text())
    assert submitted[0]["question_id"] == "v_0_1"
    assert len(submitted) == 11


def test_scoring_a_file_needs_neither_model_nor_shards(tmp_path):
    rows = [
        {"id": str(i), "clip": i, "video": f"v{i}", "question": "q", "type": "t", "answer": "yes", "prediction": ("no", "yes")[i % 2]}
        for i in range(20)
    ]
    write_jsonl(tmp_path / "given.jsonl", rows)
    recipe = tiny_recipe(tmp_path)
    results = evaluate(recipe, Options(predictions=tmp_path / "given.jsonl", report=False))
    assert results["metrics"]["exact_match"] == 0.5
    rows[0]["prediction"] = "yes"
    write_jsonl(tmp_path / "other.jsonl", rows)
    compared = evaluate(recipe, Options(predictions=tmp_path / "other.jsonl", baseline=tmp_path / "given.jsonl", report=False))
    assert compared["comparison"]["exact_match"]["won"] == 1
    assert compared["comparison"]["exact_match"]["difference"] == pytest.approx(0.05)


def test_a_file_that_leaves_questions_out_or_invents_them(world, tmp_path):
    evaluate(world, Options(report=False))
    rows = read_jsonl(run_folder(world) / "predictions.jsonl")
    write_jsonl(tmp_path / "part.jsonl", rows[:10])
    results = evaluate(world, Options(predictions=tmp_path / "part.jsonl", report=False))
    assert results["n"] == 27
    assert (results["missing"], results["unanswered"]) == (2, 15)  # the missing clip is not among the first ten rows
    table = metrics_table(results)
    assert "27 questions, 2 with missing clips, 15 without a prediction" in table
    assert results["counts"]["exact_match_answered"] == 10
    write_jsonl(tmp_path / "alien.jsonl", [{**rows[0], "id": "alien"}])
    with pytest.raises(DataError, match="'alien'"):
        evaluate(world, Options(predictions=tmp_path / "alien.jsonl", report=False))


def test_a_file_about_the_whole_split_scores_any_part_of_it(world, tmp_path, monkeypatch):
    monkeypatch.setitem(SUBSETS, "mini", Subset("test", 4, "to test"))
    evaluate(world, Options(report=False))
    whole = tmp_path / "whole.jsonl"
    write_jsonl(whole, read_jsonl(run_folder(world) / "predictions.jsonl"))
    first = evaluate(world, Options(predictions=whole, limit=3, report=False))
    assert (first["n"], first["missing"]) == (len([t for t in texts() if t["clip"] < 3]), 0)
    mini = evaluate(world, Options(predictions=whole, split="mini", report=False))
    assert mini["subset"]["clips"] == 4
    write_jsonl(tmp_path / "alien.jsonl", [{**read_jsonl(whole)[0], "id": "alien"}])
    with pytest.raises(DataError, match="'alien'"):
        evaluate(world, Options(predictions=tmp_path / "alien.jsonl", limit=3, report=False))


def test_an_official_file_about_the_whole_split_compares_with_any_part_of_it(tmp_path):
    recipe = tiny_recipe(tmp_path, dataset="activitynet")
    write_texts_split(tmp_path / "shards" / "test", texts(), VIDEOS)
    official = tmp_path / "theirs.json"
    official.write_text(json.dumps([{"question_id": text["id"], "answer": text["answer"]} for text in texts()]))
    results = evaluate(recipe, Options(predictions=official, baseline=official, limit=3, report=False))
    assert results["metrics"]["exact_match"] == 1.0
    assert (results["comparison"]["left_out"], results["comparison"]["exact_match"]["n"]) == (0, results["n"])


def test_a_recipe_that_disagrees_with_the_shards_stops_before_any_work(world):
    other = replace(world, clip=replace(world.clip, frames=16))
    with pytest.raises(ShardError, match=r"clip\.frames: 16 here, 8 there"):
        evaluate(other, Options())


def test_more_chunks_at_evaluation_load_the_same_weights(world, tmp_path):
    longer = replace(world, clip=replace(world.clip, frames=16, chunks=4), data=replace(world.data, shards=str(tmp_path / "long")))
    write_texts_split(tmp_path / "long" / "test", texts(), VIDEOS, geometry=longer.clip)
    assert evaluate(longer, Options(report=False))["protocol"]["chunks"] == 4
    tubes = replace(world.clip, size=48)
    other = replace(world, clip=replace(tubes, tubes=tubes.tubes[:1]), data=replace(world.data, shards=str(tmp_path / "tubes")))
    write_texts_split(tmp_path / "tubes" / "test", texts(), VIDEOS, geometry=other.clip)
    with pytest.raises(CheckpointError, match="trained on other clips"):
        evaluate(other, Options(report=False))


def test_what_cannot_be_evaluated_says_so(world, tmp_path):
    with pytest.raises(UsageError, match="unknown control 'mute'"):
        evaluate(world, Options(controls=("mute",)))
    with pytest.raises(UsageError) as caught:
        evaluate(world, Options(controls=("no-sound",)))
    assert caught.value.hint == "it was renamed to no-audio"
    with pytest.raises(ShardError, match="no split 'val'"):
        evaluate(world, Options(split="val"))
    with pytest.raises(UsageError, match="no name of a split"):
        evaluate(world, Options(split="../../x"))
    with pytest.raises(CheckpointError, match="nowhere"):
        checkpoint_folder(world, str(tmp_path / "nowhere"))


def test_validation_leaves_the_model_in_training_and_equals_the_evaluation_of_what_is_present(world, tmp_path):
    evaluate(world, Options(report=False))
    given = {row["id"]: row["prediction"] for row in read_jsonl(run_folder(world) / "predictions.jsonl") if not row.get("missing")}
    rows = [{**text, "answer": given.get(text["id"], "x") if text["clip"] % 3 else "no such"} for text in texts()]
    write_texts_split(tmp_path / "other" / "test", rows, VIDEOS, missing=MISSING)
    plan = Plan.of(ShardFolder(tmp_path / "other").split("test"), "qa", protocol_of("manifest", "qa"))
    model = tiny_model().train()
    alone = World(0, 1, torch.device("cpu"))
    figures = validation_figures(model, tiny_vocabulary(), plan, replace(world, eval=replace(world.eval, decode="sample")), alone)
    assert model.training
    right = sum(text["clip"] % 3 > 0 for text in texts() if text["clip"] not in MISSING)
    assert figures.pop("loss") > 0
    assert figures == {"n": 25, "exact_match": right / 25, "exact_match_normalised": right / 25}
