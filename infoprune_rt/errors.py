"""The exceptions that a user is meant to read."""

from __future__ import annotations


class InfopruneError(ValueError):
    """A mistake in what the user gave us, told in one sentence: what, where, and what to do.

    The command line prints the sentence alone and exits with status 2.
    """


class EmptyBatchError(InfopruneError):
    """Nothing is left of a batch, because all its images were corrupt and skipped; a larger batch may still do."""
