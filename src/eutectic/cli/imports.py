"""Converting checkpoints of other programs into models, once and without executing any code in them: one command per
program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli.app import app
from eutectic.cli.show import console, show_facts

if TYPE_CHECKING:
    from eutectic.checkpoints.imported import ImportReport


@app.command("import-jmp")
def import_jmp(
    checkpoint: Annotated[Path, typer.Argument(help="`jmp-s.pt`, `jmp-l.pt`, or another file with that layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write; an older model is replaced.")],
    raw: Annotated[bool, typer.Option("--raw", help="Use the weights of the last step instead of the EMA.")] = False,
) -> None:
    """Convert a pre-trained checkpoint of the original JMP, without executing any code in it.

    **Examples**

    `eutectic import-jmp jmp-s.pt -o models/jmp-s`

    `eutectic predict models/jmp-s my.xyz --task oc20 -o predicted.xyz`
    """
    from eutectic.checkpoints.jmp import read_published_checkpoint
    from eutectic.checkpoints.model import save_model

    model, report = read_published_checkpoint(checkpoint, raw=raw)
    save_model(out, model)
    _show_import(report, out)


@app.command("import-fairchem")
def import_fairchem(
    checkpoint: Annotated[
        Path, typer.Argument(help="`gemnet_oc_base_s2ef_all.pt`, or another GemNet-OC of fairchem 1.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write; an older model is replaced.")],
    scales: Annotated[
        Path | None,
        typer.Option(help="File with the scale factors (.pt or .json), if the checkpoint lacks them."),
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(help="oc20, oc22, oc20+oc22 or other, if this cannot be inferred from the checkpoint."),
    ] = None,
) -> None:
    """Convert a checkpoint of the Open Catalyst Project's GemNet-OC, without executing any code in it.

    The model gives the same predictions as fairchem. Published checkpoints can also be given by name and are
    downloaded; `eutectic models` lists them.

    **Examples**

    `eutectic import-fairchem gemnet_oc_base_s2ef_all_md.pt -o models/oc20`

    `eutectic import-fairchem old.pt --scales gemnet-oc.pt -o models/old`

    `eutectic predict models/oc20 surfaces.xyz -o predicted.xyz`
    """
    from eutectic.checkpoints.fairchem import read_fairchem_checkpoint
    from eutectic.checkpoints.model import save_model

    model, report = read_fairchem_checkpoint(checkpoint, scales=scales, trained_on=trained_on)
    console.print(f"licence: {model.provenance['licence']}", soft_wrap=True, highlight=False)
    save_model(out, model)
    _show_import(report, out)


def _show_import(report: ImportReport, out: Path) -> None:
    console.print(f"{report.size}, {report.parameters:,} parameters")
    for heading, rows in (("taken", report.taken), ("left", report.left), ("missing", report.missing)):
        console.print(f"[bold]{heading}[/]")
        show_facts(dict(rows))
    console.print(f"model: {out}")
