"""What a model has learned about structures, as vectors: `embed` writes the embeddings or draws a map of them, and
`nearest` finds similar structures."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.table import Table

from eutectic.atoms import EutecticError
from eutectic.cli.app import app
from eutectic.cli.options import ELEMENTS
from eutectic.cli.show import console, exit_if_left_out, plain, show_left_out


@app.command()
def embed(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or `eutectic-small`.")],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads, or the path or name of a store.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Parquet file to write.")] = None,
    per: Annotated[
        str, typer.Option(help="One embedding per `structure` (mean over atoms) or per `atom`.")
    ] = "structure",
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map", help="Write a map of the embeddings: a page (.html), or chemiscope input (.json, .json.gz)."
        ),
    ] = None,
    points: Annotated[int, typer.Option(min=2, help="Maximum number of points in the map, drawn at random.")] = 3000,
    task: Annotated[str | None, typer.Option(help="Use this task's graph settings instead of the model's.")] = None,
    elements: Annotated[str | None, typer.Option(help=ELEMENTS)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
) -> None:
    """Embed structures or atoms: the invariant features of the model's backbone.

    The Parquet file has the columns `structure` (index in the file), `n_atoms` (or `atom` and `number`) and
    `embedding`. It appears when it is complete; until then, and after an interruption, the embeddings are in
    `NAME.partial.parquet`. A map shows principal components, and UMAP if the package umap-learn is installed.

    **Examples**

    `eutectic embed eutectic-small my.xyz -o embeddings.parquet --map map.html`

    `eutectic embed eutectic-small qm9_sample --map map.json.gz`

    `eutectic embed runs/mine my.xyz --per atom -o atoms.parquet`
    """
    from typing import get_args

    import numpy as np

    from eutectic.checkpoints.model import load_model
    from eutectic.console import LINE_EVERY, ProgressBar
    from eutectic.data.formats.elements import parse as parse_elements
    from eutectic.predict.embedding import MapSample, Per, embed_file, graph_of, table_schema, table_writer
    from eutectic.predict.files import Write, about_how_many
    from eutectic.predict.outputs import check_output, writing_table
    from eutectic.report.map_page import FORMATS, write_map
    from eutectic.train.runtime.stop import StopFlag

    if out is None and map_ is None:
        raise EutecticError("embed", "nothing to write", "--out FILE.parquet, --map FILE, or both", "give one")
    for option, path, endings in (("--out", out, [".parquet"]), ("--map", map_, list(FORMATS))):
        if path is None:
            continue
        if not path.name.endswith(tuple(endings)):
            raise EutecticError(
                f"{option} {path}", f"the name {path.name}", f"a name that ends in {' or '.join(endings)}", "rename it"
            )
        check_output(path, structures)
    if per not in get_args(Per):
        raise EutecticError("--per", repr(per), "structure or atom", "choose one of these")
    chosen = cast(Per, per)
    trained = load_model(model)
    graph = graph_of(trained, task)
    width = trained.module.backbone.atom_width
    sample = None if map_ is None else MapSample(points)
    with ExitStack() as stack:
        stop = stack.enter_context(StopFlag().listening())
        writers: list[Write[np.ndarray]] = [] if sample is None else [sample.add]
        if out is not None:
            schema = table_schema(width, chosen, model=str(model), source=str(structures), task=task or "")
            writers.append(table_writer(stack.enter_context(writing_table(out, schema)), chosen))
        bar = stack.enter_context(ProgressBar("embedding", about_how_many(structures), every=LINE_EVERY))
        summary = embed_file(
            trained,
            structures,
            writers,
            per=chosen,
            task=task,
            batch_size=batch_size,
            elements=parse_elements(elements),
            stop=lambda: stop.raised,
            on_done=bar.advance,
        )
    written = [str(path) for path in (out, map_) if path is not None]
    if sample is not None and map_ is not None:
        write_map(map_, sample, model=str(model), source=structures.name, cutoff=graph.cutoff)
    console.print(
        plain(f"{summary.predicted} structures, {width} features per {per}: {', '.join(written)}"), soft_wrap=True
    )
    exit_if_left_out(summary)


@app.command()
def nearest(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or `eutectic-small`.")],
    query: Annotated[Path, typer.Argument(help="File with the query structures.")],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads, or the path or name of a store.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Number of neighbours per query.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    task: Annotated[str | None, typer.Option(help="Use this task's graph settings instead of the model's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
) -> None:
    """Find the structures of a file or store whose embeddings are nearest to those of query structures.

    Distances are Euclidean, also given relative to the spread of the file (the root mean square distance of its
    structures from their mean): 0 for the same structure, more than 1 for one unlike any other.

    **Examples**

    `eutectic nearest eutectic-small query.xyz qm9_sample`

    `eutectic nearest runs/mine query.xyz train.xyz -k 10 --json`
    """
    import numpy as np

    from eutectic.checkpoints.model import load_model
    from eutectic.console import LINE_EVERY, ProgressBar
    from eutectic.predict.embedding import Nearest, embed_file
    from eutectic.predict.files import Read
    from eutectic.report.drawing import formula
    from eutectic.train.runtime.stop import StopFlag

    trained = load_model(model)
    queries: list[tuple[Read, np.ndarray]] = []

    def note(read: Read, outcome: np.ndarray | EutecticError) -> None:
        if isinstance(outcome, EutecticError):
            raise outcome
        queries.append((read, outcome))

    with StopFlag().listening() as stop:
        embed_file(trained, query, [note], task=task, batch_size=batch_size, stop=lambda: stop.raised)
        search = Nearest(np.stack([embedding for _, embedding in queries]), count)
        with ProgressBar("searching", every=LINE_EVERY) as bar:
            summary = embed_file(
                trained,
                structures,
                [search.add],
                task=task,
                batch_size=batch_size,
                stop=lambda: stop.raised,
                on_done=bar.advance,
            )
    spread = search.moments.spread
    rows = [
        {
            "query": read.index,
            "structure": neighbour.index,
            "formula": formula(neighbour.structure),
            "distance": neighbour.distance,
            "relative_distance": neighbour.distance / spread if spread else None,
        }
        for (read, _), found in zip(queries, search.found, strict=True)
        for neighbour in found
    ]
    if as_json:
        sys.stdout.write(json.dumps({"spread": spread, "neighbours": rows}, indent=1) + "\n")
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("query", "structure", "formula", "distance", "distance / spread"):
            table.add_column(heading, justify="left" if heading == "formula" else "right")
        for row in rows:
            relative = "–" if row["relative_distance"] is None else f"{row['relative_distance']:.3f}"
            table.add_row(
                str(row["query"]), str(row["structure"]), str(row["formula"]), f"{row['distance']:.4g}", relative
            )
        console.print(table)
    show_left_out(summary)
