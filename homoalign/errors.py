"""What can go wrong with one pair, each with the status its row gets.

HomoalignError
  PairError               one pair; its row gets `status`, the job goes on
    ImageUnreadable       unreadable
    ImageTooLarge         too_large
    RowInvalid            invalid_row
    UriNotAllowed         not_allowed
    PairTimedOut          timed_out
  JobError                the run; see `jobs.errors`
"""

from __future__ import annotations

from typing import ClassVar

from homoalign.status import Status


class HomoalignError(Exception):
    """Root of every error this project raises on purpose."""


class PairError(HomoalignError):
    """One pair cannot be aligned. The message names the side, the value and the limit."""

    status: ClassVar[Status]


class ImageUnreadable(PairError):
    """The bytes are missing, truncated, or not an image that is supported."""

    status = Status.UNREADABLE


class ImageTooLarge(PairError):
    """More pixels or bytes than the run allows; found from the header, before anything is decoded."""

    status = Status.TOO_LARGE


class RowInvalid(PairError):
    """A manifest cell is missing or malformed."""

    status = Status.INVALID_ROW


class UriNotAllowed(PairError):
    """A URI outside what the run allows."""

    status = Status.NOT_ALLOWED


class PairTimedOut(PairError):
    """Fetching or decoding took longer than the run allows."""

    status = Status.TIMED_OUT
