"""Chaos: `homoalign run` killed again and again, by seed, on a cluster of several nodes; no row may show it.

    python tests/chaos.py --schedules 200 --seed 0

A schedule is a run of a small job from an empty OUT to its end, on local disk or on an S3-compatible server. It takes a
few rounds. In each the driver is started and faults come over it: workers and nodes are killed, the store fails, and
at last the driver itself is ended, by SIGKILL or SIGTERM, at some time or at some change of OUT. Then it is left in
peace, and OUT must hold the rows of an undisturbed run, bit for bit, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from job_pairs import ENVIRONMENT, encoded, photo, write_manifest
from ray.cluster_utils import Cluster
from s3_server import Server, serve_s3

ROWS, SHARD_ROWS = 8, 2
ROUND_LIMIT_S = 600.0
"""A round that takes longer hangs; on a machine that is not starved it takes seconds."""
POLL_S = 0.005
SETTINGS = ("--set", "use_search=false", "--set", "use_features=false")
LEFT = {"_SUCCESS", "data", "plan.json", "summary.json"}


@dataclass(frozen=True)
class Fault:
    """Something that happens to a round."""

    what: str
    """`kill` or `term` the driver; `worker`: kill one that is at work; `node`: kill one, and start another."""
    after_changes: int | None = None
    """When OUT has been changed so many times in the round."""
    after_share: float = 0.0
    """Or after this share of the time that an undisturbed run takes: since the start, or, of workers, since the first
    was at work.
    """


@dataclass(frozen=True)
class Schedule:
    """What one run has to go through."""

    seed: int
    store: str
    """`disk` or `s3`."""
    max_workers: int
    failing: float
    """Share of requests that the S3 server refuses or breaks off, while faults come."""
    rounds: tuple[tuple[Fault, ...], ...]

    def text(self) -> str:
        """Return it in a line."""
        rounds = " | ".join(
            ", ".join(
                f"{fault.what}@{f'{fault.after_share:.0%}' if fault.after_changes is None else fault.after_changes}"
                for fault in faults
            )
            for faults in self.rounds
        )
        failing = f", {self.failing:.0%} failing" if self.failing else ""
        return f"seed {self.seed}, {self.store}, {self.max_workers} at a time{failing}: {rounds}"


def schedule_of(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    rng = random.Random(seed)
    store = rng.choice(["disk", "s3"])
    rounds = []
    for _ in range(rng.choice([1, 1, 2, 2, 3])):
        faults = [Fault("worker", after_share=rng.uniform(0, 0.3)) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
        if rng.random() < 0.05:
            faults.append(Fault("node", after_share=rng.uniform(0.2, 1)))
        end = rng.choice(["kill", "kill", "kill", "term"])
        if rng.random() < 0.4:
            faults.append(Fault(end, after_share=rng.uniform(0, 1.2)))
        else:
            faults.append(Fault(end, after_changes=rng.randint(1, 14)))
        rounds.append(tuple(faults))
    failing = rng.choice([0.0, 0.02, 0.05]) if store == "s3" else 0.0
    return Schedule(seed, store, rng.choice([1, 1, 2]), failing, tuple(rounds))


class Changes:
    """Counts what happens to OUT: new names on a disk, writing requests to a server."""

    def __init__(self, out: Path | None, server: Server) -> None:
        self.out, self.server = out, server
        self.seen: set[tuple[str, int]] = set()
        self.before = self._count()

    def num(self) -> int:
        """Return how many there were since the beginning."""
        return self._count() - self.before

    def _count(self) -> int:
        if self.out is None:
            return self.server.num_writes
        with contextlib.suppress(FileNotFoundError):
            for folder in (self.out, self.out / "data"):
                self.seen |= {(entry.name, entry.inode()) for entry in os.scandir(folder)}
        return len(self.seen)


@dataclass
class Lab:
    """A cluster, a store and a job to disturb; as a context manager."""

    folder: Path
    cluster: Any = None
    server: Server = field(init=False)
    expected: dict[str, pa.Table] = field(default_factory=dict)
    """The rows of an undisturbed run, by store: an error's detail names the file."""
    duration_s: float = 0.0
    """Of an undisturbed run."""
    phases: Counter[str] = field(default_factory=Counter)
    """How far OUT was whenever a driver was ended."""
    exits: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Lab:
        try:
            self.set_up()
        except BaseException:
            self.closing.close()
            raise
        return self

    def set_up(self) -> None:
        """Start all there is to start, and run the job undisturbed."""
        self.server = self.closing.enter_context(serve_s3("bucket"))
        self.closing.callback(shutil.rmtree, self.folder, ignore_errors=True)
        os.environ.update(ENVIRONMENT | {"HOMOALIGN_STORAGE_OPTIONS": json.dumps({"s3": self.server.options})})
        os.environ["RAY_TMPDIR"] = str(
            self.folder
        )  # whoever looks for a cluster on this machine must not find this one
        self.start_cluster()
        self.closing.callback(self.stop_cluster)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["jobs.commands.run", "jobs.run", "homoalign", "s3fs"])
        self.write_job()
        for store in ("s3", "disk"):
            started = time.monotonic()
            self.check(Schedule(-1, store, 2, 0.0, ()), "undisturbed")
            self.duration_s = time.monotonic() - started

    def __exit__(self, *exception: object) -> None:
        self.closing.close()

    def start_cluster(self) -> None:
        """Start a head that runs no task, and two nodes that run one each."""
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def stop_cluster(self) -> None:
        """Stop all nodes."""
        self.cluster.shutdown()

    def restart_cluster(self) -> None:
        """Start anew."""
        self.stop_cluster()
        self.start_cluster()

    def write_job(self) -> None:
        """Write the same pairs to the disk and to the server; one image of them is missing."""
        rows = []
        (self.folder / "disk").mkdir(parents=True)
        for seed in range(ROWS):
            frame = photo(seed, 72, 88)
            for side, pixels in (("src", frame[4:68, 4:84]), ("dst", frame[6:70, 2:82])):
                if (side, seed) != ("src", 5):
                    (self.folder / "disk" / f"{side}{seed}.png").write_bytes(encoded(pixels))
            rows.append({"pair_id": f"pair{seed}", "src": f"src{seed}.png", "dst": f"dst{seed}.png"})
        write_manifest(self.folder / "disk" / "pairs.parquet", rows)
        self.s3 = fsspec.filesystem("s3", **self.server.options)
        self.s3.put(f"{self.folder}/disk/", "bucket/in/", recursive=True)

    def run(self, schedule: Schedule) -> None:
        """Go through a schedule.

        Raises:
            AssertionError: it shows.
        """
        name = f"run{schedule.seed}"
        for number, faults in enumerate(schedule.rounds):
            self.server.fail(schedule.failing, seed=schedule.seed + number)
            try:
                self.disturbed(schedule, name, faults)
            finally:
                self.server.fail(0.0)
        self.check(schedule, name)

    def disturbed(self, schedule: Schedule, name: str, faults: Sequence[Fault]) -> None:
        """Start the driver and let faults come over it until it has ended."""
        changes = Changes(self.folder / name if schedule.store == "disk" else None, self.server)
        driver, started = self.start(schedule, name), time.monotonic()
        left, ended_by, busy_since = list(faults), "", 0.0
        while driver.is_alive():
            if not busy_since and any(fault.what == "worker" for fault in left) and self.busy():
                busy_since = time.monotonic()
            since = {"worker": busy_since or float("inf")}
            for fault in [
                fault
                for fault in left
                if (time.monotonic() - since.get(fault.what, started) >= fault.after_share * self.duration_s)
                and (fault.after_changes is None or changes.num() >= fault.after_changes)
            ]:
                left.remove(fault)
                self.faults[fault.what] += self.inflict(fault.what, driver)
                if fault.what in ("kill", "term"):
                    ended_by = fault.what
                    self.phases[self.phase(schedule, name)] += 1
            if time.monotonic() - started > ROUND_LIMIT_S:
                driver.kill()
                ended_by = "hung"
            time.sleep(POLL_S)
        driver.join()
        self.exits[f"{ended_by or 'left alone'}: {driver.exitcode}"] += 1
        allowed = {"kill": {0, -9}, "term": {0, 130, -15}, "": {0}, "hung": set[int]()}[ended_by]
        if not (ended_by == "" and schedule.failing):  # a store that fails may end a run; the next one goes on
            assert driver.exitcode in allowed, f"exit code {driver.exitcode}: {self.log(name)}"

    def inflict(self, what: str, driver: Any) -> bool:
        """Do it; return whether there was anyone to do it to."""
        if what in ("kill", "term"):
            os.kill(driver.pid, signal.SIGKILL if what == "kill" else signal.SIGTERM)
            return True
        if what == "node":
            self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=1))
            return True
        busy = self.busy()
        for pid in busy[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(busy)

    def busy(self) -> list[int]:
        """Return the processes that run a shard."""
        return [pid for node in self.nodes for pid in busy_workers(node)]

    def phase(self, schedule: Schedule, name: str) -> str:
        """Return how far a run is, by what OUT holds."""
        names = self.names(schedule, name)
        parts = sum(entry.startswith("data/part-") for entry in names)
        if "lock.json" not in names:
            return "before the lock"
        if "plan.json" not in names:
            return "plan and start of Ray"
        if any(entry.endswith(".tmp") for entry in names):
            return "commit"
        if parts == 0:
            return "fetch and align, no part yet"
        return "fetch, align and commit" if parts < ROWS // SHARD_ROWS else "finish"

    def names(self, schedule: Schedule, name: str) -> set[str]:
        """Return what OUT holds."""
        if schedule.store == "disk":
            out = self.folder / name
            return {str(path.relative_to(out)) for path in out.rglob("*") if path.name != "data"}
        self.s3.invalidate_cache()
        return {path.partition(f"/{name}/")[2] for path in self.s3.find(f"bucket/{name}")}

    def check(self, schedule: Schedule, name: str) -> None:
        """Let the run come to its end in peace, and compare."""
        driver = self.start(schedule, name)
        driver.join(ROUND_LIMIT_S)
        driver.kill()
        driver.join()
        assert driver.exitcode == 0, f"exit code {driver.exitcode} in peace: {self.log(name)}"
        parts = {f"data/part-{shard:06d}.parquet" for shard in range(ROWS // SHARD_ROWS)}
        assert self.names(schedule, name) == {*LEFT, *parts} - {"data"}, self.names(schedule, name)
        if schedule.store == "s3":
            self.s3.get(f"bucket/{name}/", f"{self.folder}/{name}/", recursive=True)
        out = self.folder / name
        rows = pa.concat_tables([pq.ParquetFile(out / part).read() for part in sorted(parts)])
        rows = rows.replace_schema_metadata()
        summary = json.loads((out / "summary.json").read_text())
        assert summary["counts"] == dict(Counter(rows["status"].to_pylist())), summary
        expected = self.expected.setdefault(schedule.store, rows)
        assert rows.equals(expected), f"rows differ: {differences(rows, expected)}"
        shutil.rmtree(out)
        if schedule.store == "s3":
            self.s3.rm(f"bucket/{name}", recursive=True)

    def start(self, schedule: Schedule, name: str) -> Any:
        """Start the command in a process of its own, which has imported what it needs before."""
        folder = f"{self.folder}/" if schedule.store == "disk" else "s3://bucket/"
        manifest = f"{folder}{'disk' if schedule.store == 'disk' else 'in'}/pairs.parquet"
        command = ["run", manifest, f"{folder}{name}", "--shard-rows", str(SHARD_ROWS), *SETTINGS]
        command += ["--progress", "none", "--address", self.cluster.address, "--max-workers", str(schedule.max_workers)]
        driver = self.context.Process(target=run_command, args=(command, f"{self.folder}/{name}.log"))
        driver.start()
        return driver

    def log(self, name: str) -> str:
        """Return the end of what the command printed."""
        return (self.folder / f"{name}.log").read_text()[-3000:]


def differences(rows: pa.Table, expected: pa.Table) -> str:
    """Return the cells that differ."""
    if rows.schema != expected.schema or len(rows) != len(expected):
        return f"{len(rows)} rows of {rows.schema} for {len(expected)} of {expected.schema}"
    found = zip(rows.to_pylist(), expected.to_pylist(), strict=True)
    return "; ".join(
        f"{wanted['pair_id']} {name}: {row[name]} for {wanted[name]}"
        for row, wanted in found
        for name in row
        if row[name] != wanted[name]
    )


def busy_workers(node: Any) -> Iterator[int]:
    """Yield the processes of a node's workers that run a shard: Ray names them by their task."""
    raylet = node.all_processes["raylet"][0].process.pid
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and (entry / "cmdline").read_bytes().startswith(b"ray::homoalign"):
                yield int(entry.name)


def run_command(arguments: list[str], log: str) -> None:
    """Be `homoalign` with these arguments."""
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from jobs.cli import main

    main(arguments, prog_name="homoalign")


def run_schedules(seeds: Sequence[int], report: Callable[[str], None]) -> tuple[Lab, list[str]]:
    """Go through the schedules of these seeds, and return what showed."""
    failures = []
    with Lab(Path(tempfile.mkdtemp(prefix="homoalign-chaos-"))) as lab:
        for done, seed in enumerate(seeds, 1):
            schedule, started = schedule_of(seed), time.monotonic()
            try:
                try:
                    lab.run(schedule)
                except AssertionError:
                    raise
                except Exception as error:  # Ray's own, when a node does not start: RayError or a bare Exception
                    report(f"the cluster went away, another one is started: {error}")
                    lab.restart_cluster()
                    lab.run(schedule)
                verdict = "same rows"
            except AssertionError as error:
                failures.append(f"{schedule.text()}\n  {error}")
                verdict = f"FAILED: {error}"
            report(f"{done}/{len(seeds)} {schedule.text()}: {verdict}, {time.monotonic() - started:.1f} s")
    return lab, failures


def main() -> int:
    """Run and say what came of it."""
    parser = argparse.ArgumentParser(description="Kill the job by schedules of seeds, and compare its rows.")
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="Of the first; the others follow.")
    options = parser.parse_args()
    started = time.monotonic()

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201, a program

    lab, failures = run_schedules(range(options.seed, options.seed + options.schedules), say)
    say(f"{options.schedules} schedules from seed {options.seed} in {time.monotonic() - started:.0f} s")
    for title, counts in (("faults", lab.faults), ("drivers ended while", lab.phases), ("exit codes", lab.exits)):
        say(f"{title}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    say(f"requests to the store that failed: {lab.server.num_failed}")
    say(f"runs that did not end with the rows of an undisturbed one: {len(failures)}")
    for failure in failures:
        say(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
