"""Questions per second by the number of questions per clip: the media are encoded once, whatever is asked about them.

    python tests/benchmarks/encode_once.py [--preset small] [--threads N]

Training: forward, backward and optimizer step on one clip of 128 frames at 224 px with 1, 5, 10 or 20 questions of 32 tokens.
Evaluation: encoding of the clip, then greedy answers of 6 tokens to all its questions.
"""

from __future__ import annotations

from common import Report, alternate, arguments, random_media, random_text, resolved_model, verdict

VOCABULARY = 8000
QUESTIONS = (1, 5, 10, 20)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--preset", default="small")
    args = parser.parse_args()
    import torch

    from mirasol_cli.config.schema import TrainRecipe
    from mirasol_cli.inference.decoding import greedy
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.training.optimizer import build_optimizer

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    preset, overrides = ("demo", ["clip.frames=32", "clip.chunks=4", "clip.size=64"]) if args.smoke else (args.preset, [])
    config, geometry = resolved_model(preset, *overrides)
    model, weights = Mirasol(config, geometry, VOCABULARY), {"text": 10.0, "latent": 1.0, "video": 1.0}
    optimizer = build_optimizer(model, TrainRecipe())
    media = random_media(geometry, 1)

    def train(count: int) -> None:
        model.train()
        model(media, random_text(1, count, VOCABULARY), weights).total(weights).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.inference_mode()
    def evaluate(count: int) -> None:
        model.eval()
        memory = model.text_kv(model.encode(media))
        prompts = [random_text(1, count, VOCABULARY, length=16).tokens_BQL[0].tolist()]
        greedy(model.text, memory, prompts, eos=-1, max_tokens=6)

    report = Report("encode_once", f"Encode once: questions per second (`{preset}`, {geometry.frames} frames)", smoke=args.smoke)
    rounds = 1 if args.smoke else args.rounds
    for stage, work in (("training", train), ("evaluation", evaluate)):
        works = {str(count): (lambda count=count, work=work: work(count)) for count in QUESTIONS}
        timings = alternate(works, rounds, patience=args.patience)
        speed = {count: count / timings[str(count)].median for count in QUESTIONS}
        for count in QUESTIONS:
            report.row(stage=stage, questions=count, questions_per_s=speed[count], **timings[str(count)].plain())
        report.table(
            [f"{stage}: questions per clip", "seconds per clip", "questions/s", "times 1 question"],
            [[count, timings[str(count)], speed[count], speed[count] / speed[1]] for count in QUESTIONS],
        )
        report.text(f"{stage.capitalize()} with 10 questions against 1: {verdict(speed[10] / speed[1], 6.0, at_most=False)}.")
    report.write()


if __name__ == "__main__":
    main()
