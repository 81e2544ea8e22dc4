"""One driver a store, and proof of ownership for every attempt at a unit.

**The driver's lock** is a file with host, process and heartbeat. Whoever reads it in order to change it does so
under an advisory lock on its folder, so two drivers that start together cannot both have it. A lock whose
process is gone on this host is taken over at once; one from another host only when its heartbeat is old, for
nothing else can be known about it.

**The attempt token.** A worker that was given up (its driver was killed, its connection broke) may still be
computing, and would write over what its successor wrote. So each attempt leaves its token in the unit's
claim file and checks, before every write and before the record, that the claim is still its own and that
the driver that sent it still holds the lock. What is left is the one write that a check has just allowed; the
record's checksums make visible what could happen in it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import LostDriverError, LostOwnershipError, RunLockedError

HEARTBEAT_SECONDS = 10.0
#: A lock of another host is dead when its heart has not beaten for so long.
STALE_AFTER_SECONDS = 120.0


class DriverLock:
    """Hold a store for one driver, as a context manager.

    Parameters
    ----------
    path : Path
        The lock file.

    Raises
    ------
    RunLockedError
        On entry, if a live driver holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            owner = read_owner(self.path)
            if owner is not None and _alive(owner):
                raise RunLockedError(
                    f"{self.path.parent}: a live driver owns it "
                    f"(process {owner['pid']} on {owner['host']}, since {owner['since']})"
                )
            write_atomic(self.path, json.dumps(self._owner()).encode())
        self._heart = threading.Thread(target=self._beat, name="csstdask-heartbeat", daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._heart is not None:
            self._heart.join(timeout=1)
        with self._alone():
            owner = read_owner(self.path)
            if owner is not None and owner["token"] == self.token:
                self.path.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Look at the lock and change it with nobody in between: under an advisory lock on its folder."""
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _owner(self) -> dict[str, object]:
        process = psutil.Process()
        return {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": process.pid,
            "started": process.create_time(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "heartbeat": time.time(),
        }

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                with self._alone():
                    owner = read_owner(self.path)
                    if owner is None or owner["token"] != self.token:
                        return  # taken over: the workers see it too, and stop
                    write_atomic(self.path, json.dumps(owner | {"heartbeat": time.time()}).encode())
            except OSError:  # a full disk must not kill the heart; the next beat may succeed
                continue


def sibling_lock_path(store: Path) -> Path:
    """Return the lock file beside a store: one that can be held before the store exists.

    Examples
    --------
    >>> sibling_lock_path(Path("night/campaign.zarr")).as_posix()
    'night/.campaign.zarr.driver.json'
    """
    return store.with_name(f".{store.name}.driver.json")


def read_owner(path: Path) -> dict[str, object] | None:
    """Return who holds a lock, or None."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and "token" in owner else None


def check_owner(path: Path, token: str, subject: object) -> None:
    """Raise LostDriverError unless a driver still holds a lock.

    Parameters
    ----------
    path : Path
        The lock file.
    token : str
        Token of the driver (`DriverLock.token`).
    subject : object
        What the driver was working on, for the message.
    """
    owner = read_owner(path)
    if owner is None or owner["token"] != token:
        raise LostDriverError(f"{subject}: its driver no longer holds the lock {path}")


def _alive(owner: dict[str, object]) -> bool:
    if owner.get("host") != socket.gethostname():
        return time.time() - float(str(owner.get("heartbeat", 0))) < STALE_AFTER_SECONDS
    try:
        process = psutil.Process(int(str(owner["pid"])))
        same = abs(process.create_time() - float(str(owner["started"]))) < 2.0  # a pid can be given out again
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False


class Attempt:
    """A worker's claim on one unit.

    Parameters
    ----------
    claim : Path
        The unit's claim file.
    lock : Path
        The driver's lock file.
    driver : str
        Token of the driver that sent the unit.
    """

    def __init__(self, claim: Path, lock: Path, driver: str) -> None:
        self.claim, self.lock, self.driver = claim, lock, driver
        self.token = uuid.uuid4().hex
        check_owner(self.lock, self.driver, self.claim.stem)
        claim.parent.mkdir(parents=True, exist_ok=True)
        claim.write_text(self.token)

    def check(self) -> None:
        """Raise LostOwnershipError if this attempt is no longer the unit's."""
        try:
            current = self.claim.read_text()
        except FileNotFoundError:
            current = ""
        if current != self.token:
            raise LostOwnershipError(f"{self.claim.stem}: another attempt has taken over")
        check_owner(self.lock, self.driver, self.claim.stem)

    def release(self) -> None:
        """Drop the claim, if it is still this attempt's."""
        try:
            if self.claim.read_text() == self.token:
                self.claim.unlink()
        except FileNotFoundError:
            pass
