"""`clip.views` from the video to the batch: rows of real decoding, read by clip and view, chosen by (seed, epoch, clip) in training."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mirasol_cli.batches import sources
from mirasol_cli.prepare.command import prepare
from mirasol_cli.shards.reader import ShardFolder
from mirasol_cli.training import data
from tests import synthetic
from tests.media.fake_decoding import write_recipe
from tests.media.made_clips import read_barcode, regular, write_clip

VIEWS, CLIPS = 3, 2


def test_views_from_video_to_batch(tmp_path: Path) -> None:
    rows = []
    for split in ("train", "test"):
        for number in range(CLIPS):
            write_clip(tmp_path / f"{split}{number}.mp4", regular(100, 10), keyframe_every=10)
            rows += [{"video": f"{split}{number}.mp4", "question": f"which {k}", "answer": str(k), "split": split} for k in range(2)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = str(write_recipe(tmp_path, views=VIEWS))
    out = tmp_path / "shards"
    summary = prepare(str(tmp_path / "all.jsonl"), out=out, recipe=small, workers=1, say=lambda line: None)
    assert [counts["kept"] for counts in summary["splits"].values()] == [CLIPS, CLIPS]

    train, test = ShardFolder(out).split("train"), ShardFolder(out).split("test")
    assert (train.views, test.views) == (VIEWS, 1)
    spans = {}
    for clip in range(CLIPS):
        for view in range(VIEWS):
            sample = train.media(clip, view)
            start, end = spans[clip, view] = tuple(sample["span"].tolist())
            if view == 0:
                assert (start, end) == (0.0, 10.0)
            times = sample["frame_times"].flatten()
            assert start - 0.1 <= float(times[0]) <= float(times[-1]) <= end
            shown = [read_barcode(image.numpy()) for image in sample["thumbnails"][:, 0]]  # the first frame of each chunk
            if view == 0:  # other views may be cropped off the centre, where the barcode is
                assert shown == [round(10 * float(time)) for time in sample["frame_times"][:, 0]]
    assert len(set(spans.values())) == 1 + CLIPS * (VIEWS - 1), "every further view has a span of its own"

    recipe = synthetic.parse_recipe(
        f"schema: 1\nname: tiny\ndata: {{dataset: manifest, task: qa, shards: {out}}}\n"
        + (tmp_path / "small.yaml").read_text().split("data: {dataset: manifest}\n")[1]
        + "train: {steps: 40, global_batch_size: 2, augment: {drop_modality: 0, drop_chunks: 0, mask_latents: 0}}\n",
        "tiny.yaml",
    )
    source = data.TrainingData(recipe, sources.open_sources(recipe), synthetic.vocabulary())
    chosen: dict[tuple[int, int], int] = {}
    for step in range(20):
        (batch,) = source.micro_batches(step, range(2))
        (again,) = source.micro_batches(step, range(2))
        assert torch.equal(batch.media.tubes[0], again.media.tubes[0])
        for position, unit in enumerate(batch.units):
            fits = [view for view in range(VIEWS) if torch.equal(batch.media.tubes[0][position], train.media(unit.clip, view)["tubes.0"])]
            assert len(fits) == 1
            assert chosen.setdefault((unit.epoch, unit.clip), fits[0]) == fits[0], "one view for all questions of a clip in one epoch"
    assert {view for (_, clip), view in chosen.items() if clip == 0} == set(range(VIEWS)), "over the epochs, all views come"
