"""Processes and devices: on one machine, with torchrun, or with SLURM."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar, cast

import lightning_fabric as lf
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.plugins.precision import DoublePrecision, MixedPrecision, Precision
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from eutectic.atoms import EutecticError, Interrupted
from eutectic.models import Backbone
from eutectic.processes import SIGNALS, cores
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import LoopSettings

# At import, so that spawned processes are quiet from the start; warnings and errors are still shown.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

Work = Callable[[lf.Fabric, StopFlag], None]
"""Function that every process of a run executes."""

T = TypeVar("T")


class _UnconvertedInputs:
    """Pass positions to the model unconverted: in half precision, they would be off by hundredths of an ångström.

    Fabric would convert all inputs, and cannot convert frozen dataclasses.
    """

    def convert_input(self, data: Any) -> Any:
        return data


class _Mixed(_UnconvertedInputs, MixedPrecision):
    """Autocast, with a gradient scaler for float16."""


class _Double(_UnconvertedInputs, DoublePrecision):
    """Everything in double precision."""


def launched_outside() -> bool:
    """Whether torchrun or srun started the processes of this run."""
    return TorchElasticEnvironment.detect() or _under_srun()


def _under_srun() -> bool:
    # A batch script that calls Python without srun also has SLURM's variables, but is one process.
    return "SLURM_STEP_ID" in os.environ and SLURMEnvironment.detect()


def is_first() -> bool:
    """Whether this is the first process, which reports. Can be called before the launch."""
    if not launched_outside():
        return True
    return int(os.environ["RANK"] if TorchElasticEnvironment.detect() else os.environ["SLURM_PROCID"]) == 0


def accelerator_of(settings: LoopSettings) -> Literal["cpu", "cuda"]:
    """The type of device that the settings select on this machine."""
    if settings.accelerator != "auto":
        return settings.accelerator
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_fabric(settings: LoopSettings, *, alone: bool = False) -> lf.Fabric:
    """A Fabric that has not been launched.

    Args:
        settings: of the run.
        alone: use one process, regardless of settings and environment.

    Raises:
        EutecticError: FSDP with one process, which cannot shard.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning_fabric.*")
    accelerator = accelerator_of(settings)
    environment: TorchElasticEnvironment | SLURMEnvironment | None = None
    devices = nodes = 1
    if not alone and TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    elif not alone and _under_srun():
        environment = _slurm()
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        devices = int(os.environ.get("SLURM_NTASKS_PER_NODE", int(os.environ.get("SLURM_NTASKS", "1")) // nodes))
    world = devices * nodes
    if settings.strategy == "fsdp" and not alone and world == 1:
        raise EutecticError(
            "train.strategy",
            "fsdp with one process",
            "at least two processes to shard the parameters over",
            "set train.processes, start with torchrun or srun, or leave train.strategy at auto",
        )
    return lf.Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if environment is None else _strategy(settings, world),
        plugins=[p for p in (_precision(settings, accelerator), environment) if p is not None],
    )


def _slurm() -> SLURMEnvironment:
    try:
        return SLURMEnvironment()
    except RuntimeError as error:
        raise EutecticError(
            "SLURM", str(error), "a job with a number of tasks per node", "submit it with --nodes and --ntasks-per-node"
        ) from error


def _strategy(settings: LoopSettings, world: int) -> Strategy:
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)
    # Buffers are constants, equal in every process. A forward pass must not communicate, since processes can have
    # different numbers of passes. (The option was renamed in PyTorch 2.13.)
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False}
    return DDPStrategy(gradient_as_bucket_view=True, **options)


def _shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP: every process keeps its shard of each parameter; a backbone's repeated blocks are gathered one by one."""
    from torch.distributed.fsdp import fully_shard

    data_parallel = mesh["data_parallel"]
    for block in cast(Backbone, model.backbone).repeated:
        fully_shard(block, mesh=data_parallel)
    fully_shard(model, mesh=data_parallel)
    return model


def _precision(settings: LoopSettings, accelerator: str) -> Precision:
    if settings.precision == "64-true":
        return _Double()
    if settings.precision == "32-true":
        return Precision()
    return _Mixed(settings.precision, accelerator)


