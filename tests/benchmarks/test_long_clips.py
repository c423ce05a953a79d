"""The clips of a minute: what is asked is true of the scene, balanced, and the same every time."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # these scripts import one another, as scripts do

from long_clips import PERIOD_S, PERIODS, TIMES, questions

ASKED = questions(0, "test", 120)


def test_answers_are_true_at_every_tenth_of_a_second() -> None:
    """Seen again from the clip's time line, without the generator's bookkeeping."""
    for question in ASKED:
        scene = question.scene
        moments = [(i + 0.5) / 10 / scene.seconds for i in range(round(10 * scene.seconds))]
        heard = [next((s.instrument for s in scene.sounds if s.start <= m < s.end), None) for m in moments]
        seen = [{(s.instrument, s.colour) for s in scene.sights if s.enter <= m < s.leave} for m in moments]
        turns = [b for a, b in zip([None, *heard], heard, strict=False) if b and a != b]
        named = question.question.rstrip("?").split(" ")
        if question.form == "first":
            assert question.answer == turns[0]
        elif question.form == "last":
            assert question.answer == turns[-1]
        elif question.form == "after":
            assert [b for a, b in pairwise(turns) if a == named[-1]] == [question.answer]
        elif question.form == "count":
            assert question.answer == TIMES[turns.count(named[4])]
        elif question.form == "colour":
            assert {colour for looks in seen for what, colour in looks if what == named[-1]} == {question.answer}
            shown = sum(any(what == named[-1] for what, _ in looks) for looks in seen) / 10
            assert question.type == f"seen {shown:.0f} s"
        else:
            during = {sound for sound, looks in zip(heard, seen, strict=True) if sound and any(what == named[4] for what, _ in looks)}
            assert during == {question.answer}


def test_nothing_overlaps_that_must_not() -> None:
    for scene in {question.scene for question in ASKED}:
        for events in ([(s.start, s.end) for s in scene.sounds], [(s.enter, s.leave) for s in scene.sights]):
            periods = [int(start * PERIODS + 1e-9) for start, _ in events]
            assert len(set(periods)) == len(events)
            assert all(0 <= start < end <= 1 and (end - start) * scene.seconds <= PERIOD_S + 1e-9 for start, end in events)


def test_answers_of_a_form_are_balanced_and_all_forms_are_asked() -> None:
    forms = {form: Counter(q.answer for q in ASKED if q.form == form) for form in {q.form for q in ASKED}}
    assert set(forms) == {"first", "last", "after", "count", "colour", "during"}
    for answers in forms.values():
        assert len(answers) >= 2
        assert max(answers.values()) <= max(1, round(1.1 * min(answers.values())))


def test_same_seed_same_world_and_splits_share_no_clip() -> None:
    assert questions(0, "test", 120) == ASKED
    assert questions(1, "test", 120) != ASKED
    assert not {q.scene.sounds for q in questions(0, "train", 120)} & {q.scene.sounds for q in ASKED}
