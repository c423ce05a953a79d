"""What `mirasol eval` costs with 1 and with 10 questions per clip: goal, at most 1.6 times as much.

    python tests/benchmarks/eval_questions.py [--rounds 2] [--clips 4] [--smoke]

The whole command is timed, from loading the checkpoint to results.json, on made-up shards: the `small` preset at the default
geometry (128 frames in 16 chunks of 224 px), 8,000 pieces of vocabulary, questions of 7 to 12 words. The weights are random,
so no answer ever ends and each takes all of its 32 tokens: real answers have one to five, so this is the worst case.

CPU time is compared, not wall time: other processes cannot disturb it much.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, Report, arguments, resolved_model, short, verdict

GOAL = 1.6
FEW, MANY = 1, 10


def main() -> None:
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--clips", type=int, default=4, help="clips of the split, one batch")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    preset, overrides, clips = "small", [], options.clips
    if options.smoke:
        preset, overrides, clips = "demo", ["clip.frames=32", "clip.chunks=4", "clip.size=96"], 2
    report = Report("eval_questions", "Evaluation with 1 and with 10 questions per clip", smoke=options.smoke)
    with tempfile.TemporaryDirectory() as place:
        recipes = {questions: made_up_run(Path(place) / str(questions), preset, overrides, clips, questions) for questions in (FEW, MANY)}
        seconds: dict[int, list[float]] = {FEW: [], MANY: []}
        for _ in range(2 if options.smoke else options.rounds):
            for questions, recipe in recipes.items():
                seconds[questions].append(cpu_seconds(recipe))
                report.row(preset=preset, clips=clips, questions=questions, cpu_s=round(seconds[questions][-1], 3))
    least = {questions: min(values) for questions, values in seconds.items()}
    rows = [(questions, short(least[questions] / clips), " ".join(map(short, values))) for questions, values in seconds.items()]
    report.table(["questions per clip", "CPU s per clip, best", f"CPU s of all {clips} clips, each round"], rows)
    report.text(f"Ratio of the best rounds: {verdict(least[MANY] / least[FEW], GOAL, at_most=True)}.")
    report.write(f"Preset {preset}, {options.threads} threads, float32, greedy, 32 tokens an answer (no answer of random weights ends).")


def cpu_seconds(recipe) -> float:  # type: ignore[no-untyped-def]
    from mirasol_cli.evaluation.command import evaluate
    from mirasol_cli.evaluation.job import Options

    (Path(recipe.run_dir) / "eval" / "test" / "predictions.jsonl").unlink(missing_ok=True)
    start = time.process_time()
    evaluate(recipe, Options(report=False, device="cpu"))
    return time.process_time() - start


def made_up_run(folder: Path, preset: str, overrides: list[str], clips: int, questions: int):  # type: ignore[no-untyped-def]
    """A recipe with its shards and a checkpoint of random weights below `folder`."""
    import json

    import torch

    from mirasol_cli.checkpoints.folder import Contents, write_checkpoint
    from mirasol_cli.checkpoints.load import model_tensors
    from mirasol_cli.config.reader import dump_recipe
    from mirasol_cli.config.schema import DataRecipe, EvalRecipe, Recipe, RunRecipe
    from mirasol_cli.fields import to_plain
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary
    from tests.evaluation.tiny import write_texts_split

    config, geometry = resolved_model(preset, *overrides)
    rng = random.Random(0)
    words = ["".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 4))) for _ in range(20_000)]
    vocabulary = Vocabulary(train_vocabulary([" ".join(words[i : i + 10]) for i in range(0, len(words), 10)], 8000))
    texts = [
        {"id": f"{clip}-{q}", "clip": clip, "question": " ".join(rng.sample(words, rng.randint(7, 12))), "answer": rng.choice(words)}
        for clip in range(clips)
        for q in range(questions)
    ]
    write_texts_split(folder / "shards" / "test", texts, [f"v{clip}.mp4" for clip in range(clips)], geometry=geometry)
    recipe = Recipe(
        name="benchmark", data=DataRecipe(shards=str(folder / "shards")), clip=geometry, model=config,
        eval=EvalRecipe(batch_size=clips), run=RunRecipe(dir=str(folder / "run")),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Mirasol(config, geometry, vocabulary.size)
    plain = {"schema": 1, "clip": geometry.to_plain(), "model": to_plain(config), "losses": ["text", "latent", "video"]}
    plain["vocab_size"] = vocabulary.size
    files = {
        "config.json": json.dumps(plain).encode(), "recipe.yaml": dump_recipe(recipe).encode(),
        "state.json": json.dumps({"step": 0}).encode(), "tokenizer.model": vocabulary.model_bytes,
    }  # fmt: skip
    write_checkpoint(folder / "run" / "checkpoints", 0, Contents(files, {"model": model_tensors(model)}))
    return recipe


if __name__ == "__main__":
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    main()
