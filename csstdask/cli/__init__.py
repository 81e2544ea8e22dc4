"""The command line: one function per command, without logic.

`survey` makes, reprocesses and exports surveys; `single_files` processes one file at a time; `train`, `evaluate`,
`label` and `models` are about models.

Exit codes: 0 all done; 1 finished, but some units or files failed, each of them named; 2 wrong usage or unusable input,
in one line; 130 after Ctrl-C and 143 after SIGTERM, with finished work saved.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any

import typer

from csstdask.cli import evaluate, label, models, single_files, survey, train
from csstdask.cli.options import app, print_message
from csstdask.cli.signals import TerminatedError, end_now, install_handlers
from csstdask.core.errors import CsstdaskError
from csstdask.core.malloc import retain_freed_memory

__all__ = ["app", "evaluate", "label", "main", "models", "single_files", "survey", "train"]


def main() -> None:
    """Run the command line; turn errors into one line and an exit code."""
    retain_freed_memory()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("csstdask").setLevel(logging.INFO if not sys.stderr.isatty() else logging.ERROR)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # workers log errors while they are closed
    install_handlers()
    try:
        code = app(standalone_mode=False) or 0
    except CsstdaskError as error:
        print_message(f"csstdask: {' '.join(str(error).split())}")
        code = 2
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        print_message(f"csstdask: {error.filename}: {error.strerror}")
        code = 2
    except OSError as error:
        print_message(f"csstdask: {error.filename or 'input or output'}: {error.strerror or error}")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except TerminatedError:
        code = 143
    except Exception as error:
        # A usage error. Its class is that of the copy of click inside typer, or of click itself.
        if not hasattr(error, "format_message"):
            raise
        print_message(f"csstdask: {_usage_error(error)}")
        code = 2
    if code in {130, 143}:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        end_now(code)  # threads that still process units cannot be stopped; they no longer own anything
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)


def _usage_error(error: Any) -> str:
    """Return the message of a usage error in one line, with the command whose help explains its options."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    return f"{message[0].lower()}{message[1:]}{hint}"
