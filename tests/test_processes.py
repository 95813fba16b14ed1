"""Worker processes: results in order, every way to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eutectic import processes
from eutectic.atoms import EutecticError
from eutectic.processes import run_in_processes


def work(number: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    processes.count(10)
    return number**2


def thread_variables() -> list[str | None]:
    return [os.environ.get(name) for name in (*processes.THREADS, "STARTED")]


def started() -> None:
    os.environ["STARTED"] = "yes"


def die(number: int, folder: Path) -> None:
    (folder / str(number)).write_text(str(os.getpid()))
    if number == 0:
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


def fail(number: int) -> None:
    if number == 1:
        raise EutecticError("a file", "damaged", "a whole one", "fetch it again")
    time.sleep(120)


def test_results_come_in_order_and_work_is_counted() -> None:
    counts: list[int] = []
    finished: dict[int, int] = {}
    calls = [(number, 0.05 * (number == 0)) for number in range(6)]
    results = run_in_processes(
        work, calls, 2, where="test", progress=counts.append, finished=lambda i, result: finished.update({i: result})
    )
    assert results == [0, 1, 4, 9, 16, 25]
    assert finished == dict(enumerate(results))
    assert sum(counts) == 60
    assert run_in_processes(work, [], 2, where="test") == []


def test_in_this_process_nothing_is_counted() -> None:
    assert work(3) == 9


def test_a_worker_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    (inside,) = run_in_processes(thread_variables, [()], 1, where="test", start=started)
    assert inside == ["1", "1", "1", "yes"]
    (inside,) = run_in_processes(thread_variables, [()], 1, where="test", one_thread=False)
    assert (inside[0], inside[2], inside[3]) == ("3", None, None)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_worker_that_dies_ends_the_others(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(EutecticError, match=r"making: a worker process died.*fewer workers; parts are kept"):
        run_in_processes(die, [(0, tmp_path), (1, tmp_path)], 2, where="making", kept="parts are kept")
    assert time.monotonic() - began < 60
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_an_error_of_a_call_ends_the_others() -> None:
    began = time.monotonic()
    with pytest.raises(EutecticError, match="fetch it again"):
        run_in_processes(fail, [(0,), (1,)], 2, where="test")
    assert time.monotonic() - began < 60


def test_an_error_of_the_caller_ends_them(tmp_path: Path) -> None:
    def finished(number: int, result: int) -> None:
        raise EutecticError("disk", "full", "room", "free some space")

    before = [signal.getsignal(number) for number in processes.SIGNALS]
    began = time.monotonic()
    with pytest.raises(EutecticError, match="free some space"):
        run_in_processes(work, [(0,), (1, 120.0)], 2, where="test", finished=finished)
    assert time.monotonic() - began < 60
    assert [signal.getsignal(number) for number in processes.SIGNALS] == before


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from eutectic.processes import run_in_processes

folder, graceful = Path(sys.argv[1]), sys.argv[2] == "graceful"
asked = []

def listen():
    signal.signal(signal.SIGINT, lambda *_: asked.append(1))

def work(number):
    (folder / f"pid-{number}").write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder / f"saved-{number}").write_text("")

if __name__ == "__main__":
    try:
        run_in_processes(
            work, [(0,), (1,), (2,)], 2, where="test", graceful=graceful, start=listen if graceful else None
        )
    except KeyboardInterrupt:
        sys.exit(130)
"""


def wait_for(folder: Path, pattern: str, number: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < number and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # written, too


def alive(folder: Path) -> list[int]:
    deadline, left = time.monotonic() + 20, [int(file.read_text()) for file in folder.glob("pid-*")]
    assert left
    while left and time.monotonic() < deadline:
        for pid in list(left):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                left.remove(pid)
        time.sleep(0.05)
    return left


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
@pytest.mark.parametrize("blow", [*processes.SIGNALS, signal.SIGKILL], ids=lambda blow: blow.name)
@pytest.mark.parametrize("how", ["at once", "graceful"])
def test_stopped(tmp_path: Path, blow: signal.Signals, how: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(STOPPED)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path), how])
    wait_for(tmp_path, "pid-*", 2)
    os.kill(process.pid, blow)
    assert process.wait(timeout=60) == (-blow if blow == signal.SIGKILL else 130)
    assert alive(tmp_path) == []
    saved = sorted(file.name for file in tmp_path.glob("saved-*"))
    assert saved == (["saved-0", "saved-1"] if how == "graceful" and blow != signal.SIGKILL else [])
    assert not (tmp_path / "pid-2").exists()


def test_a_closed_terminal_ends_nothing_under_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    assert processes.caught() == [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
