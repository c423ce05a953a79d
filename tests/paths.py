"""Where real clips and annotation excerpts lie, when they are at hand."""

import os
from pathlib import Path

_candidates = [os.environ.get("MIRASOL_SHARED", ""), str(Path(__file__).resolve().parents[2] / "shared")]
SHARED: Path | None = next((Path(c) for c in _candidates if c and (Path(c) / "clips" / "annotations.jsonl").is_file()), None)
"""The folder with `clips/` and `annotations/`, or None: tests marked `real` are skipped without it."""
