"""`hpcm`: the list of commands, and the one place where an error becomes a line on stderr and an exit status.

A command's module is imported when the command is called, so that `hpcm --help` does not wait for torch.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from hpcm_codec.batch.streams import replace_closed, silence_stdout
from hpcm_codec.errors import bug, debugging
from hpcm_codec.system.files import as_hpcm_error
from hpcm_codec.system.warning_filters import print_warnings
from hpcm_codec.version import __version__

# name → its short help; the module is hpcm_codec.cli.NAME, the click command in it `command`
COMMANDS = {
    "encode": "Compress pictures to .hpcm files.",
    "decode": "Turn .hpcm files back into pictures.",
    "info": "Show what a .hpcm file, a model or a checkpoint is made of.",
    "eval": "Measure rate, quality and time on a data set.",
    "compare": "Write a page that shows pictures before and after, beside other codecs.",
    "bench": "Measure encode and decode times and memory on this machine, or training's speed.",
    "train": "Train a model on your own pictures.",
    "checkpoints": "List, check, export and import weights.",
    "doctor": "Check the installation, and say what to do about what is missing.",
}
EXIT_STATUSES = """\b
Exit status:
  0  done
  1  something else went wrong
  2  the command line makes no sense
  3  a .hpcm stream is damaged, cut short, or none at all
  4  a format version or model that is not supported here
  5  a file is missing, unreadable, not a picture, or cannot be written
  128 + N  ended by signal N; 130 is Ctrl-C
With several files, the status is that of the first failure.

\b
HPCM_DEBUG=1 shows the full traceback of an error."""
STATUS_OTHER = 1
STATUS_BROKEN_PIPE = 128 + 13  # what a shell shows for a program that SIGPIPE ended


class Interrupted(BaseException):
    """A signal requested the program's end. Only the end of `main` catches this (click would catch a KeyboardInterrupt)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class ReaderLeft(BaseException):
    """stdout was closed by its reader. Click does not catch this: it would use its own exit status."""


@contextmanager
def _noticing_that_the_reader_left() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderLeft from error
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich's way
            raise ReaderLeft from error
        raise


class HpcmGroup(click.Group):
    """Imports a command when it is called, and reports every error as one line and a documented status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"hpcm_codec.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _noticing_that_the_reader_left():  # --help is printed in here
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _noticing_that_the_reader_left():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run, and exit with a status. click's `standalone_mode` is always off."""
        extra["standalone_mode"] = False
        replace_closed()
        # Before torch is imported: threads that wait in a loop take three times the processor time on a busy machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Else Python looks for garbage several times while it ends, among all objects of torch: 0.5 s.
        atexit.register(gc.freeze)
        received = _signals_as_exceptions()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            print_warnings()
            try:
                status = _run(lambda: super(HpcmGroup, self).main(args, prog_name or "hpcm", **extra), received)
                status = status or _run(sys.stdout.flush, received)
            finally:
                _restore_signals(received)
        sys.exit(status)


@click.group(
    cls=HpcmGroup,
    epilog=EXIT_STATUSES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", message="hpcm %(version)s")
def main() -> None:
    """A learned image codec: photographs to small .hpcm files and back.

    `hpcm encode photo.png` writes photo.hpcm, `hpcm decode photo.hpcm -o copy.png` a picture again.
    """


# ------------------------------------------------------------------------------------------------- errors → exit status


def say(line: str) -> None:
    """Print a line on stderr, if it is still open."""
    with suppress(OSError, ValueError):
        click.echo(line, err=True)


def _run(work: Any, received: _Signals) -> int:
    """Do the work; any error becomes at most one line on stderr and an exit status."""
    try:
        status = work()
        return status if isinstance(status, int) else 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else STATUS_OTHER
    except BaseException as error:
        if debugging():
            raise
        status, line = _verdict(error, received)
        if line:
            say(f"hpcm: {line}")
        if isinstance(error, (OSError, ReaderLeft)):
            silence_stdout()
        return status


def _verdict(error: BaseException, received: _Signals) -> tuple[int, str]:
    """Exit status and line of an error; no line if stdout was closed by its reader."""
    # an interrupt during an import can appear as any other error
    if received.number is not None or isinstance(error, KeyboardInterrupt):
        number = received.number or signal.SIGINT
        return 128 + number, "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    if isinstance(error, (ReaderLeft, BrokenPipeError)):
        return STATUS_BROKEN_PIPE, ""
    if isinstance(error, click.ClickException):
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "hpcm"
        message = " ".join(error.format_message().split()).removesuffix(".")
        advice = f"see {command} --help" if isinstance(error, click.UsageError) else ""
        return error.exit_code, "; ".join(filter(None, [message, advice]))
    if isinstance(error, click.Abort):
        return STATUS_OTHER, "the input ended unexpectedly"
    known = as_hpcm_error(error) or bug(error)
    return known.exit_status, str(known)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say("hpcm: warning: " + " ".join(str(message).split()))


# --------------------------------------------------------------------------------------------------------------- signals


class _Signals:
    """number: the signal that has arrived, or None; previous: the handlers to put back."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.previous: dict[int, Any] = {}


def _signals_as_exceptions() -> _Signals:
    """From now on the signals that end a program raise Interrupted, so that temporary files are removed."""
    received = _Signals()

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.number = number
        raise Interrupted(number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # an ignored signal stays ignored (nohup); only the main thread can set handlers
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            with suppress(ValueError):
                received.previous[number] = signal.signal(number, interrupt)
    return received


def _restore_signals(received: _Signals) -> None:
    for number, handler in received.previous.items():
        with suppress(ValueError):
            signal.signal(number, handler)
