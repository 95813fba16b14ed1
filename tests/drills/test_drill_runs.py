"""Runs and predictions that are killed, interrupted, out of disk, started twice, or resumed on other data."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import iread, write
from runs import journal, settings_of

from drills import COMMAND, ENVIRONMENT, Outcome, assert_clear_error, assert_done, eutectic
from eutectic.data.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")

TINY = ["--split", "random", "--backbone.name", "painn"]
TINY += ["--backbone.settings", "{width: 8, layers: 1, cutoff: 4.0}", "--graph", "{cutoff: 4.0}"]
KINDS = ["pretrain", "pretrain with two processes", "finetune"]
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


def structures(n: int, scale: float = 1.0) -> list[Atoms]:
    made = []
    for i in range(n):
        atoms = molecule(("H2O", "CH4", "NH3", "CH3OH")[i % 4])
        atoms.rattle(0.05, seed=i)
        energy = scale * (-3.0 * len(atoms) + 0.01 * i)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=scale * atoms.positions)
        made.append(atoms)
    return made


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of labelled structures; what is prepared from it goes beside it."""
    monkeypatch.setitem(ENVIRONMENT, "EUTECTIC_DATA", str(tmp_path / "prepared"))
    write(tmp_path / "my.xyz", structures(48), format="extxyz")
    return tmp_path / "my.xyz"


def training(kind: str, molecules: Store, data: Path, steps: int) -> list[str]:
    """A command that trains in the folder `run` beside the data."""
    out = str(data.parent / "run")
    if kind == "finetune":
        chosen = ["-p", "energy", "--steps", str(steps), "--batch-size", "4", "--out", out]
        return ["finetune", str(data), *chosen, "--train.evaluate_every", "1000", "--start", "scratch", *TINY]
    train = {"steps": steps, "batch_size": 4, "evaluate_every": 1000, "processes": 1 + ("two" in kind)}
    file = data.parent / f"settings-{steps}.json"
    file.write_text(settings_of({"molecules": molecules}, train).model_dump_json())
    return ["pretrain", str(file), "--out", out]


