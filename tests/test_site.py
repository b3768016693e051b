"""What a stranger reads first: versions that agree, an example of a manifest that is one, pages that are made."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer
import yaml

import snnzoo
from snnzoo.checkpoints.manifest import load_manifest
from snnzoo.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_changelog_and_the_citation_are_of_this_version():
    released = re.findall(r"^## \[(\d[\d.]*)\]", (REPOSITORY / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert released[0] == citation["version"] == snnzoo.__version__


def test_the_manifest_in_the_page_of_settings_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "settings.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    (entry,) = load_manifest(tmp_path / "mine.yaml")
    assert entry.tag == "resnet50.PETS"


@pytest.fixture(scope="module")
def site():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hook", REPOSITORY / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_command_line_has_every_command_and_option(site):
    text = site.command_line()
    for name, command in typer.main.get_command(cli.app).commands.items():
        section = text.partition(f"## `snnzoo {name}`")[2].partition("\n## ")[0]
        for parameter in command.params:
            assert all(option in section for option in parameter.opts if option.startswith("-")), (name, parameter.name)
    assert "```bash\nsnnzoo convert resnet18 --weights digits\n" in text


def test_the_reference_of_python_has_all_that_is_exported(site):
    text = site.python()
    for name in snnzoo.__all__:
        owner = getattr(snnzoo, name).__module__ if callable(getattr(snnzoo, name)) else f"snnzoo.{name}"
        assert name.startswith("_") or any(f"::: {known}" in text for known in (owner, owner.rpartition(".")[0])), name


def test_links_of_the_pages_at_the_top_lead_inside_the_site(site):
    text = site.from_the_top("[a](docs/conversion.md), [b](SECURITY.md), [c](docs)")
    assert text == "[a](conversion.md), [b](security.md), [c](index.md)"
