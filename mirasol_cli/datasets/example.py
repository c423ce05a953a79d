"""What every data set becomes: clips (spans of videos) and the texts about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

CAPTION_PROMPT = "describe the clip"
"""The one question under which every caption trains, so that only the media can tell captions apart."""
LABEL_PROMPT = "what is happening in the clip?"
"""The one question of classification sets, whose class name is the answer (paper: open-ended generation of the class name)."""


@dataclass(frozen=True, kw_only=True, order=True)
class ClipSpan:
    """A span of a video. `video` is the id or relative path as the annotation gives it (always text, possibly hostile)."""

    video: str
    start_s: float | None = None
    end_s: float | None = None
    aliases: tuple[str, ...] = field(default=(), compare=False)  # further names of a file that holds exactly this clip

    @property
    def key(self) -> str:
        """Unique within a data set, stable over runs."""
        if self.start_s is None and self.end_s is None:
            return self.video
        end = "" if self.end_s is None else f"{self.end_s:.3f}"
        return f"{self.video}@{self.start_s or 0.0:.3f}-{end}"


@dataclass(frozen=True)
class Candidate:
    """A name under which a clip's file may lie, for `VideoIndex`.

    `name` is a stem (`abc_000030`), a relative path, or either with a video suffix, which then has to match.
    `whole` says what such a file holds: True, exactly the clip (read all of it); False, the source video (read `start_s`
    to `end_s`); None, either of them circulates under this name (`resolver.span_to_read` decides by the file's length).
    """

    name: str
    whole: bool | None = True


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Choices that some readers offer; every other reader ignores them."""

    classes: str = "32"  # kinetics-sounds: which class list, "31", "32" or "34"
    held_out: float = 0.02  # vggsound: share of the YouTube ids of train that becomes val


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text about one clip: a question with its answer, a caption, or a class label."""

    id: str
    clip: ClipSpan
    question: str = CAPTION_PROMPT
    answer: str | None = None  # None: the split has no labels
    references: tuple[str, ...] = ()  # further right answers (NExT-OE's added references, AudioSet's other labels)
    choices: tuple[str, ...] = ()  # multiple choice; `answer` is one of them
    type: str = ""  # the benchmark's own question type, as text
    context: str = ""  # title, description, subtitles

    def to_json(self, clip_number: int) -> dict:
        """One line of `<task>.jsonl`; `clip` is the clip's number in the split's `clips.jsonl`."""
        return {
            "id": self.id, "clip": clip_number, "question": self.question, "answer": self.answer,
            "references": list(self.references), "choices": list(self.choices), "type": self.type, "context": self.context,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of one task: the clips the annotation expects, in a fixed order, and the texts about them."""

    name: str
    task: str
    clips: Sequence[ClipSpan]
    texts: Sequence[Text]
    labels: tuple[str, ...] = ()  # the closed answer set, in the official order, where there is one
    notes: tuple[str, ...] = field(default=())  # what the reader repaired or dropped, for the summary
