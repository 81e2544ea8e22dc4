"""Open a Dask cluster: in this process, as processes, one process per GPU, on a batch system, or at an address.

There is one code path for all of them; they differ only in how the client is created, and in the number of units that
can be processed at the same time (slots).
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
import threadpoolctl
from distributed import Client, LocalCluster, WorkerPlugin

from csstdask.core.errors import ClusterError, InputError
from csstdask.core.malloc import retain_freed_memory
from csstdask.core.optional import install_hint
from csstdask.engine.schedulers import check_scheduler

#: Address of all servers of a local cluster: loopback, on any free port.
_LOOPBACK = "127.0.0.1:0"
#: Maximum wait for a scheduler at an address [s].
CONNECT_SECONDS = 15
#: Maximum wait for a batch system to start the first worker [s].
_BATCH_QUEUE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Slots:
    """A client, and the number of units that its workers process at the same time."""

    client: Client
    """Connected client."""
    count: int
    """Number of units processed at the same time."""

    @property
    def dashboard(self) -> str | None:
        """Return the address of Dask's dashboard; None if there is none, or bokeh, which draws it, is not installed."""
        if find_spec("bokeh") is None:
            return None
        try:
            return self.client.dashboard_link or None
        except KeyError:  # a scheduler elsewhere that has none
            return None


class ThreadLimitPlugin(WorkerPlugin):
    """Limit the intra-op threads of all libraries on a worker.

    The rounding of some kernels depends on the number of threads, so that it is part of what decides pixels. Workers in
    this process would inherit the settings of the interpreter.
    """

    name = "csstdask-thread-limit"

    def __init__(self, threads: int, *, own: bool) -> None:
        self.threads = threads
        self.own = own
        """Whether the process belongs to this run alone."""

    def setup(self, worker: Any) -> None:  # noqa: ARG002
        """Set the limits in the worker's process; ignore Ctrl-C, which the driver handles."""
        limit_threads(self.threads)
        if self.own:
            retain_freed_memory()
        if multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def limit_threads(threads: int) -> None:
    """Set intra-op threads of BLAS, OpenMP and torch in this process.

    Every task calls it: a new worker may get its first task before the plug-in, and a library that a step has just
    imported has its own thread pool.
    """
    threadpoolctl.threadpool_limits(limits=threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@contextmanager
def open_cluster(scheduler: str, workers: int, *, threads_per_unit: int = 1) -> Iterator[Slots]:
    """Open a client for a run.

    Parameters
    ----------
    scheduler : str
        ``threads``, ``processes``, ``cuda``, ``slurm`` or the address of a Dask scheduler.
    workers : int
        Number of units processed at the same time; at an address, that of the existing workers is used.
    threads_per_unit : int
        Number of intra-op threads of one unit.

    Raises
    ------
    InputError
        If the scheduler is none of these, needs a package that is not installed, or has no workers.
    ClusterError
        If its workers do not start.
    """
    config = {
        "distributed.scheduler.work-stealing": False,
        "distributed.scheduler.no-workers-timeout": "120s",
        "distributed.scheduler.allowed-failures": 2,
        "distributed.comm.timeouts.connect": "30s",
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.admin.large-graph-warning-threshold": "100MB",
    }
    check_scheduler(scheduler)
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A starting worker imports the script of its driver. Without a guard, the script opens a cluster again: this
        # process ends silently, and the driver reports why.
        raise SystemExit(1)
    quiet = logging.getLogger("distributed")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        with dask.config.set(config), _client(scheduler, workers) as slots:
            own = scheduler in {"processes", "cuda"}
            slots.client.register_plugin(ThreadLimitPlugin(threads_per_unit, own=own))
            yield slots
    finally:
        quiet.setLevel(level)


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Slots]:
    # Never the default client of the process: it would change where other arrays are computed, and may outlive the
    # cluster.
    if scheduler in {"threads", "processes"}:
        processes = scheduler == "processes"
        with (
            threadpoolctl.threadpool_limits(),  # restores what limit_threads changes in this process
            _started(
                LocalCluster,
                n_workers=workers if processes else 1,
                threads_per_worker=1 if processes else workers,
                processes=processes,
                host="127.0.0.1" if processes else None,
                dashboard_address=_LOOPBACK,
                worker_dashboard_address=_LOOPBACK,
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield Slots(client, workers)
    elif scheduler == "cuda":
        cuda_cluster = _optional("dask_cuda", "LocalCUDACluster", "gpu")
        # Three threads per GPU overlap reading, computing and writing. Task outputs are small: no spilling.
        with (
            _started(cuda_cluster, threads_per_worker=3, device_memory_limit=0, dashboard_address=_LOOPBACK) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield Slots(client, sum(client.nthreads().values()))
    elif scheduler == "slurm":
        with _slurm_cluster() as cluster, Client(cluster, set_as_default=False) as client:
            cluster.scale(jobs=workers)
            client.wait_for_workers(1, timeout=_BATCH_QUEUE_SECONDS)
            yield Slots(client, max(workers, sum(client.nthreads().values())))
    else:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(
                "--scheduler", f"no answer from {scheduler} ({type(error).__name__})", "a Dask scheduler"
            ) from None
        with client:
            threads = sum(client.nthreads().values())
            if threads == 0:
                raise InputError("--scheduler", f"{scheduler} without workers", "at least one worker")
            yield Slots(client, threads)


@contextmanager
def _started(make: Callable[..., Any], **options: Any) -> Iterator[Any]:
    """Open a cluster of processes on this machine.

    Raises
    ------
    ClusterError
        If a worker ends while it starts; Dask raises one of several exceptions.
    """
    try:
        cluster = make(**options)
    except (RuntimeError, OSError, TimeoutError) as error:
        what, cure = f"a worker process ended while it started ({type(error).__name__})", _start_cure()
        if not options.get("processes", True):
            what, cure = "Dask's scheduler did not start", " ".join(str(error).split())
        raise ClusterError(f"--scheduler: {what}; {cure}") from None
    with cluster:
        yield cluster


def _start_cure() -> str:
    """Return advice for workers that do not start; the usual reason is a script without a main guard."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        guarded = script is None or "__name__" in Path(script).read_text(encoding="utf-8", errors="replace")
    except OSError:
        guarded = True
    if guarded:
        return "was it killed for its memory? Use fewer --workers, or --scheduler threads"
    return f'put what {script} does under `if __name__ == "__main__":`, since each worker imports it'


def _slurm_cluster() -> Any:
    """Return a cluster of Slurm jobs, from the user's configuration of dask-jobqueue."""
    slurm_cluster = _optional("dask_jobqueue", "SLURMCluster", "slurm")
    if shutil.which("sbatch") is None:
        raise InputError("--scheduler slurm", "no command sbatch", "a machine from which Slurm jobs can be submitted")
    try:
        return slurm_cluster()
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            "--scheduler slurm",
            f"no configuration of its jobs ({reason})",
            "cores, memory and walltime under jobqueue.slurm in ~/.config/dask/jobqueue.yaml",
        ) from None


def _optional(module: str, name: str, extra: str) -> Any:
    import importlib  # noqa: PLC0415

    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        raise InputError("--scheduler", f"no package {module}", install_hint(extra)) from None
