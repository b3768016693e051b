"""The `snnzoo` command: puts the commands together, and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, TextIO

import typer

import snnzoo
from snnzoo.cli import common
from snnzoo.cli.bench import bench
from snnzoo.cli.card import card
from snnzoo.cli.convert import convert
from snnzoo.cli.demo import demo
from snnzoo.cli.download import download
from snnzoo.cli.eval import evaluate
from snnzoo.cli.export import export
from snnzoo.cli.info import info
from snnzoo.cli.inspect import inspect
from snnzoo.cli.list import list_command
from snnzoo.cli.predict import predict
from snnzoo.cli.remap import remap
from snnzoo.errors import SnnzooError

app = typer.Typer(
    name="snnzoo",
    help="Spiking networks: a zoo with torchvision's keys, and conversion of any other; list, convert, evaluate.",
    epilog="Start with: snnzoo demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_command)
app.command("info")(info)
app.command("download")(download)
app.command("convert")(convert)
app.command("eval")(evaluate)
app.command("predict")(predict)
app.command("export")(export)
app.command("card")(card)
app.command("inspect")(inspect)
app.command("remap")(remap)
app.command("bench")(bench)
app.command("demo")(demo)


def _print_version(value: bool) -> None:
    if value:
        print(f"snnzoo {snnzoo.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0 done, 1 failure, 2 usage error, 130 interrupted."""
    _prepare_streams()
    sys.exit(_run())


def _prepare_streams() -> None:
    """Make the standard streams bear any text; writing to one that is closed is an error, or for messages nothing."""
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free, so that no other file takes it
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run() -> int:
    try:
        code = int(app(standalone_mode=False) or 0)
        sys.stdout.flush()
        if code == 130:  # typer has turned Ctrl-C into its exit code, and said nothing
            common.print_error("interrupted")
        return code
    except SnnzooError as error:
        return _fail(str(error), error.exit_code, error)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail("interrupted", 130, error)
    except BrokenPipeError:  # the reader of our output has gone: nobody to tell
        _discard(sys.stdout)
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _STREAM_ERRORS:
            _discard(sys.stdout)
            return _fail(f"cannot write to standard output: {error.strerror}", 1, error)
        if hasattr(error, "format_message"):  # a usage error of typer itself
            message = error.format_message().rstrip(".")
            if not message:  # it has printed the help instead
                return 2
            context = getattr(error, "ctx", None)
            hint = f" See '{context.command_path} --help'." if context else ""
            return _fail(f"{message}.{hint}", int(getattr(error, "exit_code", 2)), error)
        return _fail(f"{type(error).__name__}: {error} (this is a bug; --debug shows where)", 1, error)


_STREAM_ERRORS = (errno.EBADF, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EDQUOT)  # of files, others tell the name


def _discard(stream: TextIO) -> None:
    """Have what `stream` still holds go nowhere, rather than fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, exit_code: int, error: BaseException) -> int:
    if common.debug:
        raise error
    common.print_error(message)
    return exit_code