def share_threads(settings: LoopSettings, processes: int) -> None:
    """Set this process's number of threads: from the settings, OMP_NUM_THREADS, or its share of the cores.

    The variable is ignored under torchrun, which sets it to 1 itself.
    """
    variable = "" if "LOCAL_RANK" in os.environ else os.environ.get("OMP_NUM_THREADS", "")
    threads = settings.threads or (int(variable) if variable.isdigit() else 0)
    torch.set_num_threads(threads or max(1, cores() // processes))


def once(fabric: lf.Fabric, work: Callable[[], T]) -> T:
    """Call `work` in the first process only and send the result to every process. An error is reported once.

    Args:
        fabric: launched.
        work: its result must be picklable.
    """
    if fabric.world_size == 1:
        return work()
    result: T | None = None
    failure: BaseException | None = None
    if fabric.global_rank == 0:
        try:
            result = work()
        except (EutecticError, Interrupted) as error:
            failure = error
    result, failed = fabric.broadcast((result, failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(1)
    return result  # type: ignore[return-value]


def launch(settings: LoopSettings, work: Work) -> None:
    """Call `work` in every process of the run.

    A run with one process runs in this process. With torchrun or srun, this process is one of those of the run.
    Otherwise `settings.processes` processes are spawned, and an exception in one of them is raised here.

    Args:
        settings: of the run.
        work: must be picklable if processes are spawned.

    Raises:
        Interrupted, EutecticError: as raised in a process.
    """
    if launched_outside() or settings.processes == 1:
        stop = StopFlag()
        with stop.listening():
            fabric = make_fabric(settings)
            fabric.launch()
            _within_group(fabric, stop, work)
        return
    context = multiprocessing.get_context("spawn")
    with _signals_blocked():
        outcomes, shared = context.SimpleQueue(), context.Value("b", 0, lock=False)
    stop = StopFlag(shared)
    with stop.listening():
        port = _free_port()
        world = settings.processes
        children = [
            context.Process(target=_child, args=(rank, world, port, settings, work, outcomes, shared), daemon=False)
            for rank in range(world)
        ]
        with _signals_blocked():
            for child in children:
                child.start()
        try:
            ended = _first_outcome(children, outcomes)
        finally:
            for child in children:
                child.kill()  # those still running are waiting for a process that has ended
                child.join()
    if ended is not None:
        raise ended


def _first_outcome(children: Sequence[BaseProcess], outcomes: Any) -> BaseException | None:
    """The exception that ended the run; None if the first process finished, which needs all the others."""
    running: dict[Any, BaseProcess] = {child.sentinel: child for child in children}
    while running:
        for sentinel in wait(list(running)):
            child = running.pop(sentinel)
            child.join()
            deadline = time.monotonic() + (2.0 if child.exitcode else 0.0)
            while outcomes.empty() and time.monotonic() < deadline:
                time.sleep(0.02)  # wait for the report of another process, whose end can make this one fail
            if not outcomes.empty():
                # A process that has reported its outcome may crash on exit (in gloo's threads), which is harmless.
                ended: BaseException | None = outcomes.get()
                if not isinstance(ended, EutecticError):
                    for other in running.values():
                        other.join(30.0)
                return ended
            if child.exitcode:
                return EutecticError(
                    "training",
                    f"a worker process died (exit status {child.exitcode})",
                    "worker processes that finish",
                    "look for its traceback above; without one, it was killed, most likely because memory ran out: use "
                    "fewer processes or a smaller batch, then run the same command again",
                )
    return None


@contextmanager
def _signals_blocked() -> Any:
    """Block signals, also in processes started in this block; only the parent handles them.

    Child processes inherit the blocked signals; in this process they stay pending and are handled after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # The resource tracker is also a process, and its first use unblocks two of the signals.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _child(rank: int, world: int, port: int, settings: LoopSettings, work: Work, outcomes: Any, shared: Any) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent handles them and forwards them through `shared`
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        GROUP_RANK="0",
        GROUP_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="eutectic",
    )
    try:
        fabric = make_fabric(settings)
        fabric.launch()
        _within_group(fabric, StopFlag(shared), work)
        if rank == 0:
            outcomes.put(None)
    except (Interrupted, EutecticError) as error:
        if rank == 0 or isinstance(error, EutecticError):
            outcomes.put(error)


def _within_group(fabric: lf.Fabric, stop: StopFlag, work: Work) -> None:
    try:
        work(fabric, stop)
    finally:
        if torch.distributed.is_initialized():
            # At interpreter exit, this would race with gloo's threads.
            torch.distributed.destroy_process_group()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
