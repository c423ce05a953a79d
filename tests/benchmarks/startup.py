"""Cold start: `mirasol --help`, and `mirasol ask` against the bare import of torch plus decoding of the same clip.

    python tests/benchmarks/startup.py

Every sample is a process of its own with the files in the page cache. Where the package carries no demo checkpoint, an
untrained one of the `demo` preset is made; where it carries no sample clip, one of 5 s is rendered.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common import Report, alternate, arguments, environment, verdict

BARE = """
import sys, torch, decord, numpy as np
reader = decord.VideoReader(sys.argv[1], ctx=decord.cpu(0), num_threads=1)  # its own scaling fails at widths like 48 px
count = int(sys.argv[2])
reader.get_batch(((np.arange(count) + 0.5) * len(reader) / count).astype(int)).asnumpy()
try:
    decord.AudioReader(sys.argv[1], ctx=decord.cpu(0), sample_rate=16000, mono=True)[:].asnumpy()
except decord.DECORDError:
    pass
"""


def checkpoint_and_clip(folder: Path) -> tuple[list[str], Path, int]:
    """Words of `ask` that choose the checkpoint, the clip, and how many frames of it are looked at."""
    from mirasol_cli.checkpoints.runs import DEMO_CHECKPOINT
    from mirasol_cli.config.reader import load_recipe
    from mirasol_cli.inference.video import SAMPLE_CLIP

    recipe = load_recipe("demo")
    clip = SAMPLE_CLIP
    if not clip.is_file():
        clip = folder / "clip.mp4"
        sources = ["-f", "lavfi", "-i", "testsrc2=s=128x128:r=25:d=5", "-f", "lavfi", "-i", "sine=frequency=440:duration=5"]
        subprocess.run(["ffmpeg", "-v", "error", *sources, "-c:v", "libx264", "-c:a", "aac", str(clip)], check=True)
    words: list[str] = ["--checkpoint", "demo"]
    if not (DEMO_CHECKPOINT / "manifest.json").is_file():
        words = ["--checkpoint", str(made_checkpoint(folder, recipe))]
    return words, clip, recipe.clip.frames


def made_checkpoint(folder: Path, recipe) -> Path:  # type: ignore[no-untyped-def]
    import json

    from mirasol_cli.checkpoints import folder as checkpoints_folder
    from mirasol_cli.checkpoints import load
    from mirasol_cli.config.reader import dump_recipe
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary

    lines = [f"context: question: answer: what plays {word}?" for word in ("first", "last", "drum", "flute", "bell", "horn")]
    vocabulary = Vocabulary(train_vocabulary(lines, 300))
    model, plain = Mirasol(recipe.model, recipe.clip, vocabulary.size, recipe.loss.weights), recipe.to_plain()
    about = {"schema": checkpoints_folder.CHECKPOINT_SCHEMA, "clip": plain["clip"], "model": plain["model"], "losses": list(model.losses)}
    about |= {"vocab_size": vocabulary.size, "usual_clip_s": 10.0}
    files = {
        "config.json": json.dumps(about).encode(),
        "recipe.yaml": dump_recipe(recipe).encode(),
        "tokenizer.model": vocabulary.model_bytes,
        "state.json": json.dumps({"schema": 1, "step": 0, "score": None}).encode(),
    }
    return checkpoints_folder.write_checkpoint(
        folder / "checkpoints", 0, checkpoints_folder.Contents(files, {"model": load.model_tensors(model)})
    )


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        words, clip, frames = checkpoint_and_clip(Path(name))

        def run(*command: str) -> None:
            done = subprocess.run([sys.executable, *command], cwd=name, env=environment(), capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-1500:]}")

        works = {
            "mirasol --help": lambda: run("-m", "mirasol_cli", "--help"),
            "import torch": lambda: run("-c", "import torch"),
            "import torch, decode the clip": lambda: run("-c", BARE, str(clip), str(frames)),
            "mirasol ask, cold": lambda: run("-m", "mirasol_cli", "ask", str(clip), "what is playing?", *words),
        }
        timings = alternate(works, 1 if args.smoke else args.rounds, patience=args.patience)
    report = Report("startup", "Start-up", smoke=args.smoke)
    for what, timing in timings.items():
        report.row(what=what, **timing.plain())
    report.table(["what", "seconds"], [[what, timing] for what, timing in timings.items()])
    ratio = timings["mirasol ask, cold"].median / timings["import torch, decode the clip"].median
    report.text(f"`--help` in s: {verdict(timings['mirasol --help'].median, 0.35, at_most=True)}.")
    report.text(f"`ask`, cold, over the bare import of torch plus decoding: {verdict(ratio, 1.5, at_most=True)}.")
    made = "in the package" if words[1] == "demo" else "made here, untrained"
    report.write(f"Clip: {clip.name}, {frames} frames; checkpoint: {made}.")


if __name__ == "__main__":
    main()
