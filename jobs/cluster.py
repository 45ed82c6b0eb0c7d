"""Ray: join the cluster we are on or start one in this process, and keep a bounded number of shards under way."""

from __future__ import annotations

import os
import secrets
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # Ray tells of lost workers on standard output

import ray
from ray.exceptions import RayError, RayTaskError

from jobs.errors import UsageError
from jobs.storage.errors import StorageError
from jobs.worker.child import free_device_memory, is_out_of_memory, prepare_process, run_child
from jobs.worker.isolation import align_isolated
from jobs.worker.shard import ShardDone, ShardTask, align_rows, run_shard
from jobs.worker.watch import Watchdog

CONNECT_TIMEOUT_S = 10.0
LOCAL_OBJECT_STORE_BYTES = 128 * 2**20
"""Parts go to storage from the worker; through Ray go only their tallies."""
CANCEL_WAIT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFailed:
    """Why a shard has no part; another try would end the same way."""

    shard: int
    reason: str
    cause: BaseException


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardLost:
    """What happened to the worker of a shard, or to the storage under it; it may be tried again."""

    shard: int
    reason: str


Outcome = ShardDone | ShardFailed | ShardLost


# max_calls=0: with num_gpus Ray would otherwise start a new process, and CUDA context, for every task.
# max_retries=0: what is lost is tried again by the driver, which counts, and in another way.
@ray.remote(max_calls=0, max_retries=0, retry_exceptions=False)  # type: ignore[untyped-decorator]
def _work(task: ShardTask, num_threads: int) -> ShardDone:
    if task.attempt:
        free_device_memory()
        run = partial(run_child, num_threads=num_threads)
        return run_shard(task, make_rows=lambda task: align_isolated(task, run))
    prepare_process(num_threads, task.device)
    with Watchdog(task.row_timeout_s) as watchdog:
        return run_shard(task, make_rows=lambda task: align_rows(task, watch=watchdog))


class RayWorkers:
    """Runs shards on Ray; use as a context manager."""

    def __init__(
        self, address: str | None, *, device: str, num_cpus: float, num_gpus: float | None, max_workers: int | None
    ) -> None:
        self.is_local = _connect(address)
        resources = ray.cluster_resources()
        self.device = device
        if device == "auto":
            has_gpu = resources.get("GPU", 0) > 0 and num_gpus != 0 and (not self.is_local or _torch_finds_gpu())
            self.device = "cuda" if has_gpu else "cpu"
        self.num_cpus = num_cpus
        self.num_gpus = (1.0 if self.device == "cuda" else 0.0) if num_gpus is None else num_gpus
        self.max_workers = max_workers
        self._under_way: dict[Any, int] = {}
        try:
            self._check_feasible(resources)
        except UsageError:
            ray.shutdown()
            raise

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()
        ray.shutdown()

    @property
    def num_under_way(self) -> int:
        """Return how many shards have been submitted and not returned."""
        return len(self._under_way)

    def capacity(self) -> int:
        """Return how many shards to keep under way: what the cluster runs now, and as many to follow.

        Those that wait hide Ray's scheduling, and tell an autoscaler that more workers are wanted.
        """
        if self.max_workers is not None:
            return self.max_workers
        return 2 * max(1, self.num_workers())

    def num_workers(self) -> int:
        """Return how many shards the cluster can run at a time now."""
        resources = ray.cluster_resources()
        limits = [
            int(resources.get(name, 0) / wanted)
            for name, wanted in (("CPU", self.num_cpus), ("GPU", self.num_gpus))
            if wanted > 0
        ]
        limit = min(limits, default=1)
        return limit if self.max_workers is None else min(limit, self.max_workers)

    def submit(self, task: ShardTask) -> None:
        """Start a shard."""
        options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "name": f"homoalign shard {task.index}"}
        reference = _work.options(**options).remote(task, max(1, int(self.num_cpus)))
        self._under_way[reference] = task.index

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        """Return the shards that ended, waiting for the first of them for at most `timeout_s`."""
        if not self._under_way:
            return []
        references = list(self._under_way)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        if not ready:
            ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s)
        return [(shard, _outcome(reference, shard)) for reference, shard in self._take(ready)]

    def _take(self, references: list[Any]) -> list[tuple[Any, int]]:
        return [(reference, self._under_way.pop(reference)) for reference in references]

    def cancel(self) -> None:
        """Stop what is under way and wait a little until it has stopped."""
        for reference in self._under_way:
            ray.cancel(reference, force=True)
        if self._under_way:
            ray.wait(list(self._under_way), num_returns=len(self._under_way), timeout=CANCEL_WAIT_S)
        self._under_way.clear()

    def _check_feasible(self, resources: Mapping[str, float]) -> None:
        """Where no node can join, a task that fits on none would wait for ever."""
        if self.device == "cuda" and self.num_gpus == 0:
            raise UsageError("--device cuda with --num-gpus 0: a task without a GPU sees none")
        if not self.is_local:
            return
        if self.device == "cuda" and not _torch_finds_gpu():
            raise UsageError("--device cuda, but torch finds no CUDA device here")
        for name, flag, wanted in (("CPU", "--num-cpus", self.num_cpus), ("GPU", "--num-gpus", self.num_gpus)):
            found = resources.get(name, 0.0)
            if wanted > found:
                raise UsageError(f"{flag} is {wanted:g} per task (--device {self.device}), this machine has {found:g}")


