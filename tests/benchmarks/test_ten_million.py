"""The small form of `ten_million.py`: what a process holds of a split does not grow with it by more than a few bytes a clip."""

from pathlib import Path

import ten_million


def test_private_memory_hardly_grows_with_the_clips(tmp_path: Path) -> None:
    found = []
    for clips in (5_000, 45_000):
        folder = tmp_path / str(clips)
        ten_million.make(folder / "train", clips, ten_million.recipe_of(folder, ten_million.SMALL).clip)
        found.append(ten_million.in_process(folder, ten_million.SMALL, 3))
    assert all(row["clips"] == row["texts"] > 4_000 for row in found)
    more_clips = found[1]["clips"] - found[0]["clips"]
    more_bytes = (found[1]["private_first_mb"] - found[0]["private_first_mb"]) * 1e6
    assert more_bytes / more_clips < 120, "ten million clips would take more than 1.2 GB"
