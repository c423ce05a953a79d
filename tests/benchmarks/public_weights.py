"""One training step of the recipes that start from public weights, at 32 frames, with random weights of the real sizes.

    python tests/benchmarks/public_weights.py --folder DIR

Folders in Hugging Face layout are made below DIR with `transformers` (1.7 GB, kept for the next call), shards of random media beside
them. Each case is a process of its own: the run is set up as `mirasol finetune` does it, then two steps are taken. Time is that
of the second; memory is the peak of the process from before the first step on, loading left out. One clip in float32 shows what LoRA and
freezing save; one and three clips in bf16, the precision of a GPU, what a clip costs and with it a GPU's micro batch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from common import Report, arguments, in_child, peak_mib, short

RECIPES = {"vggsound-public": [], "activitynet-public": ["clip.frames=32", "clip.chunks=4"]}
FROZEN = "[video_tokens, video_encoder.blocks, video_encoder.norm, audio_tokens, audio_encoder.blocks, audio_encoder.norm, "
FROZEN += "text.embed_tokens, text.layers, text.norm]"
VARIANTS = {
    "as shipped": (1, []),
    "the same parts frozen, no LoRA": (1, ["model.lora.parts=[]", f"freeze={FROZEN}"]),
    "all weights trained": (1, ["model.lora.parts=[]", "freeze=[]"]),
    "bf16, one clip": (1, ["train.precision=bf16"]),
    "bf16, three clips": (3, ["train.precision=bf16"]),
}
"""Name -> clips of a step, and overrides of the recipe."""
PIECES = 151_665  # of Qwen2.5's tokenizer


def make_folders(folder: Path) -> None:
    """A folder for every model that the recipes start from, named as its repository is."""
    import torch

    from tests.checkpoints.pretrained import PUBLISHED, imported_transformers, published_config, whisper_positions

    with imported_transformers() as transformers:
        for name, (kind, _) in PUBLISHED.items():
            target = folder_of(folder, name)
            if (target / "config.json").exists():
                continue
            torch.manual_seed(0)
            model = getattr(transformers, f"{kind}{'ForCausalLM' if kind == 'Qwen2' else 'Model'}")(published_config(transformers, name))
            if kind == "Whisper":
                positions = model.encoder.embed_positions.weight
                with torch.no_grad():
                    positions.copy_(whisper_positions(*positions.shape))
            if kind == "Qwen2":
                model.to(torch.bfloat16)  # as it is published
                make_tokenizer(target)
            model.save_pretrained(target)


def make_tokenizer(folder: Path) -> None:
    """A tokenizer.json of Qwen2.5's size: bytes, all pairs of bytes, and as many runs of three as there is room for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(product(alphabet, alphabet))
    merges = [*pairs, *((first + second, third) for (first, second), third in product(pairs, alphabet))]
    merges = merges[: PIECES - 1 - len(alphabet)]
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *(first + second for first, second in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


def folder_of(folder: Path, name: str) -> Path:
    return folder / name.rpartition("/")[2]


def recipe_of(name: str, variant: str, folder: Path, run: Path) -> Any:
    from mirasol_cli.config.reader import load_recipe

    shipped = load_recipe(name)
    clips, changes = VARIANTS[variant]
    init = {key: folder_of(folder, getattr(shipped.init, key)) for key in ("video_encoder", "audio_encoder", "text_decoder")}
    return load_recipe(
        name,
        [
            *RECIPES[name], *changes, *(f"init.{key}={path}" for key, path in init.items()), f"run.dir={run}",
            f"data.shards={folder / name}", "data.task=qa", f"train.global_batch_size={clips}",
            "train.micro_batch_size=null", "train.warmup_steps=0",
        ],
    )  # fmt: skip


def step(name: str, variant: str, folder: Path, threads: int) -> dict[str, Any]:
    """Two steps."""
    import torch

    from mirasol_cli.runtime.distributed import joined_world
    from mirasol_cli.runtime.signals import SignalFlags
    from mirasol_cli.training.loop import train_step
    from mirasol_cli.training.setup import started_run
    from tests import synthetic

    torch.set_num_threads(threads)
    run_folder = Path(tempfile.mkdtemp(dir=folder)) / "run"
    recipe = recipe_of(name, variant, folder, run_folder)
    if not (folder / name).exists():
        synthetic.write_split(folder / name / "train", 4, geometry=recipe.clip, questions=recipe.data.questions_per_clip)
    try:
        with (
            joined_world(torch.device("cpu"), 60) as world,
            SignalFlags() as signals,
            started_run(recipe, "finetune", world, resume=False) as run,
        ):
            run.model.train()
            before = forget_peak()
            share = range(recipe.train.global_batch_size)
            first = train_step(run, run.data.micro_batches(0, share), signals)
            batches, began = run.data.micro_batches(1, share), time.perf_counter()
            second = train_step(run, batches, signals)
            parameters = list(run.model.parameters())
            return {
                "step_s": time.perf_counter() - began, "peak_gib": peak_mib() / 1024, "before_gib": before / 1024,
                "parameters": sum(p.numel() for p in parameters), "trained": sum(p.numel() for p in parameters if p.requires_grad),
                "losses": [first.loss, second.loss], "questions": second.questions, "text_tokens": second.text_shape[2],
            }  # fmt: skip
    finally:
        shutil.rmtree(run_folder.parent)


def forget_peak() -> float:
    """Start the count of the peak anew; returns MiB in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the models and shards are made")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma separated")
    parser.add_argument("--case", nargs=2, metavar=("RECIPE", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.case:
        print(json.dumps(step(*args.case, folder, args.threads)))
        return
    make_folders(folder)
    report, found = Report("public_weights", "From public weights: one training step at 32 frames, real sizes"), {}
    for name in args.recipes.split(","):
        for variant in VARIANTS:
            words = ["--folder", str(folder), "--case", name, variant, "--threads", str(args.threads)]
            found[name, variant] = in_child(__file__, *words, timeout=1800)
            report.row(recipe=name, variant=variant, **found[name, variant])
    write(report, found)


def write(report: Report, found: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The tables, of what `step` found by recipe and variant."""
    rows, costs = [], []
    for name in dict.fromkeys(name for name, _ in found):
        whole = found[name, "all weights trained"]
        for variant in list(VARIANTS)[:3]:
            values = found[name, variant]
            trained = f"{values['trained'] / 1e6:.0f} of {values['parameters'] / 1e6:.0f} M"
            shares = [short(values[key] / whole[key]) for key in ("peak_gib", "step_s")]
            rows.append([name, variant, trained, values["peak_gib"], shares[0], values["step_s"], shares[1]])
        one, three = found[name, "bf16, one clip"]["peak_gib"], found[name, "bf16, three clips"]["peak_gib"]
        further = (three - one) / 2
        costs.append([name, one, three, further, one + 7 * further])
    report.text("One clip, float32:")
    report.table(["recipe", "", "trained", "peak GiB", "of all trained", "step s", "of all trained"], rows)
    report.text("As shipped, in bf16, peak GiB:")
    report.table(["recipe", "one clip", "three clips", "a further clip", "eight clips, by that"], costs)
    report.write(
        "Random weights in the layout and size of SigLIP base, AST or Whisper base, and Qwen2.5-0.5B. The peak holds the program (about "
        "0.4 GiB), weights, gradients, both moments and activations, in bf16 also copies of the weights. activitynet-public is cut to 32 "
        "frames in 4 chunks; its 8 questions share the clip. Times are single steps."
    )


if __name__ == "__main__":
    main()
