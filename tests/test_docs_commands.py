"""Every `snnzoo` command in README and the docs is one that the program takes; those that need no data are run."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from snnzoo.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]
FENCE = re.compile(r"^```bash[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(cli.app).commands


def snnzoo_commands(text):
    """The arguments of every `snnzoo ...` in blocks fenced as ```bash, also after `&&`, and under torchrun."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                if words and words[0].rpartition("/")[2] == "snnzoo":
                    found.append(words[1:])
                elif "snnzoo.cli" in words:
                    found.append(words[words.index("snnzoo.cli") + 1 :])
    return found


ALL = [(page.name, arguments) for page in PAGES for arguments in snnzoo_commands(page.read_text("utf-8"))]


def parse(arguments):
    """As the program would, up to running it; raises where the program would exit with 2."""
    name, *rest = arguments
    with COMMANDS[name].make_context(name, rest) as context:
        return context.params


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "arguments"), ALL, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_the_program_takes_the_command(page, arguments, in_empty_folder):
    for word in arguments[1:]:
        if re.fullmatch(r"[\w.-]+\.(safetensors|pth|th|pt|yaml)", word):
            Path(word).touch()  # some commands ask at once whether a file is there
    parse(arguments)


def test_a_command_that_the_program_does_not_take_is_noticed():
    with pytest.raises(Exception, match="No such option"):
        parse(["eval", "a.safetensors", "--data", "digits", "--reprot", "x.html"])
    assert snnzoo_commands(
        "```bash\nls && .venv/bin/snnzoo list 'r*'  # all\ntorchrun -m snnzoo.cli eval a\n```\n"
    ) == [
        ["list", "r*"],
        ["eval", "a"],
    ]


def run(arguments, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["snnzoo", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code or 0) == 0, capfd.readouterr().err


def test_the_list_of_the_docs_is_shown(monkeypatch, capfd):
    run(next(arguments for _, arguments in ALL if arguments[0] == "list"), monkeypatch, capfd)
    assert "resnet18" in capfd.readouterr().out


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom(monkeypatch, capfd, digits_home, in_empty_folder):
    """Its commands that need nothing but the digits, one after the other."""
    done = 0
    for page, arguments in ALL:
        needs_files = any("/" in word or word.startswith(("mine", "pets")) for word in arguments)
        if page == "quickstart.md" and arguments[0] != "demo" and not needs_files:
            run(arguments, monkeypatch, capfd)
            done += 1
    assert done == 4
    assert (in_empty_folder / "report.html").is_file()
