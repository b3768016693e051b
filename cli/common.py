"""What commands share: options, progress bars, JSON output, messages."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.conversion.metadata import MAX_TIME_STEPS
from snnzoo.errors import UsageError, printable
from snnzoo.models.registry import list_models
from snnzoo.progress import Progress

if TYPE_CHECKING:
    import torch
    from rich.console import Console

debug = False


def _set_debug(value: bool) -> None:
    global debug
    debug = debug or value


def _complete_model(incomplete: str) -> list[str]:
    return [name for name in list_models() if name.startswith(incomplete)]


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model of `snnzoo list`.", autocompletion=_complete_model)
]
NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of `snnzoo list`; torchvision:NAME, timm:NAME or hf:USER/REPO, built and fetched by that "
        "library; or FILE.py:FUNCTION, which runs your own code: yours to trust.",
        autocompletion=_complete_model,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option(help="float32, float16, bfloat16; on a CPU also int8, int16: weights.")]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Images at a time.")]
DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
WorkersOption = Annotated[int, typer.Option(min=1, metavar="N", help="Threads that read images.")]
SeedOption = Annotated[int, typer.Option(help="Which images are drawn.")]
MaxPixelsOption = Annotated[
    int, typer.Option("--max-pixels", metavar="N", min=1, help="Images that have more, or that resizing gives more.")
]
ExitOption = Annotated[
    float | None,
    typer.Option("--exit", metavar="POINTS", help="Images that are sure leave early: the file's rule of a tolerance."),
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON; - is standard output.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]
ManifestOption = Annotated[
    Path | None,
    typer.Option("--manifest", metavar="FILE", exists=True, dir_okay=False, help="More weights, in YAML."),
]
LayoutOption = Annotated[
    str | None, typer.Option(metavar="LAYOUT", help="Key layout of the checkpoint, instead of detecting it.")
]
OptionOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Of the model, which no checkpoint tells: pool=avg, option=B, stem=cifar."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no messages.")]
DebugOption = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error.")
]


def console(*, stderr: bool = False) -> Console:
    """Return a rich console; it follows NO_COLOR, and is plain where the stream is not a terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Print one line on standard error."""
    from rich.text import Text

    with contextlib.suppress(OSError):  # nobody to tell
        console(stderr=True).print(Text.assemble(("Error: ", "bold red"), printable(" ".join(message.split()))))


@contextlib.contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """Yield a callback (done, total, "task: detail") that draws one bar a task, on a terminal only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    target = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=target, transient=True, disable=quiet or not target.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, description: str) -> None:
            task = description.partition(":")[0]
            if task not in tasks:
                tasks[task] = bars.add_task(description, total=total or None)
            bars.update(tasks[task], description=description, completed=done, total=total or None)

        yield report


def say(message: str, quiet: bool) -> None:
    """Print a message for people, on standard error, so that standard output stays the result."""
    if not quiet:
        with contextlib.suppress(OSError):  # nobody to tell
            console(stderr=True).print(printable(message), markup=False)


def attempt_all(actions: Iterable[Callable[[], object]]) -> Exception | None:
    """Do each, whatever becomes of those before it; the first error, if there are any. Others are printed."""
    errors = []
    for action in actions:
        try:
            action()
        except Exception as error:
            errors.append(error)
    for further in errors[1:]:
        print_error(str(further))
    return errors[0] if errors else None


def write_json(target: str | None, result: dict[str, Any], force: bool) -> bool:
    """Write `result` where --json asks for it; True if that was standard output."""
    if target is None:
        return False
    text = json.dumps(result, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return True
    from snnzoo.checkpoints.output import atomic_output

    with atomic_output(Path(target), replace=force) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return False


INTEGER_DTYPES = ("int8", "int16")  # of weights, on a CPU
DTYPES = ("float32", "float16", "bfloat16", *INTEGER_DTYPES)
DEVICES = ("auto", "cpu", "cuda")


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a UsageError that lists the choices, unless `value` is one."""
    if value not in choices:
        raise UsageError(f"{option} must be one of {', '.join(choices)}, got {value!r}")


def check_converted(file: Path) -> None:
    """Refuse a converted file that is not there."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file; make one with snnzoo convert")


def check_device_and_dtype(device: str, dtype: str) -> None:
    """Check the names, without importing torch."""
    check_choice("--dtype", dtype, DTYPES)
    check_choice("--device", device.partition(":")[0], DEVICES)
    if dtype in INTEGER_DTYPES and device.startswith("cuda"):
        raise UsageError(f"--dtype {dtype} is for CPUs: use --device cpu, or --dtype float16")


def check_installed(option: str, modules: tuple[str, ...], extra: str) -> None:
    """Raise a UsageError that says what to install, unless all `modules` are there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{option} needs {' and '.join(missing)}: pip install 'snnzoo[{extra}]'")


def torch_device(name: str, index: int = 0) -> torch.device:
    """Return the device of that name; "auto" is CUDA where there is one. `index` is that of a GPU, if none is named."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: PyTorch finds no CUDA device here; use --device cpu")
    return torch.device("cuda", index) if name == "cuda" and index else torch.device(name)


def parse_floats(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return `"0.5,0.5,0.5"` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} must be numbers such as 0.485,0.456,0.406, got {text!r}") from None


def parse_pixels(option: str, text: str | None) -> int | tuple[int, int] | None:
    """Return `"256"` as a number, `"128,64"` as two."""
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise UsageError(f"{option} must be pixels such as 256, or height and width such as 128,64, got {text!r}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_options(texts: list[str] | None) -> dict[str, Any]:
    """Return `["pool=avg", "batch_norm=false"]` as a model's arguments."""
    options: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--option must be NAME=VALUE, such as pool=avg, got {text!r}")
        options[name] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def parse_time_steps(text: str) -> list[int]:
    """Return `"1,2,4"` as numbers, in order, each that `check_time_steps` takes."""
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError:  # also a number of thousands of digits
        raise UsageError(f"--time-steps must be numbers such as 1,2,4,8, got {text[:80]!r}") from None
    for number in steps:
        check_time_steps(number)
    return sorted(set(steps))


def check_time_steps(number: int | None) -> None:
    """Refuse a number of time steps that no file could hold; None is none given."""
    if number is not None and not 1 <= number <= MAX_TIME_STEPS:
        raise UsageError(f"--time-steps must be from 1 to {MAX_TIME_STEPS}, got {number}")
