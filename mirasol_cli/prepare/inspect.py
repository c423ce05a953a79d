"""Contact sheets of prepared clips (`prepare --inspect`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirasol_cli.media.preview import contact_sheet
from mirasol_cli.shards.reader import ShardFolder


def write_contact_sheets(out: Path, splits: Sequence[str], number: int) -> list[Path]:
    """`<out>/inspect/<split>-<clip>.png` of `number` clips of each split, spread evenly over the kept ones."""
    paths = []
    for name in splits:
        split = ShardFolder(out).split(name)
        texts: dict[int, list[str]] = {}
        for task in split.tasks:
            for text in split.texts(task):
                context = f" [{text['context']}]" if text["context"] else ""
                texts.setdefault(text["clip"], []).append(f"{task}: {text['question']} -> {text['answer']}{context}")
        count = min(number, len(split.kept))
        for clip in (split.kept[k * len(split.kept) // count] for k in range(count)):
            path = out / "inspect" / f"{name}-{clip:06d}.png"
            path.parent.mkdir(exist_ok=True)
            contact_sheet(split, clip, texts.get(clip, [])).save(path)
            paths.append(path)
    return paths
