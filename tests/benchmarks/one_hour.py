"""`mirasol ask` on an hour of video against a minute of it: memory, speed, and whether an event at minute 47 is remembered.

    python tests/benchmarks/one_hour.py --checkpoint runs/demo-long

The hour is made of rendered minutes of the demo world (640x360, 25 frames per second, H.264 and AAC), each encoded once and
joined without encoding again. Minute 47 shows and plays a bell for 4 s. In the quiet hour other instruments are seen or heard in
every tenth minute, in the busy hour in every second one: what happens after the bell is what may overwrite the memory of it. Each hour
comes a second time, with the same minute without the bell. The minutes with and without it are also asked about alone: what the model
cannot tell of a minute, it cannot tell of an hour.

Each video is asked about in a process of its own. Memory is the highest sum of the resident memory of that process and all
below it, read every 50 ms; shared pages count once per process, so it is an upper bound. The checkpoint's Combiner must be a
TTM (others are refused): other kinds spread their frames over the whole video instead of reading all of it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import Report, arguments, environment, verdict

SEGMENT_S = 60
EVENT_S = 4
EVENT_AT_S = 28
"""Seconds into its minute at which the event starts."""
QUESTIONS = ("can you hear a bell?", "is there a bell in the picture?", "what color is the bell?")
"""The first is the one that counts."""


# ------------------------------------------------------------------------------------------------------------- the videos


def event_scene() -> Any:
    """The minute of the event: a blue bell, seen and heard at the same time."""
    from mirasol_cli.demo.world import Scene, Sight, Sound

    start, end = EVENT_AT_S / SEGMENT_S, (EVENT_AT_S + EVENT_S) / SEGMENT_S
    return Scene(
        name="event", family="hour", seconds=float(SEGMENT_S), frames_per_second=10, sights=(Sight("bell", "blue", 1, start, end),),
        sounds=(Sound("bell", start, end, 1.0),), distractors=1, noise=0.3, title="an hour",
    )  # fmt: skip


HOURS = ("quiet", "busy")


def background(hour: str, minute: int) -> str:
    """What an ordinary minute of an hour shows."""
    if hour == "busy":
        return ("nothing", "others", "noisy", "horn")[minute % 4]
    if minute % 10 == 5:
        return ("others", "horn")[minute // 10 % 2]
    return ("nothing", "noisy")[minute % 2]


def background_scenes() -> dict[str, Any]:
    """Nothing; others seen and heard; nothing again, noisier; another that is only heard."""
    from mirasol_cli.demo.world import Sight, Sound

    nothing = replace(event_scene(), name="nothing", sights=(), sounds=())
    others = replace(
        nothing, name="others", sights=(Sight("drum", "green", 0, 0.2, 0.25), Sight("flute", "yellow", 2, 0.6, 0.65)),
        sounds=(Sound("flute", 0.3, 0.34, 1.0), Sound("drum", 0.75, 0.8, 1.0)),
    )  # fmt: skip
    horn = replace(nothing, name="horn", sounds=(Sound("horn", 0.5, 0.56, 1.0),))
    return {"nothing": nothing, "others": others, "noisy": replace(nothing, name="noisy", noise=0.9), "horn": horn}


def make_videos(folder: Path, minutes: int, event_minute: int) -> dict[str, Path]:
    """Render and encode every distinct minute once, then join them; files that are there already are kept."""
    event = event_scene()
    ends = {
        "with": segment(folder, "minute-with", event),
        "without": segment(folder, "minute-without", replace(event, sights=(), sounds=())),
    }
    ordinary = {name: segment(folder, f"background-{name}", scene) for name, scene in background_scenes().items()}
    videos = {f"minute, {kind}": path for kind, path in ends.items()}
    for name in HOURS:
        parts = [ordinary[background(name, minute)] for minute in range(minutes)]
        for kind, part in ends.items():
            parts[event_minute] = part
            videos[f"{name} hour, {kind}"] = join(folder / f"{minutes}-minutes-{name}-event-{event_minute}-{kind}.mp4", parts)
    return videos


def segment(folder: Path, name: str, scene: Any) -> Path:
    """One minute at 640x360. The rendered square fills the height, so that the centre crop shows what training clips show."""
    from mirasol_cli.demo.render import render

    path = folder / f"{name}.mp4"
    if not path.exists():
        square, partial = folder / f".{name}-96px.mp4", folder / f".{name}.mp4"
        render(scene, square)
        video = ["-vf", "scale=360:360,pad=640:360:(ow-iw)/2:0,fps=25", "-c:v", "libx264", "-preset", "veryfast", "-g", "50"]
        ffmpeg("-i", str(square), *video, "-c:a", "aac", "-ar", "16000", "-t", str(SEGMENT_S), str(partial))
        square.unlink()
        partial.replace(path)
    return path


def join(path: Path, parts: list[Path]) -> Path:
    if not path.exists():
        names, partial = path.with_suffix(".txt"), path.with_name(f".{path.name}")
        names.write_text("".join(f"file '{part.resolve()}'\n" for part in parts))
        ffmpeg("-f", "concat", "-safe", "0", "-i", str(names), "-c", "copy", str(partial))
        partial.replace(path)
    return path


def ffmpeg(*words: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *words], check=True)


# ---------------------------------------------------------------------------------------------------------------- asking


@dataclass
class Asked:
    """What one process said, took and held."""

    reply: dict[str, Any]
    seconds: float
    peak_mb: float

    def answer(self, question: str) -> dict[str, Any]:
        return next(one for one in self.reply["answers"] if one["question"] == question)

    def plain(self) -> dict[str, Any]:
        answers = {one["question"]: {"answer": one["answer"], "logprob": one["logprob"]} for one in self.reply["answers"]}
        took = self.reply["answers"][0]["timings_s"]
        video = {key: self.reply["video"][key] for key in ("seconds", "frames", "chunks", "audio")}
        return {**video, "process_s": round(self.seconds, 2), "peak_mb": round(self.peak_mb, 1), "timings_s": took, "answers": answers}


def ask(video: Path, checkpoint: Path, questions: Path, threads: int) -> Asked:
    command = [sys.executable, "-m", "mirasol_cli", "ask", str(video), "--questions", str(questions), "--checkpoint", str(checkpoint)]
    command += ["--threads", str(threads), "--device", "cpu", "--json"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment())
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, tree_mb(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise RuntimeError(f"ask about {video.name} ended with {process.returncode}:\n{err.read()[-2000:]}")
        return Asked(json.loads(out.read()), seconds, peak)


def tree_mb(process: int) -> float:
    """Resident memory of a process and all below it, in MB; those that are just gone count 0."""
    folder = Path(f"/proc/{process}")
    try:
        line = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("VmRSS"))
        children = [int(child) for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()]
    except (OSError, StopIteration):
        return 0.0
    return int(line.split()[1]) * 1024 / 1e6 + sum(tree_mb(child) for child in children)


def smoke_checkpoint(folder: Path) -> Path:
    """An untrained one: what it answers means nothing."""
    from mirasol_cli.config.reader import load_recipe
    from startup import made_checkpoint

    return made_checkpoint(folder, load_recipe("demo-long", ["clip.frames=32", "clip.chunks=4"]))


def problem_of(checkpoint: Path) -> str | None:
    """One sentence on why a run or checkpoint folder cannot be measured here, or None."""
    from mirasol_cli.checkpoints.runs import resolve_checkpoint
    from mirasol_cli.errors import MirasolError
    from mirasol_cli.files import read_json

    try:
        kind = read_json(resolve_checkpoint(checkpoint) / "config.json")["model"]["combiner"]["kind"]
    except MirasolError as error:
        return f"--checkpoint: {error.message}"
    except (KeyError, TypeError):
        return f"--checkpoint: the config.json of '{checkpoint}' names no Combiner; train one with `mirasol finetune demo-long`"
    if kind != "ttm":
        return f"--checkpoint: the Combiner of '{checkpoint}' is '{kind}', not 'ttm'; train one with `mirasol finetune demo-long`"
    return None


# ------------------------------------------------------------------------------------------------------------- the report


def write_report(report: Report, found: dict[str, Asked], minutes: int, event_minute: int) -> None:
    for name, asked in found.items():
        report.row(video=name, **asked.plain())
    report.table(
        ["video", "seconds", "chunks", "peak MB", "seconds of the process", "decode", "encode"],
        [
            [name, one["seconds"], one["chunks"], one["peak_mb"], one["process_s"], one["timings_s"]["decode"], one["timings_s"]["encode"]]
            for name, one in ((name, asked.plain()) for name, asked in found.items())
        ],
    )
    report.text(
        "`decode` is the time spent waiting for decoded media: where a video is read in pieces, the next one is decoded while the "
        "model reads, and only what that does not cover is counted."
    )
    report.table(
        ["question", *found],
        [[question, *(told(asked.answer(question)) for asked in found.values())] for question in QUESTIONS],
    )
    minutes_alone, hours = ([one for name, one in found.items() if word in name] for word in ("minute", "hour"))
    more = max(hour.peak_mb for hour in hours) - min(minute.peak_mb for minute in minutes_alone)
    chunks = hours[0].reply["video"]["chunks"] / minutes_alone[0].reply["video"]["chunks"]
    slowest = max(hour.seconds for hour in hours)
    report.text(f"Peak memory over that of a minute, MB: {verdict(more, 100, at_most=True)}; chunks: {chunks:.1f} times as many.")
    report.text(f"Times faster than real time, start of the process included: {verdict(minutes * 60 / slowest, 30, at_most=False)}.")
    for span in ("minute", *(f"{name} hour" for name in HOURS)):
        given = {kind: found[f"{span}, {kind}"].answer(QUESTIONS[0])["answer"] for kind in ("with", "without")}
        right = "right both times" if given == {"with": "yes", "without": "no"} else "NOT right both times"
        changes = "changes" if given["with"] != given["without"] else "does NOT change"
        where = "of a single minute" if span == "minute" else f"at minute {event_minute} of the {span}"
        report.text(f"The event {where} {changes} the answer to `{QUESTIONS[0]}`; {right}.")


def told(answer: dict[str, Any]) -> str:
    """`yes (0.98)`: the answer and its probability."""
    return f"{answer['answer'].replace('|', '')} ({math.exp(answer['logprob']):.2f})"


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run or checkpoint folder of a TTM trained on a demo world")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--event-minute", type=int, default=47)
    parser.add_argument("--folder", type=Path, help="keep the videos here, and use those that are there")
    args = parser.parse_args()
    if args.smoke:
        args.minutes, args.event_minute = 3, 1
    elif args.checkpoint is None:
        parser.error("--checkpoint is needed")
    if args.checkpoint is not None and (problem := problem_of(args.checkpoint)):
        parser.error(problem)
    if not 0 <= args.event_minute < args.minutes:
        parser.error("--event-minute lies outside the video")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = args.folder or scratch
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = args.checkpoint or smoke_checkpoint(scratch)
        videos = make_videos(folder, args.minutes, args.event_minute)
        questions = scratch / "questions.txt"
        questions.write_text("\n".join(QUESTIONS) + "\n")
        found = {what: ask(video, checkpoint, questions, args.threads) for what, video in videos.items()}
        sizes = ", ".join(f"{path.stat().st_size / 1e6:.0f} MB" for path in (videos["minute, with"], videos["quiet hour, with"]))
    report = Report("one_hour", f"An hour of video ({args.minutes} minutes, 640x360)", smoke=args.smoke)
    write_report(report, found, args.minutes, args.event_minute)
    report.write(f"Answers with their probability. Files: {sizes}. `minute` is the minute of the event alone, read in the same way.")


if __name__ == "__main__":
    main()
