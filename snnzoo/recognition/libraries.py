"""Networks of other libraries by name, and of the user's own code: what there is, how to build it, for which images.

Each class here stands for one network of one library. It is built by that library, which also fetches its pretrained
weights, and what its configuration says about images and classes is put into our terms. A library is imported when
the first network of it is asked for.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import math
import os
import re
import sys
from collections.abc import Iterable
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from snnzoo.checkpoints.download import cache_dir, is_offline
from snnzoo.data.preprocess import Preprocess
from snnzoo.errors import SnnzooError, UsageError, suggestion
from snnzoo.models.registry import weights_name

if TYPE_CHECKING:
    from torch import nn

_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_TRANSFORMING = ("googlenet", "inception_v3")  # of torchvision: pretrained ones normalise images anew
_OWN_CODE = re.compile(r"(.+\.py):([^\W\d]\w*)")


class Network(Protocol):
    """A network that can be built: by a library, or by the user's own code."""

    @property
    def name(self) -> str:
        """Its name in files and messages."""

    @property
    def stem(self) -> str:
        """What files are named by: without colons and slashes."""

    @property
    def weights(self) -> str:
        """Which its pretrained weights are."""

    @property
    def preprocess(self) -> Preprocess | None:
        """How its images are prepared; None where that is not known, or is nothing that a `Preprocess` can do."""

    @property
    def classes(self) -> list[str] | None:
        """The names of its pretrained weights' classes, where they are known."""

    @property
    def by_hand(self) -> str:
        """What to do where its pretrained weights cannot be fetched."""

    @property
    def says_weights(self) -> bool:
        """Whether the name says which weights it means, so that a checkpoint is taken for these."""

    @property
    def assumes(self) -> str | None:
        """What `build` assumes that no checkpoint tells."""

    def build(self, num_classes: int | None, keys: Iterable[str]) -> nn.Module:
        """Return it with fresh weights, for a checkpoint of these keys; its own number of classes if None."""

    def pretrained(self, num_classes: int | None) -> nn.Module:
        """Return it with its pretrained weights, as the library fetches them."""


class Torchvision:
    """`torchvision:NAME[.WEIGHTS]`: a classification network of torchvision; its default weights if none are named."""

    def __init__(self, name: str, tag: str | None) -> None:
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            raise _unknown("torchvision", name, known, "https://pytorch.org/vision/stable/models.html")
        members = {weights.name: weights for weights in models.get_model_weights(name)}
        default = getattr(models.get_model_weights(name), "DEFAULT", None)
        if tag not in (None, "DEFAULT", *members):
            raise UsageError(f"torchvision:{name} has no weights {tag!r}, only {', '.join(members) or 'none'}")
        self._weights: Any = members.get(tag or "", default)
        self._architecture, self.says_weights = name, tag is not None
        self.stem = name if self._weights is None or tag is None else f"{name}.{self._weights.name}"
        self.name = f"torchvision:{self.stem}"
        self.weights = self.name if self._weights is None else f"torchvision:{name}.{self._weights.name}"

    @cached_property
    def preprocess(self) -> Preprocess | None:
        if self._weights is None:
            return None
        its = self._weights.transforms()
        return _preprocess(its.resize_size[0], its.crop_size[0], its.mean, its.std, its.interpolation.value)

    @property
    def assumes(self) -> str | None:
        if self.says_weights or self._architecture not in _TRANSFORMING:
            return None
        return f"transform_input=False; {self.name}.{self._weights.name} builds it as pretrained"

    @property
    def classes(self) -> list[str] | None:
        return None if self._weights is None else list(self._weights.meta["categories"])

    @property
    def by_hand(self) -> str:
        return f"fetch {self._weights.url} where there is a network, and give it with --checkpoint FILE"

    def build(self, num_classes: int | None, keys: Iterable[str]) -> nn.Module:
        from torchvision import models

        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if self._architecture in _TRANSFORMING:  # with the classifiers on the way that only training needs
            auxiliary = any(re.search(r"(^|\.)(aux\d|AuxLogits)\.", key) for key in keys)
            options |= {"init_weights": False, "aux_logits": auxiliary, "transform_input": self.says_weights}
        return models.get_model(self._architecture, weights=None, **options)

    def pretrained(self, num_classes: int | None) -> nn.Module:
        from torchvision import models

        _check_pretrained(self.name, self._weights is not None, num_classes)
        if is_offline() and not (cache_dir() / Path(self._weights.url).name).is_file():
            raise SnnzooError(f"{self._weights.url} is not in the cache, and SNNZOO_OFFLINE is set: {self.by_hand}")
        with contextlib.redirect_stdout(io.StringIO()):  # where torch.hub announces each file
            return models.get_model(self._architecture, weights=self._weights, progress=False)


