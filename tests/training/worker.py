"""One process of a distributed training run, for tests: `python -m tests.training.worker RUN SHARDS STAGE [--resume] [overrides...]`.

The environment says rank and world size, as torchrun would.
"""

import json
import signal
import sys
from pathlib import Path

from mirasol_cli.errors import MirasolError
from mirasol_cli.training.loop import train
from tests import synthetic


def main(arguments: list[str]) -> int:
    run, shards, stage, *rest = arguments
    resume = "--resume" in rest
    overrides = [word for word in rest if word != "--resume"]
    try:
        result = train(synthetic.recipe(Path(run), Path(shards), *overrides), stage=stage, resume=resume, device="cpu", threads=1)
    except MirasolError as error:
        print(f"{error.kind}: {error.message} ({error.hint})", file=sys.stderr, flush=True)
        return error.exit_code
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup, which is inherited
    sys.exit(main(sys.argv[1:]))
