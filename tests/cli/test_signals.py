"""Signals: a command prints a message and ends, whatever its workers and streams do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

#: Installs the handlers, starts a child, and then does what keeps a process from ending by itself.
PROGRAM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from csstdask.cli.signals import install_handlers
install_handlers()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pids = [child.pid]
while True:
    try:
        while pids:
            print(pids.pop(), flush=True)
        time.sleep(60)
    except BaseException:
        pass
"""


def start(**streams):
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, **streams)
    return program, int(program.stdout.readline())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_hanging_command_is_killed_with_its_children(number, code):
    program, child = start(stderr=subprocess.PIPE)
    program.send_signal(number)
    assert program.stderr.readline() == "\n"
    assert "run the command again to resume" in program.stderr.readline()
    assert program.poll() is None  # it has said so before the time of grace is over
    assert program.wait(timeout=30) == code
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_second_signal_kills_at_once():
    program, _ = start(stderr=subprocess.DEVNULL)
    program.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=30) == 143


def test_a_closed_stream_does_not_prevent_the_end():
    reader, writer = os.pipe()
    os.close(reader)
    program, _ = start(stderr=writer)
    os.close(writer)
    program.send_signal(signal.SIGTERM)
    assert program.wait(timeout=30) == 143
