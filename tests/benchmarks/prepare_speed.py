"""`mirasol prepare` against bare decoding of the same frames and sound, and against the loop that a user would write.

    python tests/benchmarks/prepare_speed.py [--sources 40]

Videos are rendered here (H.264 + AAC, 640 x 360, 25 fps). One decoding process each, everything else equal: 32 frames a clip by
timestamp at 224 px, and its sound at 16 kHz.

- bare: decord opened once per source at the target size, one `get_batch`; PyAV for the sound. Nothing is kept: the floor.
- user: for every clip decord at full size, `get_batch`, scaling and crop with torch, decord's AudioReader, a mel spectrogram with torch,
  one `.npz` per clip; a file that fails is skipped, a crash or a hang of 60 s costs the process, which is started again.
- prepare: the command itself, with everything it adds: supervision, tubes, thumbnails, spectrogram, masks, checksums, shards.

`steady` leaves the start-up out: seconds for all sources less those for the first one alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Report, alternate, arguments, environment, short, verdict

FRAMES, SIZE = 32, 224

BARE = """
import json, sys
import av, decord, numpy as np
for line in open(sys.argv[1]):
    source = json.loads(line)
    try:
        reader = decord.VideoReader(source["path"], ctx=decord.cpu(0), num_threads=1, width=398, height=224)
        shown = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        times = [a + (np.arange(32) + 0.5) * (b - a) / 32 for a, b in source["spans"]]
        index = np.clip(np.searchsorted(shown, np.concatenate(times), side="right") - 1, 0, None)
        reader.get_batch(np.unique(index)).asnumpy()
        del reader
        with av.open(source["path"]) as file:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
            for frame in file.decode(audio=0):
                for part in resampler.resample(frame):
                    part.to_ndarray()
    except Exception as error:
        print(error, file=sys.stderr)
"""
USER = """
import json, os, sys
import decord, numpy as np, torch
torch.set_num_threads(1)
window = torch.hann_window(400)
done = sys.argv[3]
for number, line in enumerate(open(sys.argv[1])):
    source = json.loads(line)
    for k, (a, b) in enumerate(source["spans"]):
        mark = os.path.join(done, f"{number}-{k}")
        if os.path.exists(mark):
            continue
        open(mark, "w").close()
        try:
            reader = decord.VideoReader(source["path"], ctx=decord.cpu(0), num_threads=1)
            index = ((a + (np.arange(32) + 0.5) * (b - a) / 32) * reader.get_avg_fps()).astype(int)
            frames = torch.from_numpy(reader.get_batch(np.clip(index, 0, len(reader) - 1)).asnumpy()).permute(0, 3, 1, 2).float()
            scale = 224 / min(frames.shape[2:])
            frames = torch.nn.functional.interpolate(frames, scale_factor=scale, mode="bilinear", antialias=True)
            top, left = (frames.shape[2] - 224) // 2, (frames.shape[3] - 224) // 2
            frames = frames[:, :, top:top + 224, left:left + 224].round().to(torch.uint8).numpy()
            sound = decord.AudioReader(source["path"], ctx=decord.cpu(0), sample_rate=16000, mono=True)[:].asnumpy()[0]
            sound = torch.from_numpy(sound[int(a * 16000):int(b * 16000)])
            power = torch.stft(sound, 1024, 160, 400, window, return_complex=True).abs() ** 2
            np.savez(os.path.join(sys.argv[2], f"{number}-{k}.npz"), frames=frames, power=power.log1p().half().numpy())
        except Exception as error:
            print(error, file=sys.stderr)
