"""Locks: one driver per store, and proof of ownership for every attempt at a unit.

**The driver's lock** is a file with host, process and heartbeat. It is read and changed under an advisory lock on its
folder, so that two drivers that start together cannot both acquire it. A lock whose process has ended on this host is
taken over at once. A lock of another host is taken over only when its heartbeat is old: nothing else is known about it.

**The attempt token.** A worker that was abandoned (its driver was killed, its connection broke) may still be computing,
and would overwrite the results of its successor. Each attempt therefore writes its token into the unit's claim file and
checks, before every write and before the record, that the claim is still its own and that its driver still holds the
lock. Only a write that has just passed the check can still collide; the checksums of the record reveal it.
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

#: Time between two heartbeats [s].
HEARTBEAT_SECONDS = 10.0
#: Age of the last heartbeat from which a lock of another host may be taken over [s].
STALE_AFTER_SECONDS = 120.0


class DriverLock:
    """Lock a store for one driver, as a context manager.

    Parameters
    ----------
    path : Path
        The lock file.

    Raises
    ------
    RunLockedError
        On entry, if a live driver holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            owner = read_owner(self.path)
            if owner is not None and _is_alive(owner):
                raise RunLockedError(
                    f"{self.path.parent}: a live driver owns it "
                    f"(process {owner['pid']} on {owner['host']}, since {owner['since']})"
                )
            write_atomic(self.path, json.dumps(self._owner()).encode())
        self._heartbeat = threading.Thread(target=self._renew, name="csstdask-heartbeat", daemon=True)
        self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._heartbeat is not None:
            self._heartbeat.join(timeout=1)
        with self._exclusive():
            owner = read_owner(self.path)
            if owner is not None and owner["token"] == self.token:
                self.path.unlink(missing_ok=True)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Exclude other processes while the lock file is read and changed, by an advisory lock on its folder."""
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

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                with self._exclusive():
                    owner = read_owner(self.path)
                    if owner is None or owner["token"] != self.token:
                        return  # taken over: the workers notice it too, and stop
                    write_atomic(self.path, json.dumps(owner | {"heartbeat": time.time()}).encode())
            except OSError:  # a full disk must not end the thread: the next heartbeat may succeed
                continue


def sibling_lock_path(store: Path) -> Path:
    """Return the lock file next to a store, which can be held before the store exists.

    Examples
    --------
    >>> sibling_lock_path(Path("night/campaign.zarr")).as_posix()
    'night/.campaign.zarr.driver.json'
    """
    return store.with_name(f".{store.name}.driver.json")


def read_owner(path: Path) -> dict[str, object] | None:
    """Return the owner of a lock; None if there is none."""
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
        The job of the driver, for the message.
    """
    owner = read_owner(path)
    if owner is None or owner["token"] != token:
        raise LostDriverError(f"{subject}: its driver no longer holds the lock {path}")


def _is_alive(owner: dict[str, object]) -> bool:
    if owner.get("host") != socket.gethostname():
        return time.time() - float(str(owner.get("heartbeat", 0))) < STALE_AFTER_SECONDS
    try:
        process = psutil.Process(int(str(owner["pid"])))
        same = abs(process.create_time() - float(str(owner["started"]))) < 2.0  # process ids are reused
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False


class Attempt:
    """A worker's claim on one unit.

    Parameters
    ----------
    claim : Path
        Claim file of the unit.
    lock : Path
        Lock file of the driver.
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
        """Raise LostOwnershipError if another attempt has claimed the unit."""
        try:
            current = self.claim.read_text()
        except FileNotFoundError:
            current = ""
        if current != self.token:
            raise LostOwnershipError(f"{self.claim.stem}: another attempt has taken over")
        check_owner(self.lock, self.driver, self.claim.stem)

    def release(self) -> None:
        """Delete the claim, if it is still that of this attempt."""
        try:
            if self.claim.read_text() == self.token:
                self.claim.unlink()
        except FileNotFoundError:
            pass
