"""Benchmark stores on real files: preparing, random reads, bytes on disk, opening large stores.

    python benchmarks/data.py --shared ../shared/data
    python benchmarks/data.py --json > data.json
    python benchmarks/data.py --table > docs/results/data-sets.md

The last command prepares every data set of `tests/helpers/shared_sets.py`, checks it, trains two steps on it, and
writes a page.
Random reads are compared on the same structures with (a) the LMDB of pickled graphs that OC20 is published in and
JMP trains from, read as its data loader does (a transaction, `pickle.loads`, tensors rebuilt; here restricted, so that
no code from the file is run), and (b) structures as ASE database rows in JSON in an LMDB, the layout of `.aselmdb`.
Missing data are skipped with a message.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.row import AtomsRow
from ase.io.jsonio import decode, encode

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data.card import Card
from eutectic.data.catalogue import embedded_folder
from eutectic.data.dataset import Dataset
from eutectic.data.datasets import published
from eutectic.data.datasets.ase_files import AseFiles, scan
from eutectic.data.prepare import prepare_store
from eutectic.data.store import Store, write_store

SOURCES: dict[str, str] = {
    "rmd17:ethanol": "rmd17/rmd17",
    "rmd17:aspirin": "rmd17",
    "qm9": "qm9/dsgdb9nsd_subset500.xyz.tar.bz2",
    "oc20": "oc20/s2ef/val_20",
    "ani1x": "ani1x/ani1x_release_n5.h5",
    "transition1x": "transition1x/t1x_layout_from_horm.h5",
    "spice": "spice/SPICE-1.1.4_n2.hdf5",
    "md17:ethanol": "md17/md17_ethanol_2000.npz",
    "matbench:jdft2d": "matbench",
    "qmof": "qmof_like/core_fsr_x_qmof_bandgap.csv",
}
"""Data set → its files below the folder of --shared."""

OWN_FILES: dict[str, str] = {
    "ase (extended xyz)": "mptrj/mptrj-random-1k.xyz",
    "ase (ASE database)": "oc22_like/oxides.db",
    "ase (trajectories)": "oc20/trajs_small",
}
PICKLED = {"OC20 S2EF, 33 atoms": "oc20/s2ef/val_20/data.lmdb", "CuCO": "oc20/s2ef/cuco_emt/sample_CuCO.lmdb"}


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def preparing(shared: Path, say: Callable[[str], None]) -> dict[str, object]:
    """Structures per second for each file format, with one process and two."""
    modules = {name: module for module in published() for name in module.names()}
    found: dict[str, object] = {}
    jobs: list[tuple[str, Path, Callable[[], Dataset]]] = []
    for name, place in SOURCES.items():
        if name not in modules:
            say(f"preparing {name}: skipped, no reader of this name")
        elif not (shared / place).exists():
            say(f"preparing {name}: skipped, {place} does not exist")
        else:
            jobs.append((name, shared / place, lambda name=name: modules[name]))  # type: ignore[misc]
    for name, place in OWN_FILES.items():
        if not (shared / place).exists():
            say(f"preparing {name}: skipped, {place} does not exist")
            continue
        path = shared / place
        # Counting labels is part of the work.
        jobs.append((name, path, lambda path=path: AseFiles(source=path, found=scan(path))))  # type: ignore[misc]
    for name, path, dataset in jobs:
        with tempfile.TemporaryDirectory() as folder:
            called = name if name in modules else "ase"
            try:
                seconds = timed(
                    lambda d=dataset, p=path, f=folder, n=called: prepare_store(  # type: ignore[misc]
                        d(), n, p, Path(f) / "store", workers=1, progress=False
                    )
                )
            except EutecticError as error:
                say(f"preparing {name}: skipped, {error}")
                continue
            n = len(Store(Path(folder) / "store"))
        found[name] = {"structures": n, "structures_per_second_per_core": round(n / seconds)}
        say(f"preparing {name}: {n} structures, {n / seconds:,.0f}/s on one core")
    return found


def scaling(say: Callable[[str], None], count: int = 120_000) -> dict[str, object]:
    """Compare one process with two on random frames of 21 atoms in extended xyz, enough for a stable timing."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        frame = '21\nProperties=species:S:1:pos:R:3:forces:R:3 energy={:.6f} pbc="F F F"\n{}\n'
        for k in range(8):
            with (source / f"{k}.xyz").open("w") as file:
                for _ in range(count // 8):
                    numbers = random.normal(size=(21, 6))
                    atoms = "\n".join("C " + " ".join(f"{x:.8f}" for x in row) for row in numbers)
                    file.write(frame.format(random.normal(), atoms))
        dataset = AseFiles(source=source, found=scan(source))
        seconds, work = {}, {}
        for workers in (1, 2):
            before = _cpu_seconds()
            seconds[workers] = timed(
                lambda w=workers: prepare_store(  # type: ignore[misc]
                    dataset, "ase", source, Path(folder) / f"store-{w}", workers=w, progress=False
                )
            )
            work[workers] = _cpu_seconds() - before
    ratio, more = seconds[1] / seconds[2], work[2] / work[1]
    say(
        f"two processes: {ratio:.2f} times as fast as one ({count:,} frames, {seconds[1]:.1f} and {seconds[2]:.1f} s),"
        f" for {more:.2f} times the processor time, which other programs disturb less"
    )
    return {"structures": count, "seconds": seconds, "speed_up": round(ratio, 2), "processor_time": round(more, 2)}


def _cpu_seconds() -> float:
    """Processor time of this process and its finished children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


# --- random reads -----------------------------------------------------------------------------------


class _Graph:
    """Attributes of a pickled graph, in either layout of the library that wrote it."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Nested(pickle.Unpickler):
    """Unpickler for the archive that torch writes into a pickle for each tensor's numbers: in C, like the original, and
    restricted to storages."""

    def find_class(self, module: str, name: str) -> Any:
        import torch  # here: a worker process that prepares starts from this file, and has no use for it

        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


class _Pickling:
    """The interface that `torch.load` requires of a pickle module."""

    Unpickler = _Nested

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Nested(file, **options).load()


def _storage(raw: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(raw), pickle_module=_Pickling, weights_only=False)


class _Restricted(pickle.Unpickler):
    """Unpickler that rebuilds graphs and tensors only; everything else is an error."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module.startswith("torch_geometric.data"):
            return _Graph
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


def _fields(graph: _Graph) -> dict[str, Any]:
    inside = graph.__dict__.get("_store")
    return dict(inside.__dict__["_mapping"]) if isinstance(inside, _Graph) else dict(graph.__dict__)


def _open_lmdb(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False)


def _keys(environment: lmdb.Environment) -> list[bytes]:
    with environment.begin() as transaction:
        keys = [bytes(key) for key, _ in transaction.cursor() if bytes(key).isdigit()]
    return sorted(keys, key=int)


def _labelled(fields: dict[str, Any], number: int) -> LabelledStructure:
    names = {"energy": ("y", "energy"), "forces": ("force", "forces")}
    value = {k: next(fields[n] for n in among if fields.get(n) is not None) for k, among in names.items()}
    tags, fixed = fields.get("tags"), fields.get("fixed")
    return LabelledStructure(
        structure=Structure(
            numbers=np.asarray(fields["atomic_numbers"]).astype(np.int64),
            positions=np.asarray(fields["pos"], dtype=np.float64),
            cell=np.asarray(fields["cell"], dtype=np.float64).reshape(3, 3),
            pbc=np.ones(3, dtype=bool),
            tags=None if tags is None else np.asarray(tags).astype(np.int64),  # type: ignore[arg-type]
            fixed=None if fixed is None else np.asarray(fixed).astype(bool),  # type: ignore[arg-type]
        ),
        labels={
            "energy": np.asarray(float(value["energy"])),
            "forces": np.asarray(value["forces"], dtype=np.float64).reshape(-1, 3),
        },
        id=str(number),
        group="all",
    )


CARD = Card(
    name="benchmark",
    title="Structures of a benchmark",
    domain="any",
    properties=("energy", "forces"),
    level_of_theory="any",
    licence="any",
    citation="none",
    source="none",
)


def _write_ase_lmdb(path: Path, rows: list[LabelledStructure]) -> None:
    """Rows of an ASE database as JSON in an LMDB, one per key, deflated as in `.aselmdb`."""
    import zlib

    environment = lmdb.open(str(path), subdir=False, map_size=1 << 30)
    with environment.begin(write=True) as transaction:
        for number, row in enumerate(rows):
            atoms = row.structure.to_ase()
            atoms.calc = SinglePointCalculator(atoms, energy=float(row.labels["energy"]), forces=row.labels["forces"])
            line = AtomsRow(atoms)
            values = {key: line[key] for key in line if key not in ("user", "ctime", "mtime")}
            values["constraints"] = [c.todict() for c in atoms.constraints]
            transaction.put(str(number).encode(), zlib.compress(encode(values).encode()))
    environment.close()


def reads(shared: Path, say: Callable[[str], None], seconds: float) -> dict[str, object]:
    """Random reads per second of one process: the pickled LMDB, the ASE rows, the store."""
    import zlib

    import torch

    torch.set_num_threads(1)
    found: dict[str, object] = {}
    for name, place in PICKLED.items():
        if not (shared / place).exists():
            say(f"random reads, {name}: skipped, {place} does not exist")
            continue
        pickled = _open_lmdb(shared / place)
        keys = _keys(pickled)

        def from_pickle(i: int, pickled: Any = pickled, keys: Any = keys) -> dict[str, Any]:
            with pickled.begin() as transaction:
                raw = transaction.get(keys[i])
            return _fields(_Restricted(io.BytesIO(raw)).load())

        rows = [_labelled(from_pickle(i), i) for i in range(len(keys))]
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder) / "store", CARD, rows)
            store = Store(Path(folder) / "store")
            _write_ase_lmdb(Path(folder) / "rows.aselmdb", rows)
            ase_rows = _open_lmdb(Path(folder) / "rows.aselmdb")

            def from_ase(i: int, ase_rows: Any = ase_rows) -> Atoms:
                with ase_rows.begin() as transaction:
                    raw = transaction.get(str(i).encode())
                return AtomsRow(decode(zlib.decompress(raw).decode())).toatoms()

            assert np.allclose(from_ase(3).get_forces(apply_constraint=False), store[3].labels["forces"], atol=1e-5)
            speed = {
                kind: _per_second(read, len(keys), seconds)
                for kind, read in (("pickled LMDB", from_pickle), ("ASE rows", from_ase), ("store", store.__getitem__))
            }
            ase_rows.close()
        pickled.close()
        ratios = {kind: round(speed["store"] / value, 1) for kind, value in speed.items() if kind != "store"}
        found[name] = {"structures": len(keys), "per_second": {k: round(v) for k, v in speed.items()}, "store": ratios}
        text = ", ".join(f"{kind} {value:,.0f}/s" for kind, value in speed.items())
        say(f"random reads, {name}: {text}; the store is {ratios} times as fast")
    return found


def _per_second(read: Callable[[int], object], n: int, seconds: float) -> float:
    order = np.random.default_rng(0).integers(0, n, 10_000).tolist()
    rates = []
    for _ in range(5):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / 5:
            for i in order[done % 10_000 : done % 10_000 + 20]:
                read(i)
            done += 20
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)


# --- size and opening -------------------------------------------------------------------------------


def sizes(say: Callable[[str], None]) -> dict[str, object]:
    """Bytes of the embedded stores relative to their raw numbers (element 1 byte, float32; labels as stored)."""
    found: dict[str, object] = {}
    for path in sorted(p for p in embedded_folder().iterdir() if p.is_dir()):
        store = Store(path)
        raw = 0
        for row in store:
            n = len(row.structure)
            raw += 13 * n + (36 if row.structure.pbc.any() else 0)
            raw += sum(12 * n if name == "forces" else 8 * value.size for name, value in row.labels.items())
        ratio = store.bytes() / raw
        found[path.name] = {"bytes": store.bytes(), "raw_bytes": raw, "ratio": round(ratio, 2)}
        say(f"size, {path.name}: {store.bytes() / len(store):,.0f} bytes a structure, {ratio:.2f} times the raw arrays")
    return found


OPEN = """
import json, os, resource, sys, time
from pathlib import Path
import numpy as np
from eutectic.data.store import Store
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, start = resident(), time.perf_counter()
store = Store(Path(sys.argv[1]))
opened, held = time.perf_counter() - start, resident() - before
order = np.random.default_rng(0).integers(0, len(store), 20_000).tolist()
start = time.perf_counter()
for i in order:
    store[i]
print(json.dumps({
    "structures": len(store), "milliseconds": round(1e3 * opened, 2), "megabytes": round(held / 1e6, 2),
    "random_reads_per_second": round(len(order) / (time.perf_counter() - start)),
}))
"""


def _frames(n: int) -> Iterator[LabelledStructure]:
    random = np.random.default_rng(0)
    for i in range(n):
        labels = {"energy": np.asarray(random.normal()), "forces": random.normal(size=(8, 3))}
        structure = Structure(numbers=np.full(8, 6), positions=random.normal(size=(8, 3)))
        yield LabelledStructure(structure=structure, labels=labels, id=f"frame-{i}", group=f"group-{i % 100}")


def opening(say: Callable[[str], None]) -> list[object]:
    """Time and memory to open stores of 1, 10 and 100 million structures: one shard of 100 000 under many names."""
    if not Path("/proc/self/statm").exists():
        say("opening: skipped, this system does not report a process's memory in /proc")
        return []
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "one", CARD, _frames(100_000))
        manifest = json.loads((Path(folder) / "one" / "manifest.json").read_text())
        for times in (10, 100, 1000):
            many = Path(folder) / f"{times}"
            many.mkdir()
            for number in range(times):
                os.link(Path(folder) / "one" / "shard-00000.arrow", many / f"shard-{number:05d}.arrow")
            larger = {**manifest, "rows": manifest["rows"] * times, "bytes": manifest["bytes"] * times}
            (many / "manifest.json").write_text(json.dumps(larger))
            command = [sys.executable, "-c", OPEN, str(many)]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found.append(result)
            say(
                f"opening {result['structures']:,} structures: {result['milliseconds']} ms, {result['megabytes']} MB; "
                f"{result['random_reads_per_second']:,} random reads/s of 8 atoms, each shard used for the first time"
            )
    return found


# --- the page of data sets ---------------------------------------------------------------------------

PAGE = """# All data sets: preparation, check and training

    python benchmarks/data.py --table > docs/results/data-sets.md

Each set was prepared by one process, counted, checked by `eutectic data check`, and trained on for two steps. The
files are real, but not all are the publisher's own (substitutes are read as `ase`, or under the name of the layout they
have). `tests/data/test_shared_data.py` tests the same. Structures per second are for a complete preparation (scan the
files, read, check, write) on one core of a shared machine; below a few hundred structures they mostly measure the
start-up time. `records` are files without a standard layout, with fields and units given by hand (the options are in
`tests/helpers/shared_sets.py`). The verdict is that of the check, with its warnings but without its notes.

