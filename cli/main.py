"""The `snnzoo` command: puts the commands together, and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import snnzoo
from snnzoo.cli import common
from snnzoo.cli.bench import bench
from snnzoo.cli.convert import convert
from snnzoo.cli.demo import demo
from snnzoo.cli.download import download
from snnzoo.cli.eval import evaluate
from snnzoo.cli.export import export
from snnzoo.cli.info import info
from snnzoo.cli.inspect import inspect
from snnzoo.cli.list import list_command
from snnzoo.cli.remap import remap
from snnzoo.errors import SnnzooError

app = typer.Typer(
    name="snnzoo",
    help="Spiking ResNets and VGGs with torchvision's keys: list, convert, evaluate.",
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
app.command("export")(export)
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
    sys.exit(_run())


def _run() -> int:
    try:
        code = int(app(standalone_mode=False) or 0)
        if code == 130:  # typer has turned Ctrl-C into its exit code, and said nothing
            common.print_error("interrupted")
        return code
    except SnnzooError as error:
        return _fail(str(error), error.exit_code, error)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail("interrupted", 130, error)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nobody to tell
        return 1
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of typer itself
            message = error.format_message().rstrip(".")
            if not message:  # it has printed the help instead
                return 2
            context = getattr(error, "ctx", None)
            hint = f" See '{context.command_path} --help'." if context else ""
            return _fail(f"{message}.{hint}", int(getattr(error, "exit_code", 2)), error)
        return _fail(f"{type(error).__name__}: {error} (this is a bug; --debug shows where)", 1, error)


def _fail(message: str, exit_code: int, error: BaseException) -> int:
    if common.debug:
        raise error
    common.print_error(" ".join(message.split()))
    return exit_code
