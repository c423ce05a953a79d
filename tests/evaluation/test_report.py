"""report.html: what it holds, what strangers' text does to it (nothing), and how it looks in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mirasol_cli.evaluation.command import evaluate
from mirasol_cli.evaluation.job import Options
from mirasol_cli.evaluation.report import html, plots, previews
from mirasol_cli.evaluation.report.html import stratified
from mirasol_cli.files import read_jsonl
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.preview import fullest_frame, tube_frames
from mirasol_cli.media.tubes import cut_tubes, thumbnails
from tests.evaluation.tiny import tiny_recipe, write_texts_split, write_tiny_checkpoint

HOSTILE = '<script>document.title="pwned"</script><img src=x onerror="document.title=\'pwned\'">&"\'</article>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def evaluated(folder: Path, videos, texts, **options):
    recipe = tiny_recipe(folder)
    write_texts_split(folder / "shards" / "test", texts, videos)
    write_tiny_checkpoint(folder / "run" / "checkpoints", recipe)
    losses = [{"step": step, "loss": 3 / step, "loss_text": 2 / step} for step in range(1, 40)]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    evaluate(recipe, Options(**options))
    return folder / "run" / "eval" / "test" / "report.html"


def plain_texts(clips: int, answers=("yes", "no", "a red drum")):
    questions = ("what is it", "who plays", "describe the clip")
    types = ("picture", "sound", "both")
    return [
        {"id": f"{clip}-{q}", "clip": clip, "question": question, "answer": answers[(clip + q) % len(answers)], "type": types[q]}
        for clip in range(clips)
        for q, question in enumerate(questions)
    ]


class Page(HTMLParser):
    """Every tag with its attributes, and all text outside of scripts."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self._code = False
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._code = False

    def handle_data(self, data):
        if not self._code:
            self.words.append(data)


def test_it_holds_the_figures_and_asks_the_network_for_nothing(tmp_path):
    path = evaluated(tmp_path, [f"v{i}.mp4" for i in range(12)], plain_texts(12), controls=("text-only",))
    content = path.read_text()
    assert len(content) < 20_000_000
    page = Page(content)
    text = " ".join(page.words)
    for words in ("exact match", "picture", "text-only", "Training", "Predictions", "greedy, at most 6 tokens", "bootstrap over videos"):
        assert words in text
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "xlink:href", "action")]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not re.search(r"@import|url\((?!#)", content)
    assert sum(tag == "img" for tag, _ in page.tags) >= 12  # contact sheets, and spectrograms where there is sound


def test_hostile_text_appears_as_text_and_touches_no_file(tmp_path):
    videos = [f"../../{HOSTILE}/v{i}.mp4" for i in range(11)] + ["/etc/passwd", "half \ud800 pair"]
    texts = [
        {"id": f"../{clip}{HOSTILE}", "clip": clip, "question": f"{HOSTILE} {clip}", "answer": HOSTILE, "type": HOSTILE, "context": HOSTILE}
        for clip in range(len(videos))
    ]
    work = tmp_path / "a" / "b" / "c"
    work.mkdir(parents=True)
    before = {entry for entry in tmp_path.rglob("*") if work not in entry.parents}
    path = evaluated(work, videos, texts)
    assert {entry for entry in tmp_path.rglob("*") if work not in entry.parents} == before
    written = {entry.name for entry in path.parent.iterdir()}
    assert written == {"predictions.jsonl", "predictions.origin.json", "report.html", "results.json"}
    page = Page(path.read_text())
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert all(not str(attributes.get("src", "data:")).startswith("x") for _, attributes in page.tags)
    assert any('<script>document.title="pwned"</script>' in words for words in page.words)


def test_clips_are_drawn_evenly_from_right_and_wrong_answers_of_every_type():
    rows = [{"clip": i, "question": "q", "type": "rare" if i < 5 else "common", "correct": i % 2 == 0, "answer": "a"} for i in range(500)]
    shown = stratified(rows, {"dataset": "m", "task": "qa"}, 100)
    assert len(shown) == len(set(shown)) == 100
    assert {0, 1, 2, 3, 4} <= set(shown)
    right = sum(i % 2 == 0 for i in shown)
    assert 45 <= right <= 55


def test_a_page_that_grows_too_large_shows_fewer_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "LARGEST_BYTES", 120_000)
    path = evaluated(tmp_path, [f"v{i}.mp4" for i in range(40)], plain_texts(40))
    assert path.stat().st_size <= 120_000


def test_names_with_mathematical_signs_are_drawn_as_they_are():
    drawing = plots.bars([("$x^2$ <b>", 0.5, (0.4, 0.6)), ("\ud800 half", 0.1, None)])
    assert "$x^2$ &lt;b&gt;" in drawing
    assert plots.bars([("a", 0.5, None)]) == plots.bars([("a", 0.5, None)])


def test_confusion_needs_two_answers_and_counts_the_rest_as_other():
    rows = [{"answer": "ab"[i % 2], "prediction": "a" if i < 6 else "z"} for i in range(10)]
    assert "(other)" in plots.confusion(rows)
    assert plots.confusion(rows[:1]) is None


