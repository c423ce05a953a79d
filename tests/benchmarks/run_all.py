"""Every benchmark in one call, on a quiet machine, and RESULTS.md from their parts: about 40 minutes on two cores.

    MIRASOL_SHARED=DIR python tests/benchmarks/run_all.py --rival-python PYTHON

RESULTS.md = RESULTS_HEAD.md (what changed and why, written by hand) and the parts under results/. `gpu.py`,
`ten_million.py`, `caption_lists.py`, `many_gpus.py`, `one_hour.py` and `public_weights.py` are calls of their own (they need a GPU, much
time or disk, a trained checkpoint, 20 GiB of memory); their parts are
taken as they lie there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import RESULTS, environment

HERE = Path(__file__).resolve().parent
BENCHMARKS = (
    ("rival", ["--rounds", "5"]),
    ("encode_once", ["--rounds", "2"]),
    ("eval_questions", ["--rounds", "2"]),
    ("length", ["--rounds", "3"]),
    ("ttm_against_transformer", ["--rounds", "5"]),
    ("shard_reading", ["--rounds", "5"]),
    ("prepare_speed", ["--rounds", "3", "--sources", "24"]),
    ("prepare_real_size", ["--rounds", "3", "--sources", "48"]),
    ("startup", ["--rounds", "7"]),
    ("save_stall", ["--rounds", "2"]),
    ("without_audio", ["--rounds", "5"]),
    ("full_size", ["--cases", "small,slice"]),
    ("store_reading", ["--rounds", "3"]),
    ("text_padding", []),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival-python", help="Python that has the rival installed; without it that part is left out")
    parser.add_argument("--only", help="names, comma separated")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds to wait for a quiet machine per sample")
    parser.add_argument("--smoke", action="store_true", help="the smallest form of each; nothing is written")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else [name for name, _ in BENCHMARKS]
    failed = []
    for name, words in BENCHMARKS:
        if name not in wanted or (name == "rival" and not args.rival_python):
            continue
        extra = ["--rival-python", args.rival_python] if name == "rival" else []
        options = ["--smoke"] if args.smoke else words
        start = time.monotonic()
        command = [sys.executable, str(HERE / f"{name}.py"), *options, *extra, "--patience", str(args.patience)]
        code = subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL, check=False).returncode
        print(f"{name}: {'done' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.append(name)
    if not args.smoke:
        assemble()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def assemble() -> None:
    """RESULTS.md from its head and the parts there are, in the order of BENCHMARKS; last those that are calls of their own."""
    head = (HERE / "RESULTS_HEAD.md").read_text()
    names = (*(name for name, _ in BENCHMARKS), "ten_million", "caption_lists", "many_gpus", "one_hour", "public_weights", "gpu")
    parts = [RESULTS / f"{name}.md" for name in names]
    text = [head.strip(), *(part.read_text().strip() for part in parts if part.is_file())]
    (HERE / "RESULTS.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
