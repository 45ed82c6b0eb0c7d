"""What can go wrong with a run, each with the exit code the command ends with.

HomoalignError
  PairError               one pair; see `homoalign.errors`
  StorageError          3   storage fails; see `jobs.storage.errors`
  JobError                the run; the command prints one line and exits with `exit_code`
    UsageError            2   an unknown flag, config key or carried column
    ManifestInvalid       3   manifest missing or malformed
      ManifestChanged     3   it is not as it was when the run was planned
    OutputNotWritable     3   OUT cannot be written
    ErrorRateExceeded     4   more failed rows than --max-error-rate
    PlanChanged           5   OUT holds a different plan
    LockHeld              6   another run holds the lock
    ShardsUnfinished      7   some shards could not be finished
    PartDamaged           7   a shard's part cannot be read
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from homoalign.errors import HomoalignError


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    USAGE = 2
    MANIFEST_OR_OUTPUT = 3
    ERROR_RATE = 4
    PLAN_CHANGED = 5
    LOCK_HELD = 6
    SHARDS_UNFINISHED = 7
    INTERRUPTED = 130


class JobError(HomoalignError):
    """The run is wrong; nothing is started, or what is running is ended."""

    exit_code: ClassVar[ExitCode]


class UsageError(JobError):
    """An unknown flag, config key or carried column, or a value out of range."""

    exit_code = ExitCode.USAGE


class ManifestInvalid(JobError):
    """The manifest is missing, empty of files, or lacks what the contract requires."""

    exit_code = ExitCode.MANIFEST_OR_OUTPUT


class ManifestChanged(ManifestInvalid):
    """The manifest is not as it was when the run was planned."""


class OutputNotWritable(JobError):
    """OUT cannot be written."""

    exit_code = ExitCode.MANIFEST_OR_OUTPUT


class ErrorRateExceeded(JobError):
    """More rows failed than --max-error-rate allows."""

    exit_code = ExitCode.ERROR_RATE


class PlanChanged(JobError):
    """OUT holds a run of another manifest, config or shard size."""

    exit_code = ExitCode.PLAN_CHANGED


class LockHeld(JobError):
    """Another run holds the lock and its heart beats."""

    exit_code = ExitCode.LOCK_HELD


class ShardsUnfinished(JobError):
    """Some shards could not be finished; the message lists them."""

    exit_code = ExitCode.SHARDS_UNFINISHED


class PartDamaged(JobError):
    """A part is truncated, corrupt or something else; its shard is as good as unfinished."""

    exit_code = ExitCode.SHARDS_UNFINISHED
