"""How much of a text batch is padding, with and without `data.length_window`, on made sets of captions and of questions.

    python tests/benchmarks/text_padding.py [--clips 20000]

Contexts have log-normal lengths (median 60 words, up to 300, none for one clip in five), captions 8 to 40 words, questions 4 to 12 with
answers of 1 to 3, 1 to 10 of them to a clip. Batches are those that processes of a run would get: 256 clips on 8 GPUs, 32 at once; the
vocabulary is trained on these texts. A step takes as long as the process with most text tokens, padding among them: the last column.
"""

from __future__ import annotations

import random
import sys

from common import ROOT, Report, arguments
from ten_million import WORDS

GPUS, BATCH, STEPS = 8, 256, 64
WINDOWS = (1, 4, 16, 64)


def made_texts(kind: str, clips: int) -> list[dict]:
    draw, rows = random.Random(0), []

    def words(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    for clip in range(clips):
        length = 0 if draw.random() < 0.2 else min(300, int(draw.lognormvariate(4.1, 0.8)))
        context = " ".join(draw.choices(WORDS, k=length))
        captions = [("describe the clip", words(8, 40))]
        pairs = captions if kind == "captions" else [(words(4, 12), words(1, 3)) for _ in range(draw.randint(1, 10))]
        for number, (question, answer) in enumerate(pairs):
            rows.append(
                {"id": f"{clip}-{number}", "clip": clip, "question": question, "answer": answer, "references": [], "choices": [],
                 "type": "", "context": context}
            )  # fmt: skip
    return rows


def padding(kind: str, clips: int, steps: int) -> dict[int, dict[str, float]]:
    """Of every window."""
    import numpy as np

    from mirasol_cli.batches.length_windows import LengthWindows
    from mirasol_cli.batches.order import ClipTexts, UnitOrder
    from mirasol_cli.model.config import TextConfig
    from mirasol_cli.shards.columns import Texts
    from mirasol_cli.text.prompt import encode_prompt, encode_target
    from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary

    texts, limits = Texts.measured(made_texts(kind, clips)), TextConfig(max_context=512, max_question=64, max_answer=64)
    vocabulary = Vocabulary(train_vocabulary([*WORDS, "context: question: answer: describe the clip"] * 20, 300))
    tokens = [
        len(encode_prompt(vocabulary, text["question"], text["context"], limits).ids)
        + len(encode_target(vocabulary, text["answer"], limits).ids)
        for text in texts
    ]
    plain = UnitOrder([ClipTexts.gathered(texts.clip, np.arange(len(texts)))])
    found, each = {}, BATCH // GPUS
    for window in WINDOWS:
        order = plain if window == 1 else LengthWindows(plain, [texts], batch=BATCH, window=window, seed=0)
        valid, padded = 0, np.zeros((steps, GPUS))
        for step in range(steps):
            for rank in range(GPUS):
                units = [order.unit(step * BATCH + rank * each + k) for k in range(each)]
                lengths = [[tokens[position] for position in unit.text_indices] for unit in units]
                valid += sum(map(sum, lengths))
                padded[step, rank] = each * max(map(len, lengths)) * max(map(max, lengths))  # B Q L
        most, mean = padded.max(axis=1), padded.mean(axis=1)
        found[window] = {
            "padding": 1 - valid / float(padded.sum()), "tokens_per_clip": float(padded.sum()) / (steps * BATCH),
            "longest_over_mean": float(most.sum() / mean.sum()), "longest_per_clip": float(most.mean()) / each,
        }  # fmt: skip
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=20_000)
    args = parser.parse_args()
    steps = 4 if args.smoke else STEPS
    report = Report("text_padding", "Padding of text batches, with and without `data.length_window`", smoke=args.smoke)
    for kind in ("captions", "questions"):
        rows = []
        for window, found in padding(kind, args.clips, steps).items():
            report.row(set=kind, window=window, **found)
            rows.append([window, f"{found['padding']:.1%}", found["tokens_per_clip"], found["longest_per_clip"]])
        report.table([f"{kind}: window", "padding", "tokens a clip, with padding", "the same, of the process with most in a step"], rows)
    report.text(
        f"The first {steps} steps of the order. Where all texts are short, a window gains nothing: it is off (1) unless a recipe sets it."
    )
    report.write()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