def test_the_strip_shows_whole_frames_at_their_times():
    from PIL import Image

    geometry = ClipGeometry(frames=32, chunks=4, size=100)  # 96 px of 100 lie under the tubes
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 256, (4, 8, 7, 7, 3), np.uint8), 16, 2), 16, 3)[:, :, :100, :100]
    sample = {f"tubes.{kind}": np.asarray(tubes) for kind, tubes in enumerate(cut_tubes(frames, geometry))}
    sample |= {"frame_valid": np.ones((4, 8), np.uint8), "frame_times": np.arange(32.0).reshape(4, 8), "thumbnails": thumbnails(frames)}
    number, covered = fullest_frame(geometry)
    assert number == 0
    assert (tube_frames(sample, geometry)[:, 0][:, *covered] == frames[:, 0, :96, :96]).all()
    strip = previews.frame_strip(sample, geometry)
    assert [time for time, _ in strip] == ["0.0 s", "8.0 s", "16.0 s", "24.0 s"]
    image = Image.open(io.BytesIO(base64.b64decode(strip[2][1].split(",")[1])))
    assert image.size == (112, 112)
    assert abs(np.asarray(image.resize((96, 96)), float) - frames[2, 0, :96, :96]).mean() < 20
    sample["frame_valid"][1] = 0  # a chunk without a real frame is left out
    sample["frame_valid"][2, 0] = 0  # a frame that is not real is replaced by the third thumbnail, of the sixth frame
    assert [time for time, _ in previews.frame_strip(sample, geometry)] == ["0.0 s", "21.0 s", "24.0 s"]
    sample["frame_times"][2, 5] = np.nan
    assert [time for time, _ in previews.frame_strip(sample, geometry)] == ["0.0 s", "missing", "24.0 s"]
    sample["frame_valid"][:] = 0
    assert previews.frame_strip(sample, geometry) == []


def test_tubes_that_leave_gaps_give_no_whole_frame():
    gaps = ClipGeometry(frames=32, chunks=4, size=96)
    assert fullest_frame(replace(gaps, tubes=gaps.tubes[:3])) is None


def test_spectrograms_leave_out_what_is_masked():
    assert previews.spectrogram(np.zeros((2, 16, 16), np.float16), np.zeros((2, 16), np.uint8)) is None
    assert previews.spectrogram(np.random.default_rng(0).random((2, 16, 16)), np.ones((2, 16), np.uint8)) is not None


def screenshot(page: Path, target: Path, width: int, profile: Path, *more: str) -> str:
    """A picture of the page, and its document after scripts ran."""
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    common = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet), *more,
              f"--user-data-dir={profile}", "--hide-scrollbars", f"--window-size={width},2400"]  # fmt: skip
    subprocess.run([*common, f"--screenshot={target}", page.as_uri()], check=True, capture_output=True, timeout=120)
    done = subprocess.run([*common, "--dump-dom", page.as_uri()], check=True, capture_output=True, timeout=120)
    return done.stdout.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium at hand: the report was not looked at")
def test_it_fits_a_desktop_and_a_phone_and_runs_no_text_of_others(tmp_path):
    from PIL import Image

    texts, videos = plain_texts(12), [f"v{i}.mp4" for i in range(11)] + [HOSTILE]
    evaluated(tmp_path / "first", videos, texts, report=False)
    given = {row["id"]: row["prediction"] for row in read_jsonl(tmp_path / "first/run/eval/test/predictions.jsonl")}
    for text in texts[::2]:  # so that some answers are right
        text["answer"] = given[text["id"]] or "x"
    texts[0] |= {"context": HOSTILE}
    path = evaluated(tmp_path / "second", videos, texts, controls=("all",))
    content = path.read_text()
    measured = path.with_name("measured.html")  # the same page, with a script that writes down how wide it became
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', content).group(0)
    probe = """<script>
        const boxes = [document.documentElement, ...document.querySelectorAll(".wide")];
        const wide = Math.max(...boxes.map(box => box.scrollWidth - box.clientWidth));
        document.body.dataset.wide = wide;
        parent.postMessage(wide, "*");
    </script>"""
    measured.write_text(content.replace(policy, "").replace("</body>", probe + "</body>"))
    phone = path.with_name("phone.html")  # no window is as narrow as a phone, a frame is
    phone.write_text(
        '<!doctype html><script>addEventListener("message", event => { document.body.dataset.wide = event.data })</script>'
        f'<body style="margin:0"><iframe src="{measured.name}" style="width:390px;height:2400px;border:0"></iframe></body>'
    )
    views = [("desktop", measured, 1280, ()), ("phone", phone, 500, ("--virtual-time-budget=5000",)),
             ("dark", measured, 1280, ("--blink-settings=preferredColorScheme=0",))]  # fmt: skip
    brightness = {}
    for name, page, width, more in views:
        document = screenshot(page, tmp_path / f"{name}.png", width, tmp_path / f"profile-{name}", *more)
        assert 'data-wide="0"' in document  # nothing has to be scrolled sideways
        assert "<title>pwned" not in document
        image = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert image.shape[1] == width
        assert image.std() > 10  # it is not blank
        brightness[name] = np.median(image)
    assert brightness["desktop"] > 200
    assert brightness["dark"] < 60
