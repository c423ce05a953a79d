"""What `mirasol ask` does: choose a checkpoint, encode the video once, answer every question about it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from mirasol_cli.checkpoints.runs import choose_checkpoint
from mirasol_cli.errors import DataError, UsageError
from mirasol_cli.inference.attribution_picture import draw
from mirasol_cli.inference.chat import NO_ANSWER, print_answer, print_warnings
from mirasol_cli.inference.session import Model, Reply, Say, load
from mirasol_cli.inference.video import find_video


def ask(
    video: str,
    question: str | None = None,
    *,
    questions: Path | None = None,
    context: str = "",
    checkpoint: str | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    why: bool = False,
    limit: int | None = None,
    device: str = "auto",
    stream: TextIO | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The command. Answers go to `stream` (None: nowhere), messages to `say`; returns what `--json` prints.

    With `questions` the result holds one entry of `answers` per line of the file, and the warnings of all of them. Without
    any question a session starts, if both ends are a terminal.

    Raises:
        UsageError: no question, or contradicting options.
        MediaError, CheckpointError, DataError: video, checkpoint or questions cannot be used.
    """
    if question is not None and questions is not None:
        raise UsageError("QUESTION and --questions cannot be combined", "use one of them")
    asked = _questions(questions, limit) if questions is not None else [question] if question is not None else []
    terminal = stream if stream is not None and stream.isatty() and sys.stdin.isatty() else None
    if not asked and terminal is None:
        raise UsageError("no question given", 'add one after the video, as in `mirasol ask clip.mp4 "what is playing?"`')
    path = find_video(video)  # a wrong name is told before the model is loaded
    chosen, reason = choose_checkpoint(checkpoint)
    model = load(chosen, device=device)
    told: set[str] = set()
    print_warnings(model.warnings_about(path), told, say)
    say(f"checkpoint '{model.checkpoint}' ({reason})")
    clip = model.open(video, start_s, end_s, say)
    say(f"read {clip.sampled}")
    print_warnings(clip.warnings, told, say)
    if not asked and terminal is not None:
        from mirasol_cli.inference.chat import Chat

        return Chat(model, clip, context, terminal, say, why=why).run()

    replies = [print_answer(model, clip, one, context, stream, say, told, why=why, repeat=questions is not None) for one in asked]
    plain = [_with_picture(reply, model, number, len(replies), say) for number, reply in enumerate(replies, 1)]
    if questions is None:
        return plain[0]
    shared = {key: plain[0][key] for key in ("video", "checkpoint", "caveat")}
    shared["warnings"] = list(dict.fromkeys(warning for one in plain for warning in one["warnings"]))
    each = ("question", "answer", "logprob", "probability", "timings_s", "why")
    return {"answers": [{key: one[key] for key in each} for one in plain], **shared}


def _with_picture(reply: Reply, model: Model, number: int, count: int, say: Say) -> dict[str, Any]:
    """The reply's JSON; with `--why` its picture is drawn beside, named after the video, in the current folder."""
    plain = reply.to_plain()
    if reply.why:
        suffix = f"-{number}" if count > 1 else ""
        path = Path(f"{Path(reply.clip.path).stem}-why{suffix}.png")
        title = f"{reply.question}  →  {reply.answer}" + (f"  ({NO_ANSWER})" if reply.caveat else "")
        draw(reply.why, path, title, reply.clip.sample, model.answerer.geometry)
        plain["why"]["image_file"] = str(path)
        say(f"picture: '{path}'")
    return plain


def _questions(path: Path, limit: int | None) -> Sequence[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise DataError(f"the questions file '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read: {error}", "save it as UTF-8 text with one question per line") from None
    found = [line for line in lines if line][:limit]
    if not found:
        raise UsageError(f"'{path}' contains no question", "write one question per line")
    return found
