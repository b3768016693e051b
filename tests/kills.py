"""Commands that are killed at random: no half-written file, nothing lost that was there, nothing left behind.

`python tests/kills.py FIRST COUNT`, in an empty folder, kills COUNT runs of convert, export, remap and eval, looks at
what they left, runs them again and prints what came of it as JSON. Commands run in forks of one process that has
imported everything and computed nothing, so that a run takes a second.
"""

import collections
import json
import os
import random
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import snnzoo
import snnzoo.conversion
import snnzoo.evaluation
import snnzoo.export.unrolled
from snnzoo.cli import main as cli
from snnzoo.evaluation.partial import PartialCounts

COMMANDS = {
    "convert": ("convert", "resnet20", "--checkpoint", "ann.pth", "--calib-data", "data", "--calib-samples", "8",
                "--input-size", "16", "--force-fit", "--recipe", "delta", "-T", "2", "-o", "net.safetensors"),
    "export": ("export", "ready.safetensors", "--format", "pt2", "-T", "1", "-o", "net.pt2"),
    "remap": ("remap", "ann.pth", "--to", "timm", "-o", "renamed.pth"),
    "eval": ("eval", "ready.safetensors", "--data", "data", "--batch-size", "4", "--force-fit",
             "--json", "result.json"),
}  # fmt: skip


def prepare():
    """Everything that the commands read, made in a fork, so that this process computes nothing."""
    torch.manual_seed(0)
    net = snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s")
    torch.save(net.state_dict(), "ann.pth")
    chance = np.random.default_rng(0)
    for label in range(10):
        Path(f"data/{label}").mkdir(parents=True)
        for i in range(4):
            Image.fromarray(chance.integers(0, 255, (16, 16, 3), np.uint8)).save(f"data/{label}/{i}.png")


def start(function):
    """Run a function in a fork; the number of its process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        quiet = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        os._exit(code)


def run(*arguments):
    """A command's main, in a fork."""

    def command():
        sys.argv = ["snnzoo", *arguments, "--quiet"]
        init = PartialCounts.__init__
        PartialCounts.__init__ = lambda self, settings, **options: init(self, settings, seconds=0.0, **options)
        cli.main()

    return start(command)


def finish(*arguments):
    """Run a command to its end, without an error; the seconds it took."""
    started = time.monotonic()
    _, status = os.waitpid(run(*arguments), 0)
    assert status == 0, (arguments, Path("log").read_text()[-2000:])
    return time.monotonic() - started


def content(path):
    """What a whole output holds, for comparison: speeds and the times in archives left out."""
    if path.suffix == ".json":
        report = json.loads(path.read_text())
        for row in report["results"]:
            del row["images_per_second"]
        return report
    if path.suffix in (".pt2", ".pth"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            return {info.filename.partition("/")[2]: (info.file_size, info.CRC) for info in archive.infolist()}
    return path.read_bytes()


def leftovers():
    return [path.name for path in Path().iterdir() if path.name.endswith(".part")]


def killed(number, whole, seconds, tally):
    """Kill one run, look at what it left, and run it again."""
    chance = random.Random(number)
    name = chance.choice(list(COMMANDS))
    arguments, output = COMMANDS[name], Path(COMMANDS[name][-1])
    output.unlink(missing_ok=True)
    if had_one := chance.random() < 0.5:
        output.write_text("old")
        arguments = (*arguments, "--force")
    child = run(*arguments)
    if chance.random() < 0.5:  # while it writes
        deadline = time.monotonic() + 2 * seconds[name] + 5
        while not leftovers() and time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)
        time.sleep(chance.random() * 0.005)
    else:
        time.sleep(chance.random() * seconds[name])
    try:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        tally["killed"] += os.WIFSIGNALED(status)
    except (ProcessLookupError, ChildProcessError):
        pass  # it had ended
    tally["kills"] += 1
    tally[name] += 1
    tally["left a temporary file"] += bool(leftovers())
    if not (had_one and output.read_bytes() == b"old") and output.exists():
        assert content(output) == whole[name], f"{number}: {output} is half-written"
    else:
        assert output.exists() == had_one, f"{number}: {output} is gone"
    again = (*COMMANDS[name], "--force", *(("--resume",) if name == "eval" else ()))
    finish(*again)
    assert content(output) == whole[name], f"{number}: {name} gives something else when it is run again"
    assert leftovers() == [], f"{number}: {leftovers()} was left"


def main(first, count):
    os.environ["TORCH_HOME"] = str(Path("home").resolve())
    os.waitpid(start(prepare), 0)
    finish(*COMMANDS["convert"][:-1], "ready.safetensors")
    seconds = {name: finish(*command) for name, command in COMMANDS.items()}
    whole = {name: content(Path(command[-1])) for name, command in COMMANDS.items()}
    tally = collections.Counter()
    for number in range(first, first + count):
        killed(number, whole, seconds, tally)
    left = [path.name for path in Path("home").rglob("*") if path.is_file()]
    assert left == [], f"counts were left: {left}"
    return tally


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