"""


def render(path: Path, seconds: int, seed: int) -> None:
    video = f"testsrc2=s=640x360:r=25:d={seconds},hue=h={seed * 37 % 360},noise=alls=12:allf=t:all_seed={seed}"
    audio = f"anoisesrc=d={seconds}:c=pink:a=0.4:seed={seed},aresample=44100"
    video = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "28", "-g", "125", "-pix_fmt", "yuv420p"]
    sources = ["-f", "lavfi", "-i", video, "-f", "lavfi", "-i", audio, "-shortest"]
    command = ["ffmpeg", "-v", "error", "-y", *sources, *video, "-c:a", "aac", "-movflags", "+faststart", str(path)]
    subprocess.run(command, check=True)


def make_sets(folder: Path, sources: int) -> dict[str, list[dict[str, Any]]]:
    """Name -> sources with their spans; the manifest of each lies beside the videos."""
    folder.mkdir()
    few = max(2, sources // 8)
    for number in range(few):
        render(folder / f"short{number}.mp4", 10, number)
    render(folder / "minute.mp4", 55, 100)
    render(folder / "long.mp4", 60 if sources < 10 else 600, 101)
    for number in range(sources):  # copies under other names: decoders do not know that they are equal
        shutil.copy(folder / f"short{number % few}.mp4", folder / f"plain{number}.mp4")
        shutil.copy(folder / f"short{number % few}.mp4", folder / f"damaged{number}.mp4")
        if number % 4 == 3:
            content = (folder / f"damaged{number}.mp4").read_bytes()
            (folder / f"damaged{number}.mp4").write_bytes(content[: len(content) * 6 // 10])
    length = 60 if sources < 10 else 600
    long_spans = [[start, start + 10.0] for start in range(length // 12, length - 10, length // 6)]
    sets = {
        "one clip a source": [{"path": f"plain{n}.mp4", "spans": [[0.0, 10.0]]} for n in range(sources)],
        "eight clips a source": [{"path": "minute.mp4", "spans": [[start, start + 10.0] for start in range(0, 45, 6)]}],
        "long source": [{"path": "long.mp4", "spans": long_spans}],
        "a quarter damaged": [{"path": f"damaged{n}.mp4", "spans": [[0.0, 10.0]]} for n in range(sources)],
    }
    for name, content in sets.items():
        write_lists(folder, name, content)
        write_lists(folder, f"{name}-first", [{**content[0], "spans": content[0]["spans"][:1]}])
    return sets


def write_lists(folder: Path, name: str, sources: list[dict[str, Any]]) -> None:
    full = [{**source, "path": str(folder / source["path"])} for source in sources]
    (folder / f"{name}.list").write_text("".join(json.dumps(source) + "\n" for source in full))
    rows = [
        {"video": source["path"], "start": a, "end": b, "caption": "something", "split": "train"}
        for source in sources
        for a, b in source["spans"]
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(command: list[str], timeout: float = 900.0) -> int:
    quiet = {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, timeout=timeout, env=environment(**quiet), check=False).returncode


def bare(folder: Path, name: str) -> None:
    if run([sys.executable, "-c", BARE, str(folder / f"{name}.list")]):
        raise RuntimeError("bare decoding failed")


def user(folder: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as done:
        for _ in range(100):
            try:
                if run([sys.executable, "-c", USER, str(folder / f"{name}.list"), out, done], timeout=60.0) == 0:
                    return
            except subprocess.TimeoutExpired:
                continue


def prepare(folder: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as out:
        words = ["prepare", str(folder / f"{name}.jsonl"), "--root", str(folder), "--out", f"{out}/shards", "--workers", "1",
                 "--keep-truncated", "--max-failed", "100"]  # fmt: skip
        code = run([sys.executable, "-m", "mirasol_cli", *words, f"clip.frames={FRAMES}", "clip.chunks=4", f"clip.size={SIZE}"])
        if code:
            raise RuntimeError(f"prepare ended with {code}")


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--sources", type=int, default=40)
    args = parser.parse_args()
    report = Report("prepare_speed", "prepare against bare decoding and the loop that a user would write", smoke=args.smoke)
    contestants = {"bare": bare, "user": user, "prepare": prepare}
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "videos"
        sets = make_sets(folder, 3 if args.smoke else args.sources)
        for title, sources in list(sets.items())[: 1 if args.smoke else None]:
            works = {
                f"{who}{rest}": (lambda work=work, name=f"{title}{rest}": work(folder, name))
                for who, work in contestants.items()
                for rest in ("", "-first")
            }
            # A set that hangs the user's loop is slow enough to be measured once.
            rounds = 1 if args.smoke or title == "a quarter damaged" else args.rounds
            timings = alternate(works, rounds, patience=args.patience, warm=False)
            clips = sum(len(source["spans"]) for source in sources)
            steady = {who: timings[who].median - timings[f"{who}-first"].median for who in contestants}
            for who in contestants:
                report.row(set=title, who=who, clips=clips, steady_s=steady[who], **timings[who].plain())
            rows += [
                [title, clips, who, timings[who], short(steady[who]), short((clips - 1) / steady[who]) if steady[who] > 0 else "-"]
                for who in contestants
            ]
            if title == "one clip a source":
                floor = short(steady["prepare"] / steady["bare"])  # the goal is about the same reader: prepare_real_size
                whole = timings["prepare"].median / timings["bare"].median
                notes.append(f"{title}: prepare over bare decoding, steady {floor}; with start-up {whole:.2f}.")
            against = verdict(timings["prepare"].median / timings["user"].median, 1.0, at_most=True)
            notes.append(f"{title}: prepare over the user's loop, in all {against}.")
    report.table(["set", "clips", "who", "seconds in all", "steady s", "clips/s, steady"], rows)
    for note in notes:
        report.text(note)
    report.write()


if __name__ == "__main__":
    main()
