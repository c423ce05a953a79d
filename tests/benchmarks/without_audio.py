"""What leaving a modality out saves: a training step of a recipe with and without audio, FLOPs and time.

    python tests/benchmarks/without_audio.py [--recipe activitynet] [--preset small] [--frames 32]

Random weights and media, one clip, float32. FLOPs are those of the recipe at its own preset and length, forward, as `--dry-run` counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common import Report, alternate, arguments, random_media, random_text, verdict

VOCABULARY = 8000


def step(recipe: Any, audio: bool) -> Any:
    """A function that runs one training step: forward, backward, optimizer."""
    import torch

    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.training.optimizer import build_optimizer

    torch.manual_seed(0)
    model = Mirasol(recipe.model, recipe.clip, VOCABULARY, recipe.loss.weights)
    media, text = random_media(recipe.clip, 1), random_text(1, 4, VOCABULARY)
    if not audio:  # as training does: what only audio needs is frozen
        model.audio_tokens.requires_grad_(False)
        media = replace(media, mel_BTZS=None)
    media, optimizer = media.with_hidden(), build_optimizer(model, recipe.train)

    def run() -> None:
        model(media, text, recipe.loss.weights).total(recipe.loss.weights).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="activitynet")
    parser.add_argument("--preset", default="small", help="of the steps that are timed")
    parser.add_argument("--frames", type=int, default=32)
    args = parser.parse_args()
    import torch

    from mirasol_cli.config.reader import load_recipe
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.training.flops import forward_flops

    torch.set_num_threads(args.threads)
    report = Report("without_audio", "A step without audio", smoke=args.smoke)
    own = load_recipe(args.recipe)
    with torch.device("meta"):
        model = Mirasol(own.model, own.clip, VOCABULARY, own.loss.weights)
    flops = {audio: sum(forward_flops(model, video=True, audio=audio, questions=4, tokens=32).values()) for audio in (True, False)}
    sizes = ["model.preset=demo", "clip.size=64"] if args.smoke else [f"model.preset={args.preset}"]
    small = load_recipe(args.recipe, [*sizes, f"clip.frames={args.frames}", f"clip.chunks={max(1, args.frames // 8)}"])
    works = {"with audio": step(small, True), "without": step(small, False)}
    timings = alternate(works, 1 if args.smoke else args.rounds, patience=args.patience)
    saved = {"FLOPs": flops[False] / flops[True], "time": timings["without"].median / timings["with audio"].median}
    for name, timing in timings.items():
        report.row(case=name, frames=args.frames, preset=args.preset, **timing.plain())
    report.row(case="without / with", flops=saved["FLOPs"], time=saved["time"])
    report.table(
        ["what", "with audio", "without", "without / with"],
        [
            [f"`{args.recipe}`, GFLOP forward", flops[True] / 1e9, flops[False] / 1e9, verdict(saved["FLOPs"], 0.8, at_most=True)],
            [f"`{args.preset}`, {args.frames} frames: step, s", timings["with audio"], timings["without"], saved["time"]],
        ],
    )
    report.write()


if __name__ == "__main__":
    main()
