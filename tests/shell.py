"""The command line in this process: what the console script runs, with its exit code and its output."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import csstdask.cli


@dataclass(frozen=True)
class Finished:
    """Result of a command, with the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def csstdask_command(*arguments: object, cwd: Path | None = None) -> Finished:
    """Run a command without a new interpreter. Tests of signals and of starting up use a subprocess instead."""
    out, err = io.StringIO(), io.StringIO()
    root, ours = logging.getLogger(), logging.getLogger("csstdask")
    handlers, level = list(root.handlers), ours.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root.handlers.clear()  # those of pytest, which would keep the command from adding its own
    with (
        mock.patch.object(sys, "argv", ["csstdask", *map(str, arguments)]),
        mock.patch.object(csstdask.cli, "retain_freed_memory"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
    ):
        try:
            csstdask.cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            root.handlers[:] = handlers
            ours.setLevel(level)
            for number, handler in signals.items():
                signal.signal(number, handler)
    return Finished(code, out.getvalue(), err.getvalue())
