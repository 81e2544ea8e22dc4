"""The shell: one function a verb, no logic. See `survey`, `trainings`, `flux` (slitless calibration) and `zeropoint`.

Exit codes: 0 all done; 1 finished, but some units or files failed, each named; 2 bad usage or unusable input,
in one line; 130 after Ctrl-C and 143 after SIGTERM, state saved.
"""

from __future__ import annotations

import contextlib
import logging
import sys

import typer

from csstdask.cli import flux, survey, trainings, zeropoint
from csstdask.cli.options import app, say
from csstdask.cli.signals import TerminatedError, end_now, install_handlers
from csstdask.core.errors import CsstdaskError
from csstdask.core.malloc import retain_freed_memory

__all__ = ["app", "flux", "main", "survey", "trainings", "zeropoint"]


def main() -> None:
    """Run the command line, and turn errors into one line and an exit code."""
    retain_freed_memory()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("csstdask").setLevel(logging.INFO if not sys.stderr.isatty() else logging.ERROR)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # its workers complain while they are being closed
    install_handlers()
    try:
        code = app(standalone_mode=False) or 0
    except CsstdaskError as error:
        say(f"csstdask: {' '.join(str(error).split())}")
        code = 2
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        say(f"csstdask: {error.filename}: {error.strerror}")
        code = 2
    except OSError as error:
        say(f"csstdask: {error.filename or 'input or output'}: {error.strerror or error}")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except TerminatedError:
        code = 143
    except Exception as error:
        # Bad usage, in the words of whichever library parsed it: typer carries its own copy of click.
        if not hasattr(error, "format_message"):
            raise
        say(f"csstdask: {error.format_message()}")
        code = 2
    if code in {130, 143}:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        end_now(code)  # units that are still in work on threads cannot be stopped, and no longer own anything
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)
