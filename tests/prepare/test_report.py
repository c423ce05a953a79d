"""What `prepare` says: progress, the table at the end, reasons by kind."""

import re

import pytest

from mirasol_cli.prepare.report import DecodingProgress, kind_of_reason, say_table


def test_progress_in_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    said: list[str] = []
    monkeypatch.setattr("mirasol_cli.runtime.console.time.monotonic", lambda: now[0])
    progress = DecodingProgress(1000, said.append, bar=False)
    for _ in range(20):
        now[0] += 1
        progress(10, 360.0)
    assert len(said) == 2
    assert said[-1] == "200 of 1000 clips, 2.00 h of media, 10.0 clips/s, 0:01:20 left"


COUNTS = {
    "expected": 4, "kept": 3, "failed": 1, "missing": 0, "questions": 8, "audio": {"none": 1, "silent": 0, "audible": 2}, "share": 0.75,
    "seconds": 3600.0, "bytes": 2_000_000, "reasons": {f"reason {k}": 1 for k in range(11)}, "notes": ["one", "two"], "duplicates": 0,
    "incomplete": 2, "without_video": 0,
}  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_at_the_end(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said: list[str] = []
    say_table({"train": COUNTS, "[red]": COUNTS}, said.append, terminal=terminal)
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(said))
    assert ("╭" in text) == terminal
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 100 - 20 * terminal for line in said)
    for words in (
        "[red]", "75.0%", "1.00", "no audio", "train: 1 failed: reason 7", "3 more kinds of failures, all in train/failures",
        "train: 2 kept with frames missing",
    ):  # fmt: skip
        assert words in text
    assert "reason 8" not in text
    assert "more notes" not in text


def test_reasons_are_counted_by_kind() -> None:
    assert kind_of_reason("truncated: decoded 3.1 of 10.0 s in 'a.mp4'") == kind_of_reason("truncated: decoded 4 of 9.5 s in 'b c.mp4'")
    assert kind_of_reason("empty file") == "empty file"
