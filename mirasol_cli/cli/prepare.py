"""`mirasol prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mirasol_cli.cli.options import Json, Limit, Overrides, complete_dataset, complete_recipe
from mirasol_cli.runtime import console


class PrepareCommand(TyperCommand):
    """`prepare`, whose help ends in the licences of the data sets (their readers are imported for it only then)."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from mirasol_cli.datasets.registry import licences

        with formatter.section("Licences of the data sets"):
            formatter.write_dl(list(licences().items()))


def prepare(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Name of a data set, or a JSONL or CSV manifest.", autocompletion=complete_dataset)
    ],
    overrides: Overrides = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder with annotations and videos. Default: data/DATASET, or the manifest's folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder. Default: data/NAME/shards/GEOMETRY (NAME: data set or manifest).")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe that sets the clip geometry (`clip:`).", autocompletion=complete_recipe)
    ] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Prepare only this split. Repeatable.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Prepare only texts of this task: qa, mc, oe, caption or label.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Number of decoding processes. Default: all cores.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="local|ray", help="Run workers on this machine or on a Ray cluster.")
    ] = "local",
    part: Annotated[
        str | None, typer.Option("--part", metavar="I/N", help="Prepare part I of N (array jobs); afterwards run --merge.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Verify all parts and write the index.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry clips that failed earlier.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count clips, estimate size and time; write nothing.")] = False,
    inspect: Annotated[int, typer.Option("--inspect", min=0, metavar="N", help="Draw contact sheets of N clips per split.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the checksum of every file.")] = False,
    max_failed: Annotated[float, typer.Option("--max-failed", metavar="PCT", help="Highest percentage of failed clips to accept.")] = 1.0,
    strict: Annotated[bool, typer.Option("--strict", help="Count missing files as failed.")] = False,
    keep_truncated: Annotated[bool, typer.Option("--keep-truncated", help="Keep the readable part of truncated files.")] = False,
    allow_audio_only: Annotated[
        bool, typer.Option("--allow-audio-only", help="Accept files without video; their video is masked.")
    ] = False,
    classes: Annotated[str, typer.Option("--classes", metavar="31|32|34", help="kinetics-sounds: size of the class list.")] = "32",
    held_out: Annotated[float, typer.Option("--held-out", metavar="SHARE", help="vggsound: fraction of train to hold out as val.")] = 0.02,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Convert videos and annotations to shards.

    Unreadable files are logged in failures.jsonl and skipped. An interrupted run resumes when started again.

    \b
    Examples:
      mirasol prepare demo
      mirasol prepare demo-long clip.frames=512 clip.chunks=64
      mirasol prepare msrvtt --root /videos/msrvtt --workers 16
      mirasol prepare my.jsonl --root my-videos --out shards clip.size=112
      mirasol prepare vggsound --part 3/8        (afterwards, once: mirasol prepare vggsound --merge)
    """
    from mirasol_cli.datasets.example import DatasetOptions
    from mirasol_cli.prepare.command import prepare as run_prepare

    result = run_prepare(
        dataset,
        root=root,
        out=out,
        recipe=recipe,
        overrides=overrides or (),
        splits=split or (),
        task=task,
        workers=workers,
        engine=engine,
        part=part,
        merge=merge,
        retry_failed=retry_failed,
        dry_run=dry_run,
        inspect=inspect,
        verify=verify,
        max_failed=max_failed,
        strict=strict,
        keep_truncated=keep_truncated,
        allow_audio_only=allow_audio_only,
        limit=limit,
        options=DatasetOptions(classes=classes, held_out=held_out),
        say=console.say,
    )
    if json:
        console.print_json(result)
