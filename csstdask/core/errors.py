"""The errors csstdask raises on purpose, each one clear line.

The command line turns any of them into that line and an exit code; a notebook sees them as they are.
"""

from __future__ import annotations


class CsstdaskError(Exception):
    """Root of every error that csstdask raises on purpose."""


class InputError(CsstdaskError):
    """An input that cannot be used: says which one, what was found and what was wanted.

    Parameters
    ----------
    source : str
        The file (with HDU or key, where that is known), store or argument.
    found, wanted : str
        What is there, and what would have been usable.
    """

    def __init__(self, source: object, found: str, wanted: str) -> None:
        super().__init__(f"{source}: found {found}; wanted {wanted}")
        self.source = str(source)
        self.found = found
        self.wanted = wanted

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Pickle by parts: workers send these back to the driver."""
        return type(self), (self.source, self.found, self.wanted)


class StoreError(CsstdaskError):
    """A store that cannot be opened, or whose schema is not the one this version writes."""


class RunLockedError(CsstdaskError):
    """Another live driver owns the store."""


class LostOwnershipError(CsstdaskError):
    """A worker's attempt is no longer the current one for its unit: it must not write."""


class LostDriverError(LostOwnershipError):
    """The driver that sent a unit no longer holds its store: nothing of it may be written."""


class ClusterError(CsstdaskError):
    """The workers of a cluster do not start."""


class MemoryProjectionError(CsstdaskError):
    """The projected memory of a run does not fit into this machine."""


class ReductionError(CsstdaskError):
    """A reduction cannot be computed from its partials."""