| set | files | kind | structures | atoms | elements | structures/s | verdict |
|---|---|---|---:|---:|---:|---:|---|
"""


def table(shared: Path, say: Callable[[str], None], only: str) -> str:
    """Markdown page with one row per real data set."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
    from shared_sets import NOT_SETS, SETS, go_through

    lines = []
    for which in SETS:
        if only not in which.title or not (shared / which.place).exists():
            say(f"{which.title}: skipped")
            continue
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            try:
                out = go_through(which, shared, Path(folder))
            except EutecticError as error:
                say(f"{which.title}: {error}")
                lines.append(f"| `{which.name}` | {which.place} | {which.kind} | – | – | – | – | not read: {error} |")
                continue
            found = out.store.summary()
            grave = [f for f in out.report.findings if f.severity != "note"]
            verdict = ("usable" if out.report.ok else "not usable") + "".join(f"; {f.title}" for f in grave)
            result = (
                f"`{which.name}`",
                which.place or "the package",
                which.kind,
                f"{found.structures:,}",
                f"{found.atoms:,}",
                str(len(found.elements)),
                f"{found.structures / out.seconds:,.0f}",
                verdict,
            )
            lines.append("| " + " | ".join(result) + " |")
            codes = {f.code for f in grave}
            say(
                f"{which.title}: {found.structures} of {which.structures}, {found.structures / out.seconds:,.0f}/s, "
                f"{time.perf_counter() - start:.1f} s in all, losses {out.losses}, {sorted(codes)}; {verdict}"
            )
    rest = "".join(f"* {which.place}: {which.why}\n" for which in NOT_SETS)
    return PAGE + "\n".join(lines) + f"\nFiles that are not data sets by themselves, which `prepare` reports:\n\n{rest}"


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the published files")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each timing of random reads, s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", nargs="*", choices=["preparing", "scaling", "reads", "sizes", "opening"])
    parser.add_argument(
        "--table", nargs="?", const="", metavar="WORD", help="write the data-set page (only sets with WORD)"
    )
    given = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr if given.json or given.table is not None else sys.stdout, flush=True)

    if given.table is not None:
        sys.stdout.write(table(given.shared, say, given.table))
        return

    runs: dict[str, Callable[[], object]] = {
        "preparing": lambda: preparing(given.shared, say),
        "scaling": lambda: scaling(say),
        "reads": lambda: reads(given.shared, say, given.seconds),
        "sizes": lambda: sizes(say),
        "opening": lambda: opening(say),
    }
    found = {name: run() for name, run in runs.items() if not given.only or name in given.only}
    found["peak_megabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    if given.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