class Timm:
    """`timm:NAME[.TAG]`: a network of timm; its default weights if no tag is given."""

    assumes = None

    def __init__(self, name: str, tag: str | None) -> None:
        import timm
        from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg

        known = timm.list_models()
        if name not in known:
            raise _unknown("timm", name, known, "timm.list_models() shows them")
        tags = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(name)]
        if tag is not None and tag not in tags:
            raise UsageError(f"timm:{name} has no weights {tag!r}, only {', '.join(filter(None, tags)) or 'none'}")
        self.stem = name if tag is None else f"{name}.{tag}"
        self.name, self.says_weights = f"timm:{self.stem}", tag is not None
        self._config = get_pretrained_cfg(self.stem) or PretrainedCfg()
        self.weights = f"timm:{name}.{tag or self._config.tag}"

    @cached_property
    def preprocess(self) -> Preprocess | None:
        from timm.data.config import resolve_data_config

        its = resolve_data_config({}, pretrained_cfg=self._config.to_dict())
        _, height, width = its["input_size"]
        if height != width or its["crop_mode"] != "center":
            return None
        return _preprocess(math.floor(width / its["crop_pct"]), width, its["mean"], its["std"], its["interpolation"])

    @property
    def classes(self) -> list[str] | None:
        names = self._config.label_names
        return None if names is None else list(names)

    @property
    def by_hand(self) -> str:
        hub = self._config.hf_hub_id
        file = f"a file of https://huggingface.co/{hub}" if hub else str(self._config.url)
        return f"fetch {file} where there is a network, and give it with --checkpoint FILE"

    def build(self, num_classes: int | None, keys: Iterable[str]) -> nn.Module:
        import timm

        return timm.create_model(self.stem, pretrained=False, num_classes=num_classes)

    def pretrained(self, num_classes: int | None) -> nn.Module:
        import timm

        _check_pretrained(self.name, self._config.has_weights, num_classes)
        return timm.create_model(self.stem, pretrained=True)


class HuggingFace:
    """`hf:USER/REPO`, or `hf:FOLDER`: an image classifier of transformers, from the hub or from files of it."""

    assumes = None

    def __init__(self, name: str) -> None:
        self.name, self.stem, self.says_weights = f"hf:{name}", Path(name).name, True
        self._repository, self.weights = name, self.name

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self._repository, trust_remote_code=False)

    @cached_property
    def preprocess(self) -> Preprocess | None:
        from transformers import AutoImageProcessor

        _ = self._config  # the one file that every repository has: without a network, this fails at once
        its = AutoImageProcessor.from_pretrained(self._repository, trust_remote_code=False)
        edge, share = dict(getattr(its, "size", None) or {}).get("shortest_edge"), getattr(its, "crop_pct", None)
        if edge is None or not (its.do_resize and its.do_rescale) or its.resample not in _RESAMPLING:
            return None
        if share is not None and edge < 384:  # ConvNextImageProcessor squashes larger ones
            resize, crop = int(edge / share), edge
        elif share is None and getattr(its, "do_center_crop", False):
            resize, crop = edge, dict(its.crop_size)["height"]
        else:
            return None
        mean, std = (its.image_mean, its.image_std) if its.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        return _preprocess(resize, crop, mean, std, _RESAMPLING[its.resample])

    @property
    def classes(self) -> list[str] | None:
        names = self._config.id2label
        return [str(names[i]) for i in sorted(names)]

    @property
    def by_hand(self) -> str:
        return (
            "fetch config.json, preprocessor_config.json and model.safetensors of "
            f"https://huggingface.co/{self._repository} into a folder where there is a network, and give hf:FOLDER"
        )

    def build(self, num_classes: int | None, keys: Iterable[str]) -> nn.Module:
        from transformers import AutoModelForImageClassification

        config = copy.deepcopy(self._config)
        if num_classes not in (None, config.num_labels):
            config.num_labels = num_classes
        return AutoModelForImageClassification.from_config(config, trust_remote_code=False)

    def pretrained(self, num_classes: int | None) -> nn.Module:
        from transformers import AutoModelForImageClassification

        _check_pretrained(self.name, True, num_classes)
        return AutoModelForImageClassification.from_pretrained(
            self._repository, config=self._config, trust_remote_code=False, use_safetensors=True
        )


