"""SpikingJelly 0.0.0.0.12 beside snnzoo.

It lies in a folder of its own, since an environment has one version of a package, and other tests need 2.0.0:

    pip install --no-deps --target DIR spikingjelly==0.0.0.0.12
    SPIKINGJELLY_CLASSIC=DIR python -m pytest tests/compat
"""

import importlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

MODULES = ("base", "neuron", "surrogate", "layer", "functional", "encoding", "monitor")
MODELS = ("spiking_resnet", "sew_resnet", "spiking_vgg")


@contextmanager
def _only_from(folder):
    """Import `spikingjelly` from `folder`, and let go of it, and bring back another version, afterwards."""
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "spikingjelly"}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == "spikingjelly"]:
            del sys.modules[name]
        sys.modules.update(others)


@pytest.fixture(scope="session")
def classic():
    """The library's `clock_driven`: its modules as attributes, and those of its models as `classic.model`."""
    folder = Path(os.environ.get("SPIKINGJELLY_CLASSIC", ""))
    if not os.environ.get("SPIKINGJELLY_CLASSIC") or not (folder / "spikingjelly" / "clock_driven").is_dir():
        pytest.skip("SPIKINGJELLY_CLASSIC names no folder with SpikingJelly 0.0.0.0.12 (tests/compat/conftest.py)")
    with _only_from(folder):
        root = "spikingjelly.clock_driven"
        modules = {name: importlib.import_module(f"{root}.{name}") for name in MODULES}
        models = {name: importlib.import_module(f"{root}.model.{name}") for name in MODELS}
    return SimpleNamespace(**modules, model=SimpleNamespace(**models))
