"""Exceptions that csstdask raises for foreseeable problems.

The message is one clear line. The command line prints it and exits with a code; in Python they are ordinary exceptions.
"""

from __future__ import annotations


class CsstdaskError(Exception):
    """Base class of all exceptions of csstdask."""


class InputError(CsstdaskError):
    """An input cannot be used; the message names it, what was found and what was expected.

    Parameters
    ----------
    source : str
        File (with HDU or key, if known), store or argument.
    found, wanted : str
        Content that was found, and content that would be usable.
    """

    def __init__(self, source: object, found: str, wanted: str) -> None:
        super().__init__(f"{source}: found {found}; wanted {wanted}")
        self.source = str(source)
        self.found = found
        self.wanted = wanted

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Pickle by arguments, because workers send exceptions to the driver."""
        return type(self), (self.source, self.found, self.wanted)


class StoreError(CsstdaskError):
    """A store cannot be opened, or its schema is not that of this version."""


class RunLockedError(CsstdaskError):
    """Another live driver owns the store."""


class LostOwnershipError(CsstdaskError):
    """The attempt of a worker is no longer the current one of its unit, so that it must not write."""


class LostDriverError(LostOwnershipError):
    """The driver that submitted a unit no longer owns the store, so that the unit must not be written."""


class ClusterError(CsstdaskError):
    """The workers of a cluster did not start."""


class MemoryProjectionError(CsstdaskError):
    """The projected memory of a run exceeds that of the machine."""


class ReductionError(CsstdaskError):
    """A reduction cannot be computed from its partials."""
