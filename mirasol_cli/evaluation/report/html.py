"""report.html: one self-contained page that makes no network request and escapes all foreign text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from mirasol_cli.errors import DataError, ShardError
from mirasol_cli.evaluation.protocols import gold_answers, protocol_of
from mirasol_cli.evaluation.report import plots, previews
from mirasol_cli.files import read_jsonl, write_atomic
from mirasol_cli.sample import AudioState

if TYPE_CHECKING:
    from mirasol_cli.shards.reader import ShardSplit

CLIPS_SHOWN = 200
ROWS_SHOWN = 4000
"""Rows of the table; with hundreds of bytes each they stay far below the size that a page may have."""
LARGEST_BYTES = 20_000_000

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
_environment.filters["words"] = lambda value: {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value


def write_report(path: Path, results: dict[str, Any], rows: Sequence[dict[str, Any]], *, run_dir: Path, split: ShardSplit | None) -> None:
    """Write the page. All of its text goes through the template's escaping; no name from the data becomes a path.

    Args:
        results: what results.json holds.
        rows: the predictions.
        run_dir: its metrics.jsonl gives the training curves, where there is one.
        split: gives frames and spectrograms; None leaves them out.
    """
    shown = stratified(rows, results, CLIPS_SHOWN)
    clips = _previews(shown, split)
    visible = [row for row in rows if row["clip"] in clips] if split else list(rows)
    page = _page(results, rows, visible[:ROWS_SHOWN], clips, run_dir)
    while len(page) > LARGEST_BYTES and clips:  # pictures of large data: fewer clips
        clips = dict(list(clips.items())[: len(clips) * 3 // 4])
        page = _page(results, rows, [row for row in visible if row["clip"] in clips][:ROWS_SHOWN], clips, run_dir)
    write_atomic(path, page)


def stratified(rows: Sequence[dict[str, Any]], results: dict[str, Any], count: int) -> list[int]:
    """At most `count` clips, taken in turn from right and wrong answers of every question type, in clip order."""
    type_of = protocol_of(results["dataset"], results["task"]).type_of
    strata: dict[tuple[str, bool | None], list[int]] = defaultdict(list)
    for row in rows:
        strata[type_of(row), row["correct"]].append(row["clip"])
    queues = [iter(dict.fromkeys(clips)) for _, clips in sorted(strata.items(), key=lambda item: (item[0][0], str(item[0][1])))]
    chosen: set[int] = set()
    while queues and len(chosen) < count:
        for queue in list(queues):
            clip = next((clip for clip in queue if clip not in chosen), None)
            if clip is None:
                queues.remove(queue)
            elif len(chosen) < count:
                chosen.add(clip)
    return sorted(chosen)


def _previews(clips: Sequence[int], split: ShardSplit | None) -> dict[int, dict[str, Any]]:
    """A strip of frames and the spectrogram of each clip; a clip without media says so."""
    if split is None:
        return {}
    found: dict[int, dict[str, Any]] = {}
    for clip in clips:
        strip, audio = [], None
        try:
            if split.has(clip):
                media = {name: value.numpy() for name, value in split.media(clip).items()}
                strip = previews.frame_strip(media, split.geometry)
                if media["audio_state"] == AudioState.AUDIBLE:
                    audio = previews.spectrogram(media["mel"], media["mel_valid"])
            note = "" if split.has(clip) else "missing: no media in the shards"
        except ShardError as error:
            note = error.message
        found[clip] = {"strip": strip, "audio": audio, "note": note}
    return found


def _page(results: dict[str, Any], rows: Sequence[dict], visible: Sequence[dict], clips: dict[int, dict], run_dir: Path) -> bytes:
    protocol = protocol_of(results["dataset"], results["task"])
    intervals = results["intervals"]
    parts = [("all", results["metrics"]["exact_match"], intervals.get("exact_match"))] if results["metrics"] else []
    for section in ("groups", "by_type"):
        parts += [(name or "(no type)", part["exact_match"], intervals[section].get(name)) for name, part in results[section].items()]
    by_clip: dict[int, list[dict]] = defaultdict(list)
    for row in visible:
        verdict = "unscored" if row["correct"] is None else "right" if row["correct"] else "wrong"
        by_clip[row["clip"]].append(
            {**row, "kind": protocol.type_of(row), "verdict": verdict, "gold": " / ".join(gold_answers(row, protocol))}
        )
    nothing: dict[str, Any] = {"strip": [], "audio": None, "note": ""}
    text = _environment.get_template("report.html").render(
        results=results,
        clips=[{"number": clip, "rows": group, **clips.get(clip, nothing)} for clip, group in by_clip.items()],
        types=sorted({entry["kind"] for group in by_clip.values() for entry in group}),
        shown=len(visible),
        bars=_drawing(plots.bars(parts[:40])) if len(parts) > 1 else None,
        curves=_drawing(plots.curves(_training_log(run_dir))),
        confusion=_drawing(plots.confusion(rows)),
    )
    return text.encode("utf-8", "replace")


def _drawing(svg: str | None) -> Markup | None:
    """An SVG that matplotlib wrote, which escapes the names in it itself."""
    return Markup(svg) if svg else None


def _training_log(run_dir: Path) -> list[dict]:
    try:
        return [line for line in read_jsonl(run_dir / "metrics.jsonl") if isinstance(line, dict)]
    except DataError:
        return []
