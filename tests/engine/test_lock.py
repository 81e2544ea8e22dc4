"""One driver a store: a live one is respected, a dead one buried, a zombie worker kept from writing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from csstdask.core.errors import LostOwnershipError, RunLockedError
from csstdask.engine.lock import Attempt, DriverLock, read_owner


def test_a_live_driver_is_respected_and_its_lock_goes_with_it(tmp_path):
    path = tmp_path / "driver.json"
    with DriverLock(path) as lock:
        assert read_owner(path)["token"] == lock.token
        with pytest.raises(RunLockedError, match=f"process .* on {socket.gethostname()}"), DriverLock(path):
            pass
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path):
    path = tmp_path / "driver.json"
    code = (
        "import os; from pathlib import Path; from csstdask.engine.lock import DriverLock;"
        f"DriverLock(Path({str(path)!r})).__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert read_owner(path) is not None
    start = time.monotonic()
    with DriverLock(path) as lock:
        assert read_owner(path)["token"] == lock.token
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("age", "alive"), [(5, True), (1000, False)])
def test_another_host_lives_by_its_heartbeat(tmp_path, age, alive):
    path = tmp_path / "driver.json"
    owner = {"token": "x", "host": "elsewhere", "pid": 1, "started": 0, "since": "then", "heartbeat": time.time() - age}
    path.write_text(json.dumps(owner))
    if alive:
        with pytest.raises(RunLockedError, match="elsewhere"), DriverLock(path):
            pass
    else:
        with DriverLock(path):
            assert read_owner(path)["host"] == socket.gethostname()


def test_of_many_that_start_together_over_a_dead_lock_one_wins(tmp_path):
    import threading

    path = tmp_path / "driver.json"
    owner = {
        "token": "x",
        "host": socket.gethostname(),
        "pid": 2**22 - 1,
        "started": 0,
        "since": "then",
        "heartbeat": 0,
    }
    path.write_text(json.dumps(owner))
    inside, refused, gate = [], [], threading.Barrier(8)

    def start():
        gate.wait()
        try:
            with DriverLock(path) as lock:
                inside.append(lock.token)
                gate.wait(timeout=20)
        except RunLockedError:
            refused.append(1)
            gate.wait(timeout=20)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 7)


def test_a_superseded_attempt_may_not_write(tmp_path):
    lock_path, claim = tmp_path / "driver.json", tmp_path / "ledger" / "7.claim"
    with DriverLock(lock_path) as lock:
        first = Attempt(claim, lock_path, lock.token)
        first.check()
        second = Attempt(claim, lock_path, lock.token)
        with pytest.raises(LostOwnershipError, match="another attempt"):
            first.check()
        first.release()
        second.check()
        second.release()
        assert not claim.exists()
        third = Attempt(claim, lock_path, lock.token)
    with pytest.raises(LostOwnershipError, match="driver"):
        third.check()
    with pytest.raises(LostOwnershipError, match="driver"):
        Attempt(claim, lock_path, lock.token)
