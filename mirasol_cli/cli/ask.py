"""`mirasol ask`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mirasol_cli.cli.options import Device, Json, Threads, set_threads
from mirasol_cli.runtime import console


def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file; `demo` is the sample clip in the package.")],
    question: Annotated[str | None, typer.Argument(metavar="[QUESTION]", help="Omit it on a terminal to start a chat.")] = None,
    questions: Annotated[Path | None, typer.Option("--questions", help="Text file with one question per line.")] = None,
    context: Annotated[str, typer.Option("--context", metavar="TEXT", help="Title, description or subtitles.")] = "",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="DIR", help="Run or checkpoint folder. Default: the newest finished run, else the demo checkpoint."
        ),
    ] = None,
    start: Annotated[float | None, typer.Option("--start", min=0, metavar="S", help="Start of the span, in seconds.")] = None,
    end: Annotated[float | None, typer.Option("--end", min=0, metavar="S", help="End of the span, in seconds.")] = None,
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="Also measure how much the answer depends on each modality and chunk, and save a picture as `<video>-why.png` "
            "in the current folder (not in a chat).",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Answer only the first N questions of the file.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Answer questions about a video.

    The demo checkpoint in the package knows only the demo world. For your own videos, train a model first (`mirasol finetune --help`).

    \b
    Examples:
      mirasol ask clip.mp4 "what is playing?"
      mirasol ask clip.mp4 "who speaks?" --context "a talk about birds" --start 10 --end 30
      mirasol ask clip.mp4 --questions questions.txt --json
      mirasol ask clip.mp4 "what is playing?" --checkpoint runs/demo --why
    """
    set_threads(threads)
    from mirasol_cli.media.decode_pool import start_ahead

    start_ahead()  # importing torch takes most of the time of a short clip's answer, here and in the decoder: side by side
    from mirasol_cli.inference.command import ask as run_ask

    result = run_ask(
        video,
        question,
        questions=questions,
        context=context,
        checkpoint=checkpoint,
        start_s=start,
        end_s=end,
        why=why,
        limit=limit,
        device=device,
        stream=None if json else sys.stdout,
        say=console.say,
    )
    if json:
        console.print_json(result)