def begun(command: list[str], *, size: int | None = None) -> subprocess.Popen[str]:
    """The command in a process and a session of its own; as on a full disk, no file may grow beyond `size`."""

    def prepare() -> None:
        # Ignored signals (of nohup, of a shell's background) are inherited.
        for stop in STOPS:
            signal.signal(stop, signal.SIG_DFL)
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.Popen(
        [*COMMAND, *command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=prepare,
    )


def ended(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=600)
    return Outcome(process.returncode, out, err)


def waited(process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"ended before: {process.communicate()}")
        time.sleep(0.01)


def lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def of_session(session: int) -> list[int]:
    """Processes of a session that are not zombies."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdigit() else []
        except OSError:
            continue
        if len(state) > 3 and int(state[3]) == session and state[0] != "Z":
            found.append(int(folder.name))
    return found


def assert_nothing_left(process: subprocess.Popen[str], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while (left := of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def steps_of(folder: Path) -> list[int]:
    return [entry["step"] for entry in journal(folder)]


# --- killed and interrupted runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_the_first_checkpoint(molecules: Store, data: Path, kind: str) -> None:
    """kill -9 before the first checkpoint, then the same command: the journal has each step once."""
    command, run = training(kind, molecules, data, 200), data.parent / "run"
    process = begun(command)
    waited(process, lambda: lines(run / "journal.jsonl") >= 20)
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    assert not (run / "checkpoint.pt").exists()
    outcome = eutectic(*command)
    assert_done(outcome)
    assert "no checkpoint, so the run starts again" in outcome.errors
    assert steps_of(run) == list(range(1, 201))
    assert lines(run / "metrics.csv") in (0, 201)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_checkpoints_are_gone(molecules: Store, data: Path, kind: str) -> None:
    """Both checkpoints deleted: the run begins again, and says so; the journal has each step once."""
    command, run = [*training(kind, molecules, data, 600), "--train.checkpoint_every", "0"], data.parent / "run"
    process = begun(command)
    waited(process, lambda: (run / "checkpoint.previous.pt").exists() and lines(run / "journal.jsonl") >= 5)
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 130
    for file in run.glob("checkpoint*"):
        file.unlink()
    command = [*command[:-1], "60"]
    outcome = eutectic(*command)
    assert_done(outcome)
    assert "begins again" in outcome.errors
    assert steps_of(run) == list(range(1, 601))


@pytest.mark.parametrize(
    ("kind", "stop"),
    [*(("pretrain", stop) for stop in STOPS), *((kind, stop) for kind in KINDS[1:] for stop in STOPS[1:3])],
    ids=str,
)
def test_signals_save(molecules: Store, data: Path, kind: str, stop: signal.Signals) -> None:
    """A signal to the parent: the run saves, says how to resume, and leaves no process."""
    command, run = training(kind, molecules, data, 4000), data.parent / "run"
    process = begun(command)
    waited(process, lambda: lines(run / "journal.jsonl") >= 20)
    process.send_signal(stop)
    outcome = ended(process)
    assert outcome.code == 130, outcome
    assert "resumes at step" in outcome.errors
    assert (run / "checkpoint.pt").exists()
    assert_nothing_left(process)


def comparing(data: Path, steps: int) -> list[str]:
    chosen = ["-p", "energy", "--steps", str(steps), "--batch-size", "4", "--start", "scratch", "--seeds", "2"]
    return ["compare", str(data), *chosen, "--workers", "2", *TINY, "--out", str(data.parent / "run")]


@pytest.mark.parametrize("stop", [*STOPS, signal.SIGKILL], ids=lambda stop: stop.name)
def test_workers_of_a_study_end_with_it(data: Path, stop: signal.Signals) -> None:
    """A signal to the parent of a comparison's workers: none is left, and the same command goes on."""
    process, run = begun(comparing(data, 400)), data.parent / "run"
    waited(process, lambda: sum(lines(file) >= 20 for file in run.glob("runs/*/*/journal.jsonl")) == 2)
    process.send_signal(stop)
    outcome = ended(process)
    assert_nothing_left(process)
    if stop != signal.SIGKILL:
        assert outcome.code == 130, outcome
        assert "the same command resumes it" in outcome.errors
        assert len(list(run.glob("runs/*/*/checkpoint.pt"))) == 2
    assert_done(eutectic(*comparing(data, 400)))
    for folder in run.glob("runs/*/*"):
        assert steps_of(folder) == list(range(1, 401))


@pytest.mark.parametrize("stop", [*STOPS, signal.SIGKILL], ids=lambda stop: stop.name)
def test_workers_of_a_preparation_end_with_it(data: Path, stop: signal.Signals) -> None:
    """A signal to the parent of `data prepare`: no worker is left, and the same command goes on."""
    many, store = data.parent / "many", data.parent / "store"
    many.mkdir()
    content = "".join(data.read_text() for _ in range(60))
    for number in range(8):
        (many / f"{number}.xyz").write_text(content)
    command = ["data", "prepare", "ase", "--source", str(many), "--store", str(store), "--workers", "2"]
    process = begun(command)
    waited(process, lambda: len(list(data.parent.glob(".store.preparing/*.json"))) >= 2)
    process.send_signal(stop)
    outcome = ended(process)
    assert_nothing_left(process)
    if stop != signal.SIGKILL:
        assert "Traceback" not in outcome.errors
        assert outcome.code == 130, outcome
    assert_done(eutectic(*command))
    assert len(Store(store)) == 8 * 60 * 48


@pytest.mark.parametrize("stop", [signal.SIGHUP, signal.SIGKILL], ids=lambda stop: stop.name)
def test_workers_of_the_demonstration_end_with_it(tmp_path: Path, stop: signal.Signals) -> None:
    """A signal to the parent of `demo`, in its fine-tunings: no worker is left."""
    command = ["demo", "--steps", "1", "--finetune-steps", "400", "--seeds", "1", "--out", str(tmp_path / "demo")]
    process = begun(command)
    waited(process, lambda: bool(list(tmp_path.glob("demo/finetune/*/*/journal.jsonl"))), 240.0)
    process.send_signal(stop)
    ended(process)
    assert_nothing_left(process)


# --- full disks and damaged files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 200, 3000])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_full_at_the_start(molecules: Store, data: Path, kind: str, size: int) -> None:
    """A disk that is full when a run claims its folder: a clear error; with room the same command runs."""
    command, run = training(kind, molecules, data, 3), data.parent / "run"
    if kind == "finetune":
        assert_done(eutectic(*command[:-1], command[-1], "--show-settings"))
        assert_done(eutectic("data", "prepare", "ase", "--source", data, "--store", data.parent / "store"))
        command[1] = str(data.parent / "store")
    outcome = ended(begun(command, size=size))
    # Where not a byte can be written, PyTorch finds no folder for temporary files. What is written first is the run's
    # settings, and then batches, to shared memory.
    assert outcome.is_clear_error
    assert any(what in outcome.errors for what in ("could not be written", "temporary", "shared memory"))
    assert_done(eutectic(*command))
    assert steps_of(run) == [1, 2, 3]


@pytest.mark.parametrize("content", ["", "[1, 2]", "\x00\x01\udcff"])
@pytest.mark.parametrize("file", ["settings.json", "result.json", "summary.json", "journal.jsonl", "validation.json"])
def test_damaged_files(molecules: Store, data: Path, file: str, content: str) -> None:
    """A damaged file of a finished run: a clear error or the same result, in a run and in its report."""
    kind = "finetune" if file == "result.json" else "pretrain"
    command, run = training(kind, molecules, data, 3), data.parent / "run"
    assert_done(eutectic(*command))
    weights = (run / "model" / "model.safetensors").read_bytes()
    (run / file).write_bytes(content.encode(errors="surrogateescape"))
    for again in (eutectic(*command), eutectic("report", run)):
        if again.code:
            assert_clear_error(again, file if file != "settings.json" or "settings.json" in again.errors else "run")
        assert "Traceback" not in again.errors
    assert (run / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("line", ["5", '{"a": 1}', "[" * 5000, "\udcff\udcfe"])
def test_damaged_journal_of_a_run_that_goes_on(molecules: Store, data: Path, line: str) -> None:
    """A line of the journal is damaged: the run goes on, says what is lost, and keeps the file."""
    command, run = training("pretrain", molecules, data, 300), data.parent / "run"
    process = begun(command)
    waited(process, lambda: lines(run / "journal.jsonl") >= 20)
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 130
    entries = (run / "journal.jsonl").read_bytes().split(b"\n")
    entries[4] = line.encode(errors="surrogateescape")
    (run / "journal.jsonl").write_bytes(b"\n".join(entries))
    outcome = eutectic(*command)
    assert_done(outcome)
    assert "the losses of 1 of" in outcome.errors
    assert (run / "journal.damaged.jsonl").read_bytes() == b"\n".join(entries)
    assert steps_of(run) == [step for step in range(1, 301) if step != 5]


# --- two runs, and other contents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "compare"])
def test_two_runs_in_one_folder(molecules: Store, data: Path, kind: str) -> None:
    """A second run in the same folder is refused, and the first goes on."""
    command = comparing(data, 50_000) if kind == "compare" else training(kind, molecules, data, 50_000)
    run = data.parent / "run"
    process = begun(command)
    waited(process, lambda: any(lines(file) >= 20 for file in run.rglob("journal.jsonl")))
    second = eutectic(*command)
    done = {file: lines(file) for file in run.rglob("journal.jsonl")}
    assert_clear_error(second, "another process", "training here", str(process.pid) if kind != "compare" else "PID")
    waited(process, lambda: all(lines(file) >= n + 20 for file, n in done.items()))
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 130
    for file in done:
        steps = steps_of(file.parent)
        assert steps == list(range(1, len(steps) + 1))


def _other_labels(data: Path, store: Path) -> None:
    write(data, structures(48, 2.0), format="extxyz")
    if store.exists():
        assert_done(eutectic("data", "prepare", "ase", "--source", data, "--store", store, "--overwrite"))


@pytest.mark.parametrize("resumed", [False, True], ids=["finished", "interrupted"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune", "finetune a file", "compare", "compare a file"])
def test_the_data_have_changed(data: Path, kind: str, resumed: bool) -> None:
    """Other labels under the same path: the run is refused, finished or not, and its result is left."""
    store, run = data.parent / "store", data.parent / "run"
    steps = 3000 if resumed else 3
    given = data
    if "file" not in kind:
        assert_done(eutectic("data", "prepare", "ase", "--source", data, "--store", store))
        given = store
    if kind.startswith("compare"):
        command = comparing(data, steps)
    else:
        command = training(kind.partition(" ")[0], Store(store) if kind == "pretrain" else None, data, steps)  # type: ignore[arg-type]
    command = [str(given) if word == str(data) else word for word in command]
    if resumed:
        process = begun(command)
        waited(process, lambda: any(lines(file) >= 20 for file in run.rglob("journal.jsonl")))
        process.send_signal(signal.SIGTERM)
        assert ended(process).code == 130
    else:
        assert_done(eutectic(*command))
    before = {file: file.read_bytes() for file in run.rglob("*.json*")}
    _other_labels(data, store)
    assert_clear_error(eutectic(*command), "changed since it began", given.name)
    assert {file: file.read_bytes() for file in run.rglob("*.json*") if file in before} == before


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "compare"])
def test_the_model_has_changed(molecules: Store, data: Path, kind: str) -> None:
    """Other weights under the same path: a run that starts from them is refused."""
    model, run = data.parent / "model", data.parent / "run"
    assert_done(eutectic(*training("pretrain", molecules, data, 3)))
    shutil.move(run / "model", model)
    shutil.rmtree(run)
    chosen = ["-p", "energy", "--steps", "3", "--batch-size", "4", "--model", str(model), "--out", str(run)]
    command = [kind, str(data), *chosen]
    if kind != "pretrain":
        command += ["--split", "random"]
    if kind == "compare":
        command += ["--start", "pretrained", "--seeds", "1"]
    if kind == "pretrain":
        file = data.parent / "from.json"
        values = json.loads((data.parent / "settings-3.json").read_text())
        file.write_text(json.dumps({k: v for k, v in values.items() if k not in ("backbone", "graph")}))
        command = ["pretrain", str(file), "--start", str(model), "--out", str(run)]
    assert_done(eutectic(*command))
    weights = bytearray((model / "model.safetensors").read_bytes())
    other = data.parent / "other"
    assert_done(eutectic(*training("pretrain", molecules, data, 4)[:2], "--out", other))
    shutil.copy(other / "model" / "model.safetensors", model / "model.safetensors")
    assert (model / "model.safetensors").read_bytes() != weights
    shutil.copy(other / "model" / "model.json", model / "model.json")
    assert_clear_error(eutectic(*command), "changed since it began", "model")


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Some thousand structures without labels."""
    one = tmp_path / "one.xyz"
    write(one, [atoms for atoms in structures(48) if not setattr(atoms, "calc", None)], format="extxyz")
    (tmp_path / "many.xyz").write_text(one.read_text() * 40)
    return tmp_path / "many.xyz"


def predicting(source: Path, out: Path) -> list[str]:
    return ["predict", "eutectic-small", str(source), "--task", "molecules", "-o", str(out)]


def predicted(path: Path) -> int:
    frames = list(iread(path))
    assert all(np.isfinite(frame.info["molecules_energy"]) for frame in frames)
    return len(frames)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    out = tmp_path / "out.xyz"
    out.write_text("precious")
    return out


@pytest.mark.parametrize("stop", [*STOPS, signal.SIGKILL], ids=lambda stop: stop.name)
def test_prediction_stopped(many: Path, older: Path, stop: signal.Signals) -> None:
    """A prediction that is stopped: the older file stays, what was predicted is kept, the same command does it all."""
    partial = older.with_name("out.partial.xyz")
    process = begun(predicting(many, older))
    waited(process, lambda: partial.exists() and partial.stat().st_size > 100_000)
    process.send_signal(stop)
    outcome = ended(process)
    assert older.read_text() == "precious"
    assert 0 < predicted(partial) < 1920
    if stop != signal.SIGKILL:
        assert outcome.code == 130, outcome
        assert "out.partial.xyz" in outcome.errors.replace("\n", "")
    assert_done(eutectic(*predicting(many, older)))
    assert predicted(older) == 1920
    assert not partial.exists()


@pytest.mark.parametrize("size", [0, 70_000, 300_000])
def test_prediction_on_a_full_disk(many: Path, older: Path, size: int) -> None:
    """A full disk while predictions are written: the older file stays, and the error says what is kept."""
    outcome = ended(begun(predicting(many, older), size=size))
    assert_clear_error(outcome, *(["could not be written", "out.partial.xyz"] if size else ["temporary"]))
    assert older.read_text() == "precious"
    if size:
        assert predicted(older.with_name("out.partial.xyz")) > 0


def test_prediction_printed_to_a_full_disk(many: Path) -> None:
    """A full disk under --json."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "predict", "eutectic-small", str(many.with_name("one.xyz")), "--task", "molecules", "--json"],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert_clear_error(Outcome(done.returncode, "", done.stderr))


@pytest.mark.parametrize("out", ["folder", "one.xyz", "link.xyz", "/dev/full", "/proc/x.xyz", "one.xyz/x.xyz"])
def test_prediction_that_cannot_be_written(many: Path, out: str) -> None:
    """An output that cannot be written, or is the input: refused before anything is computed."""
    one = many.with_name("one.xyz")
    (many.parent / "folder").mkdir()
    (many.parent / "link.xyz").symlink_to(one)
    before = one.read_bytes()
    assert_clear_error(eutectic(*predicting(one, many.parent / out)))
    assert one.read_bytes() == before


BAD = {
    "an element without reference": "1\n\nU 0 0 0\n",
    "a broken number": "1\n\nH 0 zero 0\n",
    "a missing column": "1\n\nH 0 0\n",
    "two atoms in one place": "2\n\nH 0 0 0\nH 0 0 0\n",
    "not a number": "1\n\nH nan 0 0\n",
    "no such element": "1\n\nQq 0 0 0\n",
    "a cell without volume": '1\nLattice="1 0 0 1 0 0 0 0 1" pbc="T T T"\nH 0 0 0\n',
}


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        *((bad, "middle") for bad in BAD),
        *((bad, place) for bad in list(BAD)[:2] for place in ("first", "last", "twice")),
    ],
)
def test_one_bad_structure_among_many(many: Path, bad: str, place: str) -> None:
    """One structure that cannot be predicted: it is reported by its index, the others are predicted."""
    good = [f"{part}" for part in _frames(many.with_name("one.xyz"))]
    at = {"first": [0], "middle": [20], "last": [48], "twice": [20, 21]}[place]
    for index in at:
        good.insert(index, BAD[bad])
    source, out = many.with_name("bad.xyz"), many.with_name("out.xyz")
    source.write_text("".join(good))
    outcome = eutectic(*predicting(source, out), "--json")
    assert outcome.code == 3, outcome
    assert f"{len(at)} of {len(good)} structures could not be predicted" in outcome.errors
    made = json.loads(outcome.output)
    assert [i for i, one in enumerate(made["predictions"]) if one is None] == at
    assert [one["structure"] for one in made["not_predicted"]] == at
    frames = [frame for frame in iread(out) if "molecules_not_predicted" not in frame.info]
    assert len(frames) == 48
    energies = [one["energy"] for one in made["predictions"] if one is not None]
    np.testing.assert_allclose([frame.info["molecules_energy"] for frame in frames], energies)


def _frames(path: Path) -> Iterator[str]:
    rows = path.read_text().splitlines(keepends=True)
    while rows:
        n = int(rows[0]) + 2
        yield "".join(rows[:n])
        rows = rows[n:]
