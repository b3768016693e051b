"""What `pip install` puts where."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    # a build leaves files beside the sources: build from a copy
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    subprocess.run(
        ["tar", "cf", source / "all.tar", *filter(None, files.stdout.split("\0"))], cwd=REPOSITORY, check=True
    )
    subprocess.run(["tar", "xf", "all.tar"], cwd=source, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", folder, source]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_adds_only_snnzoo_to_site_packages(wheel):
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"snnzoo"}


def test_every_package_of_the_sources_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "snnzoo").rglob("*.py")}
    sources |= {f"snnzoo/cli/{p.name}" for p in (REPOSITORY / "cli").glob("*.py")}
    assert sources <= packed
    assert "snnzoo/py.typed" in packed


def test_an_installed_wheel_reads_its_manifest_and_runs(wheel, tmp_path):
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel], check=True)
    script = (
        "import snnzoo, snnzoo.checkpoints.manifest as m, pathlib;"
        f"assert pathlib.Path(snnzoo.__file__).is_relative_to({str(target)!r});"
        "print(len(m.load_manifest()))"
    )
    # -S -E: nothing but the target and what the running interpreter has for the dependencies
    path = f"import sys; sys.path.insert(0, {str(target)!r}); "
    done = subprocess.run(
        [sys.executable, "-c", path + script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    from snnzoo.checkpoints.manifest import load_manifest

    assert int(done.stdout) == len(load_manifest()) > 20
    done = subprocess.run(
        [sys.executable, "-c", path + "from snnzoo.cli.main import main; main()", "list", "resnet20"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "CIFAR10" in done.stdout, done.stderr


LAUNCHERS = {
    "python -m snnzoo.cli": ["-m", "snnzoo.cli", "--version"],
    "torchrun -m snnzoo.cli": ["-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "snnzoo.cli", "--version"],
    "python -m pytest": ["-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_cli.py"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_inside_a_checkout_the_command_line_is_the_checkouts_own(launcher, tmp_path):
    """Not that of an installed package, which need not be there, nor that of another checkout."""
    for folder in ("snnzoo", "cli"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "cli" / "__init__.py").write_text('"""A copy."""\n\nprint("the copy")\n')
    (tmp_path / "test_cli.py").write_text("import snnzoo.cli.main\n\ndef test():\n    pass\n")
    done = subprocess.run([sys.executable, *LAUNCHERS[launcher]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the copy" in done.stdout


def test_the_manifest_in_the_package_is_the_one_at_the_top():
    assert (REPOSITORY / "snnzoo" / "weights_manifest.yaml").resolve() == REPOSITORY / "weights_manifest.yaml"