def _torch_finds_gpu() -> bool:
    """Return whether tasks on this machine could use a GPU: torch may have been built without CUDA."""
    import torch

    return torch.cuda.is_available()


def _connect(address: str | None) -> bool:
    """Join a cluster or start Ray in this process; return whether it is the latter.

    Without an address: RAY_ADDRESS, else the cluster that `ray start` put this machine in, else a local Ray. Never
    another program's own local Ray, which `auto` would find and which ends with that program.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # a task without GPUs sees none, rather than all
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    local = {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own deprecations, on every start
        if address == "local":
            with _own_token():
                ray.init(address="local", **local, **common)
            return True
        where = address or os.environ.get("RAY_ADDRESS")
        try:
            if where is None or where == "":
                return _join_or_start(local, common)
            _check_listening(where)
            ray.init(address=where, **common)
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(f"no Ray cluster at --address {where}: {str(error).partition(chr(10))[0]}") from error
    return False


def _check_listening(address: str) -> None:
    """Raise OSError where nothing listens at host:port or ray://host:port; Ray itself would try for many minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _join_or_start(local: Mapping[str, Any], common: Mapping[str, Any]) -> bool:
    try:
        with _own_token():
            ray.init(**local, **common)
    except ValueError:  # Ray found a cluster, to which the local arguments do not apply
        ray.init(**common)
        return False
    except ConnectionError:  # Ray found the traces of a cluster that is gone
        with _own_token():
            ray.init(address="local", **local, **common)
    return True


@contextmanager
def _own_token() -> Iterator[None]:
    """Protect the Ray that the block starts by a token of this process's own, which lies in no file.

    Ray keeps the first token a process gave it, so it stays in the environment, unless the block fails. A local Ray
    asks for a token unless RAY_AUTH_MODE says otherwise.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    except BaseException:
        del os.environ["RAY_AUTH_TOKEN"]
        raise


def _outcome(reference: Any, shard: int) -> Outcome:
    try:
        done: ShardDone = ray.get(reference)
    except RayTaskError as error:
        cause = error.cause if error.cause is not None else error
        reason = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
        if isinstance(cause, StorageError) or is_out_of_memory(cause):
            return ShardLost(shard=shard, reason=reason)
        return ShardFailed(shard=shard, reason=reason, cause=cause)
    except RayError as error:
        return ShardLost(shard=shard, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return done