class OwnCode:
    """`FILE.py:FUNCTION`: what the user's own code returns. It is run: it is theirs to trust."""

    preprocess = classes = assumes = None
    by_hand = "give --checkpoint FILE"
    says_weights = False

    def __init__(self, file: Path, function: str) -> None:
        if not file.is_file():
            raise UsageError(f"{file}: no such file, expected Python code of yours with a function {function}")
        self.file, self.function = file, function
        self.name, self.stem = f"{file.name}:{function}", f"{file.stem}-{function}"
        self.weights = self.name

    def build(self, num_classes: int | None, keys: Iterable[str]) -> nn.Module:
        from torch import nn

        folder = str(self.file.resolve().parent)
        sys.path.insert(0, folder)  # as `python FILE.py` would, for what it imports
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
                make = self._found()
                given = {} if num_classes is None else {"num_classes": num_classes}
                network = make if isinstance(make, nn.Module) else make(**given)
        except SnnzooError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise SnnzooError(f"{self.file}: {self.function} failed: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove(folder)
        if not isinstance(network, nn.Module):
            what = type(network).__name__
            raise UsageError(f"{self.file}: {self.function} gave a {what}, expected a torch.nn.Module")
        return network

    def _found(self) -> Any:
        """Run the file, and return what its name stands for."""
        spec = importlib.util.spec_from_file_location(f"snnzoo_own_code_{self.file.stem}", self.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look for it
        spec.loader.exec_module(module)
        if not hasattr(module, self.function):
            known = [name for name in vars(module) if not name.startswith("_")]
            hint = suggestion(self.function, known, "check its name")
            raise UsageError(f"{self.file} has no function {self.function!r}: {hint}")
        return getattr(module, self.function)

    def pretrained(self, num_classes: int | None) -> nn.Module:
        return self.build(num_classes, ())


def network_named(name: str, weights: str | Enum | None = None) -> Network | None:
    """Return the network of `torchvision:`, `timm:` or `hf:`, or of FILE.py:FUNCTION; None for a name of the zoo.

    Args:
        name: as a user gives it.
        weights: of the library's, instead of in the name; also a torchvision `Weights` member.

    Raises:
        UsageError: if the library is not known or not installed, or has no such network or weights.
    """
    own = _OWN_CODE.fullmatch(name)
    library, colon, rest = name.partition(":")
    if not colon:
        return None
    if own is None and library not in ("torchvision", "timm", "hf"):
        raise UsageError(
            f"unknown library {library!r} in {name!r}: expected torchvision, timm or hf, or FILE.py:FUNCTION"
        )
    if own is not None or library == "hf":
        if weights is not None:
            raise UsageError(f"{name} has no weights by name: leave {weights} out, or give --checkpoint FILE")
        if own is not None:
            return OwnCode(Path(own[1]), own[2])
    package = {"hf": "transformers"}.get(library, library)
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{name} needs {package}: pip install {package}")
    if is_offline():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when timm and transformers are imported
    if library == "hf":
        return HuggingFace(rest)
    architecture, _, tag = rest.partition(".")
    weights = weights_name(architecture, weights)
    if tag and weights and tag != weights:
        raise UsageError(f"{name} names weights {tag!r}, but weights {weights!r} were asked for too")
    return (Torchvision if library == "torchvision" else Timm)(architecture, tag or weights or None)


def _unknown(library: str, name: str, known: Iterable[str], see: str) -> UsageError:
    return UsageError(f"{library} has no network {name!r}: {suggestion(name, known, see)}")


def _check_pretrained(name: str, there: bool, num_classes: int | None) -> None:
    if not there:
        raise UsageError(f"{name} has no pretrained weights: give --checkpoint FILE")
    if num_classes is not None:
        raise UsageError("--num-classes is for a --checkpoint of yours: pretrained weights have their number")


def _preprocess(resize: int, crop: int, mean: Any, std: Any, interpolation: str) -> Preprocess | None:
    """None where a `Preprocess` cannot do it."""
    try:
        return Preprocess(resize, crop, tuple(mean), tuple(std), interpolation)
    except ValueError:
        return None
