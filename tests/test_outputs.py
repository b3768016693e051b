"""Outputs: wholly or not at all, nothing destroyed that was not meant, streams that are full, closed or narrow."""

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from snnzoo.checkpoints.output import atomic_output, check_outputs
from snnzoo.errors import SnnzooError, UsageError


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, text="new", **options):
    with atomic_output(Path(name), **options) as temporary:
        temporary.write_text(text)


def test_a_new_file_has_the_permissions_of_the_umask_and_an_old_one_keeps_its_own():
    write("new")
    Path("plain").touch()
    assert Path("new").stat().st_mode == Path("plain").stat().st_mode
    Path("new").chmod(0o640)
    write("new", "newer")
    assert stat.S_IMODE(Path("new").stat().st_mode) == 0o640
    assert Path("new").read_text() == "newer"


def test_a_link_stays_one_and_what_it_leads_to_is_replaced():
    Path("folder").mkdir()
    Path("folder/real").write_text("old")
    Path("link").symlink_to("folder/real")
    write("link")
    assert Path("link").is_symlink()
    assert Path("folder/real").read_text() == "new"
    Path("ahead").symlink_to("folder/later")
    write("ahead")
    assert Path("folder/later").read_text() == "new"


def test_a_failure_leaves_the_old_file_and_nothing_else():
    Path("file").write_text("old")

    def fail(error):
        with atomic_output(Path("file")) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    with pytest.raises(SnnzooError, match=r"^file: cannot write: No space left on device$"):
        fail(OSError(28, "No space left on device"))
    assert Path("file").read_text() == "old"
    assert os.listdir() == ["file"]


FULL_DISK = """
import resource, signal, sys
import torch
from torch import nn
import snnzoo
from snnzoo.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
torch.save(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s").state_dict(), "in.pth")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
for name in ("out.pth", "out.safetensors"):
    sys.argv = ["snnzoo", "remap", "in.pth", "--to", "timm", "-q", "-o", name]
    print(main._run())
"""


def test_a_disk_that_fills_up_is_one_line_whatever_library_writes():
    done = subprocess.run([sys.executable, "-c", FULL_DISK], capture_output=True, text=True)
    assert done.stdout == "1\n1\n", done.stderr
    pth, safetensors = done.stderr.splitlines()
    assert pth == "Error: out.pth: cannot write: torch.save could not write all of it: is the disk full?"
    assert safetensors.startswith("Error: out.safetensors: cannot write: ")
    assert os.listdir() == ["in.pth"]


def test_a_file_that_appears_meanwhile_is_not_replaced():
    def write_while_another_does():
        with atomic_output(Path("file"), replace=False) as temporary:
            temporary.write_text("mine")
            Path("file").write_text("theirs")

    with pytest.raises(SnnzooError, match="another program has written it"):
        write_while_another_does()
    assert Path("file").read_text() == "theirs"
    write("other", replace=False)
    assert sorted(os.listdir()) == ["file", "other"]


WRITER = """
import sys
from pathlib import Path
from snnzoo.checkpoints.output import atomic_output
with atomic_output(Path("file")) as temporary:
    temporary.write_text("half")
    print(flush=True)
    sys.stdin.read()
"""


def test_what_killed_runs_left_is_removed_by_the_next_and_what_living_ones_write_is_not():
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for writer in writers:
        writer.stdout.readline()
    writers[0].send_signal(signal.SIGKILL)
    writers[0].wait()
    assert len(list(Path().glob(".*.part"))) == 2
    write("file")
    assert len(list(Path().glob(".*.part"))) == 1
    writers[1].communicate()
    assert Path("file").read_text() == "half"
    assert os.listdir() == ["file"]


def test_names_may_be_as_long_as_the_system_lets_them_and_of_any_bytes():
    for name in ("n" * 255, os.fsdecode(b"\xff\xfe"), "new\nline", "*?["):
        write(name)
        check_outputs({"-o": name}, force=True)
        assert Path(name).read_text() == "new"


def a_pipe():
    os.mkfifo("pipe")
    return "pipe"


def a_link_to_a_device():
    Path("null").symlink_to("/dev/null")
    return "null"


def a_loop():
    Path("loop").symlink_to("loop")
    return "loop"


