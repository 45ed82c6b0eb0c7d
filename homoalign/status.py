"""The closed sets of answers: a pair's status, why its solver stopped, and where it started.

Each member stands beside the sentence that explains it to a user; the README's tables are these sentences.
"""

from __future__ import annotations

from enum import StrEnum


class ExplainedEnum(StrEnum):
    """A string enumeration whose members carry a sentence in `explanation`."""

    explanation: str

    def __new__(cls, value: str, explanation: str) -> ExplainedEnum:
        """Make the member `value` with its sentence."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.explanation = explanation
        return member


class Status(ExplainedEnum):
    """What became of a pair. Closed: new ones only where none of these is true."""

    OK = "ok", "confidence is at or above the threshold"
    LOW_CONFIDENCE = "low_confidence", "there is a matrix, but it is not to be trusted"
    NO_OVERLAP = "no_overlap", "the images, or their masks, share too little of the frame"
    LOW_TEXTURE = "low_texture", "an image, or the overlap, has too little structure to align on"
    NOT_CONVERGED = "not_converged", "the solver ran out of steps, of descent or of overlap before it settled"
    UNREADABLE = "unreadable", "an image or a mask is missing, truncated or no supported format"
    TOO_SMALL = "too_small", "a side has fewer pixels than the solver needs"
    TOO_LARGE = "too_large", "an image has more pixels or bytes than the run allows"
    INVALID_ROW = "invalid_row", "a manifest cell is missing or malformed"
    NOT_ALLOWED = "not_allowed", "a URI is outside what the run allows"
    TIMED_OUT = "timed_out", "fetching or decoding took longer than the run allows"
    CRASHED = "crashed", "the row killed its worker"


class StopReason(ExplainedEnum):
    """Why the solver stopped at its last level."""

    CONVERGED = "converged", "no corner moved further than the step tolerance"
    MAX_ITERATIONS = "max_iterations", "the steps of the last level ran out"
    NO_DESCENT = "no_descent", "no step, however damped, lowered the cost"
    OVERLAP_LOST = "overlap_lost", "too few pixels of the source landed on the destination"
    NOT_STARTED = "not_started", "the pair was ruled out before the first step"


class Initialisation(ExplainedEnum):
    """Where the solver started."""

    PRIOR = "prior", "the manifest's `dst_homo_src_init`"
    IDENTITY = "identity", "the identity, or frame to frame where the sizes differ"
    SEARCH = "search", "an exhaustive coarse search"
    FEATURES = "features", "matched local features"
