"""One driver a store, and proof of ownership for every attempt at a unit.

**The driver's lock** is a file with host, process and heartbeat. It is made with an exclusive create, so two
drivers that start together cannot both have it. A lock whose process is gone on this host is taken over at
once; one from another host only when its heartbeat is old, for nothing else can be known about it.

**The attempt token.** A worker that was given up (its driver was killed, its connection broke) may still be
computing, and would write over what its successor wrote. So each attempt leaves its token in the unit's
claim file and checks, before every write and before the record, that the claim is still its own and that
the driver that sent it still holds the lock. Between check and write there remains an instant; the claim
makes it short, and the record's checksums make what could happen in it visible.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from csstdask.durable import write_atomic
from csstdask.errors import LostOwnershipError, RunLockedError

HEARTBEAT_SECONDS = 10.0
#: A lock of another host is dead when its heart has not beaten for so long.
DEAD_AFTER_SECONDS = 120.0


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
        while not self._create():
            owner = read_owner(self.path)
            if owner is not None and _alive(owner):
                raise RunLockedError(
                    f"{self.path.parent}: a live driver owns it "
                    f"(process {owner['pid']} on {owner['host']}, since {owner['since']})"
                )
            self._take_over(owner)
        self._heart = threading.Thread(target=self._beat, name="csstdask-heartbeat", daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._heart is not None:
            self._heart.join(timeout=1)
        owner = read_owner(self.path)
        if owner is not None and owner["token"] == self.token:
            self.path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        process = psutil.Process()
        owner = {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": process.pid,
            "started": process.create_time(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "heartbeat": time.time(),
        }
        return json.dumps(owner).encode()

    def _create(self) -> bool:
        """Make the lock file, whole, if there is none: a link either succeeds or finds a name taken."""
        draft = self.path.with_name(f".{self.path.name}.{self.token}")
        draft.write_bytes(self._content())
        try:
            os.link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _take_over(self, owner: dict[str, object] | None) -> None:
        """Remove a dead driver's lock: rename it away, so that only one of several successors succeeds."""
        grave = self.path.with_name(f".{self.path.name}.dead-{self.token}")
        try:
            self.path.rename(grave)
        except FileNotFoundError:
            return
        buried = read_owner(grave)
        if buried is not None and owner is not None and buried["token"] != owner["token"]:
            os.link(grave, self.path)  # somebody else's fresh lock: give it back
        grave.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            owner = read_owner(self.path)
            if owner is None or owner["token"] != self.token:
                return
            try:
                write_atomic(self.path, json.dumps(owner | {"heartbeat": time.time()}).encode())
            except OSError:  # a full disk must not kill the heart; the next beat may succeed
                continue


def read_owner(path: Path) -> dict[str, object] | None:
    """Return who holds a lock, or None."""
    try:
        owner = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return owner if isinstance(owner, dict) and "token" in owner else None


def _alive(owner: dict[str, object]) -> bool:
    if owner.get("host") != socket.gethostname():
        return time.time() - float(str(owner.get("heartbeat", 0))) < DEAD_AFTER_SECONDS
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
        self._check_driver()
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
        self._check_driver()

    def _check_driver(self) -> None:
        owner = read_owner(self.lock)
        if owner is None or owner["token"] != self.driver:
            raise LostOwnershipError(f"{self.claim.stem}: its driver no longer holds the run")

    def release(self) -> None:
        """Drop the claim, if it is still this attempt's."""
        try:
            if self.claim.read_text() == self.token:
                self.claim.unlink()
        except FileNotFoundError:
            pass