REFUSED = {
    "one that exists": (lambda: "exists", r"exists exists: give --force", False),
    "a folder": (lambda: ".", r"\. is a folder"),
    "a pipe": (a_pipe, r"pipe is a pipe, socket or device"),
    "a device": (lambda: "/dev/null", r"/dev/null is a pipe, socket or device"),
    "a link to a device": (a_link_to_a_device, r"null is a pipe, socket or device"),
    "a loop of links": (a_loop, r"loop: cannot be written: Too many levels of symbolic links"),
    "a name too long": (lambda: "n" * 256, r"File name too long"),
    "no folder": (lambda: "missing/x", r"the folder missing does not exist"),
    "a file for a folder": (lambda: "exists/x", r"the folder exists does not exist"),
    "a folder of the system's": (lambda: "/proc/x", r"cannot write to the folder /proc"),
    "an input": (lambda: "input", r"-o input is what this command reads: give another name"),
    "an input by a link": (lambda: os.symlink("input", "alias") or "alias", r"-o alias is what this command reads"),
    "an input by another name": (lambda: os.link("input", "twin") or "twin", r"-o twin is what this command reads"),
    "another output by another name": (lambda: os.link("exists", "twin") or "twin", r"-o twin is also --report"),
    "another output": (lambda: "./other", r"-o other is also --json: give another name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_output_that_must_not_be_is_refused_before_any_work(case):
    for name in ("exists", "input"):
        Path(name).write_text("old")
    make, message, *force = REFUSED[case]
    name = make()
    outputs = {"--json": "other", "--report": "exists" if name == "twin" else None, "-o": name}
    with pytest.raises(SnnzooError, match=message):
        check_outputs(outputs, [Path("input")], force=not force)
    assert Path("input").read_text() == Path("exists").read_text() == "old"


def test_standard_output_is_no_file():
    check_outputs({"--json": "-", "-o": None}, force=False)
    assert os.listdir() == []


def test_force_onto_the_only_copy_of_the_weights_is_refused(tmp_path):
    Path("in.th").write_bytes(b"weights")
    done = command("convert", "resnet20", "--checkpoint", "in.th", "-o", "in.th", "--force")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: -o in.th is what this command reads: give another name\n"
    assert Path("in.th").read_bytes() == b"weights"


# -- Streams -----------------------------------------------------------------------------------------------------------


def command(*arguments, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.run([sys.executable, "-m", "snnzoo.cli", *arguments], **options)


@pytest.mark.parametrize("arguments", [("list",), ("list", "--json", "-"), ("--help",), ("info", "resnet18")])
def test_a_full_standard_output_is_one_line_and_exit_code_1(arguments):
    with open("/dev/full", "w") as full:
        done = command(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "Error: cannot write to standard output: No space left on device\n"


def test_closed_streams_are_one_line_or_nothing():
    shell = f'"{sys.executable}" -m snnzoo.cli list'
    done = subprocess.run(f"{shell} >&-", shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Error: cannot write to standard output: Bad file descriptor\n"
    done = subprocess.run(f"{shell} >&- 2>&- <&-", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    done = subprocess.run(f"{shell} 2>&- <&- | wc -l", shell=True, capture_output=True, text=True)
    assert int(done.stdout) > 10
    with open("/dev/full", "w") as full:
        done = command("list", "nothing*", stderr=full)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(
        f'"{sys.executable}" -m snnzoo.cli list | head -n 1', shell=True, capture_output=True, text=True
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_a_stream_that_knows_ascii_alone_shows_the_rest_by_its_numbers():
    program = """
import sys
from snnzoo.cli import main, common
main._prepare_streams()
common.console().print("µJ \\udcff")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("\\xb5J \\udcff\n", "")


def test_usage_errors_are_still_told_without_a_standard_output():
    done = subprocess.run(f'"{sys.executable}" -m snnzoo.cli list "x*" >&-', shell=True, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.match("Error: no model matches", done.stderr)


def test_outputs_that_are_the_same_are_a_usage_error():
    with pytest.raises(UsageError, match=r"--plot x is also --json"):
        check_outputs({"--json": "x", "--plot": "x"}, force=True)
