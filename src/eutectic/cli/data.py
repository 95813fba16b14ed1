"""Commands on data: list, prepare, info, check, generate, splits."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.padding import Padding
from rich.table import Table

from eutectic.atoms import EutecticError
from eutectic.cli.app import data_app, fail
from eutectic.cli.options import ELEMENTS, pairs
from eutectic.cli.show import console, plain, shared, show_facts, show_report

DEFINE = "Custom property, NAME=UNIT[,atom][,vector|tensor|class][,extensive]; repeatable."


@data_app.command("list")
def data_list(as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False) -> None:
    """List the data sets: those shipped with the package, and those made by `prepare`.

    `--json` adds citations, notes, and the files that `prepare` downloads.

    **Examples**

    `eutectic data list`

    `eutectic data list --json`
    """
    from eutectic.data.catalogue import families, listing

    rows = listing()
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
        return
    for name, members in families(rows).items():
        ready = [member for member in members if member.structures is not None]
        if len(members) > 1:
            # One entry per family, e.g. all molecules of rMD17.
            state, title = f"{len(ready)} of {len(members)} prepared", ", ".join(m.name for m in members)
        else:
            (row,) = members
            state = f"{row.structures:,} structures, {(row.size_bytes or 0) / 1e6:,.1f} MB" if ready else "to prepare"
            title = row.title
        labels = list(dict.fromkeys(label for member in members for label in member.properties))
        brief = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
        names = {"domain": "domain", "level_of_theory": "level of theory", "licence": "licence", "source": "source"}
        about = [shared([getattr(member, field) for member in members], word) for field, word in names.items()]
        about[2] = about[2].replace("not stated", "licence not stated")
        console.print(f"[bold]{plain(name)}[/]  {state}", highlight=False)
        for line in (title, " · ".join(filter(None, [brief or "any labels in the files", *about]))):
            console.print(Padding(plain(line), (0, 0, 0, 4), expand=False), highlight=False)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="Name from `eutectic data list`; `ase` or `records` for your own files.")],
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of the new store; by default one where it can be opened by name."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Published file, folder or archive; by default downloaded where possible."),
    ] = None,
    molecule: Annotated[str | None, typer.Option(help="Molecule of rmd17; same as rmd17:MOLECULE.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="For ase and records: entry that holds a property, property=key; repeatable. virial=key is a virial "
            "W = −σV; stress=key:xx,yy,zz,xy,yz,zx gives the order of six numbers; property= skips a property. For "
            "records also numbers=…, positions=…, cell=…."
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            help="For ase and records: unit in the files, energy=kcal/mol or positions=bohr; repeatable. It overrides "
            "a unit stated in the file. A minus flips the sign: stress=-kbar as in VASP, virial=-eV for W = +σV."
        ),
    ] = None,
    define: Annotated[list[str] | None, typer.Option(help=DEFINE)] = None,
    elements: Annotated[str | None, typer.Option(help=f"For ase. {ELEMENTS}")] = None,
    pbc: Annotated[
        str | None, typer.Option(help="For records: periodic boundaries: true, false, or e.g. TTF for slabs.")
    ] = None,
    group_key: Annotated[
        str | None,
        typer.Option(
            help="For ase and records: entry with a structure's group (molecule, trajectory); groups are never split."
        ),
    ] = None,
    level_of_theory: Annotated[
        str, typer.Option(help="For ase and records: level of theory of the labels.")
    ] = "not stated",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip unusable records, and report their number.")
    ] = False,
    skip_unconverged: Annotated[
        bool,
        typer.Option(
            "--skip-unconverged",
            help="For ase and records: skip structures whose calculation did not converge, according to an entry "
            "`converged` or the output of VASP or Quantum ESPRESSO.",
        ),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes; by default one per core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
) -> None:
    """Convert a data set's published files into a store.

    An interrupted preparation resumes when the same command is run again. Downloads and stores are kept in
    `$EUTECTIC_DATA` (`~/.local/share/eutectic` if not set) by default.

    **Examples**

    `eutectic data prepare rmd17:aspirin` (then `eutectic finetune rmd17:aspirin …`)

    `eutectic data prepare rmd17 --molecule aspirin --source rmd17.tar.bz2 --store stores/aspirin`

    `eutectic data prepare qm9 --store stores/qm9` (without download after `pip install 'eutectic[qm9]'`)

    `eutectic data prepare ase --source my.xyz --store stores/mine`

    `eutectic data prepare ase --source my.xyz --key virial=my_virial --unit virial=eV --store stores/mine`

    `eutectic data prepare ase --source vasprun.xml --skip-unconverged --store stores/mine`

    `eutectic data prepare ase --source my.xyz --key adsorption_energy=E_ads --define adsorption_energy=eV
    --store stores/ads` (a custom property)

    `eutectic data prepare records --source my.lmdb --key energy=y --unit energy=eV --unit positions=angstrom
    --pbc true --store stores/mine` (units not stated in the file must be given)
    """
    from eutectic.data.catalogue import describe, open_store, prepare

    path = prepare(
        name,
        source,
        store,
        molecule=molecule,
        keys=pairs(key),
        units=pairs(unit, "--unit", "energy=kcal/mol"),
        define=define or (),
        elements=elements,
        pbc=pbc,
        group_key=group_key,
        level_of_theory=level_of_theory,
        skip_bad=skip_bad,
        skip_unconverged=skip_unconverged,
        workers=workers,
        overwrite=overwrite,
    )
    show_facts(describe(open_store(str(path))))


@data_app.command("info")
def data_info(
    store: Annotated[str, typer.Argument(help="Embedded or prepared data set, or path of a store.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the contents of a store.

    **Example:** `eutectic data info molecules`
    """
    from eutectic.data.catalogue import describe, open_store

    described = describe(open_store(store))
    if as_json:
        sys.stdout.write(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    else:
        show_facts(described)


@data_app.command("check")
def data_check(
    data: Annotated[str, typer.Argument(help="Embedded data set, store, file or folder readable by ASE, HDF5 or npz.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML report with plots to this file.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; elements absent from its training data are reported.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Entry that holds a property, property=key (as for prepare); repeatable.")
    ] = None,
    unit: Annotated[
        list[str] | None, typer.Option(help="Unit in the file, energy=kcal/mol (as for prepare); repeatable.")
    ] = None,
    define: Annotated[list[str] | None, typer.Option(help=DEFINE)] = None,
    elements: Annotated[str | None, typer.Option(help=ELEMENTS)] = None,
) -> None:
    """Check data for problems before training: units, signs, outliers, duplicates, leakage between splits.

    HDF5 and npz files are read as they are; units are converted only with --unit. Exit status: 0 usable, 1 errors
    found, 2 unreadable.

    **Examples**

    `eutectic data check my.xyz --html check.html`

    `eutectic data check stores/ethanol --model runs/demo/model`

    `eutectic data check ani.h5 --key energy=wb97x_tz.energy --key forces=wb97x_tz.forces --json`

    `eutectic data check ani.h5 --unit energy=hartree --unit forces=hartree/angstrom`
    """
    from eutectic.check import check
    from eutectic.checkpoints.model import elements_seen, load_model

    try:
        seen = None if model is None else elements_seen(load_model(model))
        report = check(
            data,
            keys=pairs(key),
            units=pairs(unit, "--unit", "energy=kcal/mol"),
            define=define or (),
            elements=elements,
            model_elements=seen,
            progress=True,
        )
    except EutecticError as error:
        fail(error, status=2)
    if html is not None:
        from eutectic.report.check_page import write_check_page

        write_check_page(html, report)
    if as_json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        show_report(report)
        if html is not None:
            console.print(f"page: {html}")
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("generate")
def data_generate(
    out: Annotated[Path, typer.Option(help="Output folder for the stores.")],
    names: Annotated[list[str] | None, typer.Argument(help="Data sets to generate; all by default.")] = None,
    scale: Annotated[float, typer.Option(help="Size relative to the data sets shipped with the package.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes; by default one per core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing stores.")] = False,
) -> None:
    """Regenerate the embedded data sets, or larger versions (needs `pip install 'eutectic[generate]'`).

    `bulk` (inorganic crystals off equilibrium, for pre-training) is not embedded and must be generated.

    An interrupted generation resumes. A larger scale extends the embedded data, or a smaller store with the same seed
    in the same folder; only the missing structures are computed.

    **Examples**

    `eutectic data generate molecules --out my-data --scale 4`

    `eutectic data generate molecules --out my-data --scale 0.1`

    `eutectic data generate bulk --out my-data`

    `eutectic data generate --out my-data --workers 8`
    """
    from eutectic.generate import generate

    counts = generate(names or None, out, scale=scale, seed=seed, workers=workers, overwrite=overwrite)
    for name, count in counts.items():
        console.print(f"{name}: {count} structures in {out / name}")


@data_app.command("splits")
def data_splits(
    store: Annotated[str, typer.Argument(help="Embedded or prepared data set, or path of a store.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the sizes of each split, and the leakage from training into validation and test.

    Leakage counts structures from training groups, duplicates, and neighbouring frames of a trajectory.

    **Examples**

    `eutectic data splits md_aspirin`

    `eutectic data splits stores/jdft2d --json`
    """
    from eutectic.data.catalogue import open_store
    from eutectic.data.splits import compare_splits, paper_against_default

    opened = open_store(store)
    report = compare_splits(opened, progress=True)
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("split", "train", "validation", "test"):
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=True)
    table.add_column("leakage", overflow="fold")
    for name, entry in report.items():
        shown = f"[bold]{plain(name)}[/]" + (" (default)" if entry["default"] else "")
        if "not_possible" in entry:
            table.add_row(shown, "–", "–", "–", f"not possible: {plain(str(entry['not_possible']))}")
            continue
        sizes, leaks = cast(dict[str, int], entry["sizes"]), cast(dict[str, dict[str, Any]], entry["leaks"])
        words = "\n".join(f"{part}: {leaks[part]['words']}" for part in ("validation", "test"))
        table.add_row(shown, *(f"{n:,}" for n in sizes.values()), words)
    console.print(table)
    if sentence := paper_against_default(opened, report):
        console.print(plain(sentence))
