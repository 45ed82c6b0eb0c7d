"""The driver: plan, hand shards to Ray, keep count, and leave OUT so that the same command can go on from there."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from jobs.cluster import Outcome, RayWorkers, ShardFailed, ShardLost
from jobs.errors import (
    ErrorRateExceeded,
    ExitCode,
    JobError,
    LockHeld,
    ManifestChanged,
    OutputNotWritable,
    PlanChanged,
    ShardsUnfinished,
    UsageError,
)
from jobs.interrupt import handled_by, install, signal_name
from jobs.manifests.manifest import Manifest
from jobs.manifests.plan import build_plan
from jobs.prepare import RunConfig, open_checked_manifest, settings_of, shard_task
from jobs.progress import Reporter, reporter
from jobs.results.output import Output
from jobs.results.summary import Reason, RunState, build_summary
from jobs.storage.errors import StorageError
from jobs.storage.lock import RunLock, hold_lock, is_owner
from jobs.worker.shard import RunOver, ShardTask

POLL_S = 0.5
CAPACITY_REFRESH_S = 10.0
MAX_LOSSES = 8
"""Times a shard is tried again whose worker was lost. What our own code raises is not tried again."""
HAND_BACK_S = 25.0
"""From a signal to the end, whatever hangs: schedulers follow SIGTERM with SIGKILL after 30 s."""
LOCK_LOST = "another run took the lock over; this one was silent for too long"
NOT_SHARED = "a worker does not find {}, which this run holds: OUT has to be on storage that all workers share"
MIN_ROWS_FOR_ERROR_RATE = 200
"""Fewer rows say little about a rate; a smaller job is judged at its end."""


class Interrupted(BaseException):
    """A signal came. No `Exception`, so that no one on the way takes it for a failure of theirs."""


class RunInterrupted(JobError):
    """A signal ended the run; the same command continues it."""

    exit_code = ExitCode.INTERRUPTED


class Interruption:
    """SIGINT and SIGTERM: raised where they come, or, while `deferred`, only noted."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.deferred = False
        self.last_call = threading.Timer(HAND_BACK_S, _leave)
        self.last_call.daemon = True

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; those after the first change nothing."""
        if self.signal is None:
            self.signal = signal_name(number)
            self.last_call.start()
            if not self.deferred:
                self.check()

    def __enter__(self) -> None:
        return

    def __exit__(self, *exception: object) -> None:
        self.last_call.cancel()

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signal is not None:
            raise Interrupted(f"interrupted by {self.signal}; the same command continues the run")


def _leave() -> None:
    """End this process without any more ado; its lock is seen to be dead."""
    sys.stderr.write(f"homoalign: interrupted; {HAND_BACK_S:g} s later something still hangs, left as after a kill\n")
    sys.stderr.flush()
    os._exit(ExitCode.INTERRUPTED)


def run_job(run: RunConfig) -> dict[str, Any]:
    """Run the job to its end.

    Returns:
        What summary.json holds.

    Raises:
        JobError: with the exit code; once work has begun, summary.json says why it ended.
    """
    interruption = Interruption()
    with handled_by(interruption), interruption:
        try:
            manifest = open_checked_manifest(run)
            output = run.output
            with hold_lock(run.store, output.url, wait_s=run.wait_lock_s) as lock:
                state = survey(run, manifest, output)
                return _Driver(run, manifest, output, state, lock, interruption).drive()
        except Interrupted as error:
            raise RunInterrupted(str(error)) from None
        except StorageError as error:
            raise OutputNotWritable(f"OUT: {error}") from error


def survey(run: RunConfig, manifest: Manifest, output: Output) -> RunState:
    """Agree with what OUT holds, and count the parts that are there. Changes nothing.

    Raises:
        PlanChanged: OUT holds another plan, or parts without one.
    """
    if run.overwrite:
        check_manifest_is_apart(manifest, output)
    previous = None if run.overwrite else output.read_plan()
    present = [] if run.overwrite else output.part_numbers()
    if previous is None and present:
        raise PlanChanged(f"{output.data} holds {len(present)} parts without a plan.json; --overwrite clears them")
    plan = build_plan(manifest, settings_of(run, manifest, previous), previous=previous, incremental=run.incremental)
    state = RunState(plan=plan, is_new=previous is None or plan.fingerprint != previous.fingerprint)
    state.add_parts(output.tallies(plan, present, manifest.fields(run.carry)), run.retry)
    return state


def begin(run: RunConfig, output: Output, state: RunState) -> None:
    """Make OUT ready for what is left to do: from here on it holds this run."""
    state.is_begun = True
    if run.overwrite:
        output.clear()
    if not state.is_complete:
        output.remove_success()
    if state.is_new:
        output.write_plan(state.plan)


def check_manifest_is_apart(manifest: Manifest, output: Output) -> None:
    """Raise `UsageError` where clearing OUT would delete a file of the manifest."""
    for file in manifest.files:
        if file.path.startswith(f"{output.data}/"):
            raise UsageError(f"--overwrite would delete {file.path}, which is part of the manifest")


@dataclass(frozen=True, slots=True)
class _Driver:
    """One attempt to finish a plan."""

    run: RunConfig
    manifest: Manifest
    output: Output
    state: RunState
    lock: RunLock
    interruption: Interruption

    def drive(self) -> dict[str, Any]:
        """Do what is left, then write how it ended."""
        state = self.state
        self.output.remove_leftovers()
        if state.is_complete and not state.to_retry and self.output.is_success():
            summary = self.output.read_summary()
            if summary is not None and summary.get("fingerprint") == state.plan.fingerprint:
                self.check_error_rate()
                return summary
        reason = Reason.FAILED
        try:
            self.work()
            reason = Reason.DONE if state.is_complete and not state.failed else Reason.SHARDS_UNFINISHED
        except Interrupted:
            reason = Reason.INTERRUPTED
            raise
        except ErrorRateExceeded:
            reason = Reason.ERROR_RATE
            raise
        finally:
            self.interruption.deferred = True
            summary = build_summary(state, reason)
            if state.is_begun and not self.lock.lost.is_set():
                self.output.remove_leftovers()
                self.output.write_summary(summary)
        if reason is Reason.SHARDS_UNFINISHED:
            shown = "; ".join(f"shard {shard}: {text}" for shard, text in sorted(state.failed.items())[:5])
            raise ShardsUnfinished(
                f"{len(state.failed)} of {state.plan.num_shards} shards could not be finished: {shown}"
            )
        self.output.write_success(state.plan)
        return summary

    def work(self) -> None:
        """Make every part that is missing, or that holds rows to try again."""
        run, state, plan = self.run, self.state, self.state.plan
        todo = sorted({*range(plan.num_shards)} - state.done | {*state.to_retry})
        if todo:
            self.interruption.deferred = True  # Ray does not start well with an exception in between
            with self.join_workers() as workers:
                install(self.interruption)  # in place of Ray's own handler
                self.interruption.check()
                begin(run, self.output, state)
                state.device, state.num_workers = workers.device, workers.num_workers()
                with reporter(run.progress, total=plan.rows, done=state.tally.rows) as shown:
                    shown.update(state.tally.rows, state.tally.counts)
                    self.hand_out(deque(todo), workers, shown)
        else:
            begin(run, self.output, state)
        self.check_error_rate()

    def join_workers(self) -> RayWorkers:
        run = self.run
        try:
            return RayWorkers(
                run.address,
                device=run.device,
                num_cpus=run.num_cpus,
                num_gpus=run.num_gpus,
                max_workers=run.max_workers,
            )
        except BaseException:
            self.interruption.check()  # a signal to the whole process group ends Ray's processes as well
            raise

    def task(self, shard: int, device: str) -> ShardTask:
        retry = self.run.retry if shard in self.state.done else frozenset[str]()
        lock = (self.lock.url, self.lock.me.owner)
        task = shard_task(self.run, self.manifest, self.state.plan, shard, device=device, retry=retry, lock=lock)
        return replace(task, attempt=self.state.losses[shard])

    def hand_out(self, todo: deque[int], workers: RayWorkers, shown: Reporter) -> None:
        """Keep a bounded number of shards under way until none is left."""
        state = self.state
        capacity, refreshed = workers.capacity(), time.monotonic()
        while True:
            if time.monotonic() - refreshed > CAPACITY_REFRESH_S:
                capacity, refreshed = workers.capacity(), time.monotonic()
            while todo and workers.num_under_way < capacity:
                workers.submit(self.task(todo.popleft(), workers.device))
            if not workers.num_under_way:
                return
            for shard, outcome in workers.wait(POLL_S):
                if self.is_to_do_again(shard, outcome):
                    todo.appendleft(shard)
                shown.update(state.tally.rows, state.tally.counts)
            self.interruption.check()
            if self.lock.lost.is_set():
                raise LockHeld(LOCK_LOST)
            if not state.to_retry:  # rows to try again count as failed until they are done
                self.check_error_rate()

    def is_to_do_again(self, shard: int, outcome: Outcome) -> bool:
        """Count what became of a shard; return whether it should be tried again.

        Raises:
            LockHeld, OutputNotWritable: no shard can leave its part any more.
            ManifestChanged: what is done and what is left no longer belong together.
        """
        state = self.state
        if isinstance(outcome, ShardLost):
            state.losses[shard] += 1
            if state.losses[shard] <= MAX_LOSSES:
                return True
            state.failed[shard] = f"lost {state.losses[shard]} times, at last: {outcome.reason}"
        elif isinstance(outcome, ShardFailed):
            if isinstance(outcome.cause, (OutputNotWritable, ManifestChanged)):
                raise outcome.cause
            if isinstance(outcome.cause, RunOver):
                if is_owner(self.run.store, self.lock.url, self.lock.me.owner):
                    raise OutputNotWritable(NOT_SHARED.format(self.lock.url)) from outcome.cause
                self.lock.lost.set()
                raise LockHeld(LOCK_LOST) from outcome.cause
            state.failed[shard] = outcome.reason
        else:
            state.add_shard(shard, outcome.tally, outcome.replaced, self.run.retry)
        return False

    def check_error_rate(self) -> None:
        """Raise `ErrorRateExceeded` once enough rows have failed."""
        tally, limit = self.state.tally, self.run.max_error_rate
        if tally.rows < min(MIN_ROWS_FOR_ERROR_RATE, self.state.plan.rows) or not tally.error_rate > limit:
            return
        commonest = "; ".join(f"{count} x {example}" for _, (count, example) in tally.failures()[:3])
        raise ErrorRateExceeded(
            f"{tally.error_rate:.1%} of {tally.rows} rows failed, --max-error-rate is {limit:.1%}: {commonest}"
        )
