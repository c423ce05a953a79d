"""Contact sheets: tube pixels lie where they were cut, masks are red, one picture per clip."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirasol_cli.geometry import CHUNK_TUBES, ClipGeometry
from mirasol_cli.media.preview import MASKED, UNSEEN, contact_sheet, seconds_text, tube_frames
from mirasol_cli.media.tubes import cut_tubes
from mirasol_cli.prepare.inspect import write_contact_sheets
from mirasol_cli.shards.reader import ShardFolder
from tests.shards.samples import SMALL, made_up_sample, write_split


@pytest.mark.parametrize(
    "geometry", [SMALL, replace(SMALL, frames=16, size=112, tubes=CHUNK_TUBES), ClipGeometry(frames=64, chunks=2, size=96)]
)
def test_pixels_come_back_to_their_places(geometry: ClipGeometry) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (geometry.chunks, *geometry.chunk_shape, 3), dtype=np.uint8)
    frames[frames == UNSEEN] += 1
    sample = {f"tubes.{kind}": np.asarray(tubes) for kind, tubes in enumerate(cut_tubes(frames, geometry))}
    pasted = tube_frames(sample, geometry)
    seen = (pasted != UNSEEN).all(-1)
    assert 0.05 < seen.mean() < 1
    assert np.array_equal(pasted[seen], frames[seen])


def test_one_image_per_clip(tmp_path: Path) -> None:
    write_split(tmp_path / "train", 9, failed=(0,))
    paths = write_contact_sheets(tmp_path, ["train"], 3)
    assert [path.name for path in paths] == ["train-000001.png", "train-000003.png", "train-000006.png"]
    image = np.asarray(Image.open(paths[0]))
    assert not (image == MASKED).all(-1).any()

    split = ShardFolder(tmp_path).split("train")
    sample = {name: tensor.numpy() for name, tensor in split.media(1).items()}
    sample["mel_valid"][1] = 0
    red = (np.asarray(contact_sheet(sample, split.geometry, ["qa: what? -> that"])) == MASKED).all(-1)
    assert red[len(red) // 2 :].any()
    assert red.sum() > 128 * 128  # the second chunk's whole spectrogram


def test_a_frame_that_is_not_there_has_no_time() -> None:
    assert (seconds_text(2.5), seconds_text(2.5, 2), seconds_text(float("nan"), 2)) == ("2.5 s", "2.50 s", "missing")
    sample = made_up_sample("a")
    missing = sample | {"frame_times": np.full_like(sample["frame_times"], np.nan)}
    assert np.asarray(contact_sheet(missing, SMALL, ["x"])).any()
