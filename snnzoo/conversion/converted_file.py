"""The file that a converted network is kept in: safetensors, the ANN's tensors untouched."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo._version import __version__
from snnzoo.checkpoints.files import read_safetensors, write_safetensors
from snnzoo.checkpoints.layout_rules import is_neuron_key
from snnzoo.checkpoints.layouts import check_fits
from snnzoo.codings import Coding, coding_from_dict
from snnzoo.conversion.metadata import read
from snnzoo.conversion.sites import install, neuron_sites, parameter_names
from snnzoo.data.preprocess import Preprocess
from snnzoo.errors import CheckpointError, UsageError, first_few
from snnzoo.models.base import SpikingNet
from snnzoo.models.factory import build, load_ann_weights

FORMAT = "snnzoo/1"


@dataclass
class Conversion:
    """Where a converted network comes from and how it was made; all that a file holds beside tensors."""

    model: str
    model_kwargs: dict[str, Any]
    coding: Coding
    time_steps: int
    recipe: dict[str, Any]
    preprocess: Preprocess | None = None
    classes: list[str] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)  # calibration's report on each neuron site
    extrapolation: float = 0.0  # of the readout

    def to_metadata(self) -> dict[str, str]:
        """Return the strings of a safetensors header: JSON where it is not a plain name."""
        readout = {"lead": self.extrapolation} if self.extrapolation else {}
        return {
            "format": FORMAT,
            "model": self.model,
            "model_kwargs": json.dumps(self.model_kwargs),
            "coding": json.dumps({**self.coding.to_dict(), **readout}),
            "time_steps": str(self.time_steps),
            "recipe": json.dumps(self.recipe),
            "preprocess": json.dumps(self.preprocess and self.preprocess.to_dict()),
            "classes": json.dumps(self.classes),
            "source": json.dumps(self.source),
            "layers": json.dumps(self.layers),
            "snnzoo": __version__,
            "torch": str(torch.__version__),
        }

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], source: str) -> Conversion:
        """The inverse of `to_metadata`.

        Raises:
            CheckpointError: if the metadata is not that of a converted network.
        """
        found = metadata.get("format")
        if found != FORMAT:
            what = f"has format {found!r}" if found else "has no snnzoo metadata"
            raise CheckpointError(f"{source}: {what}, expected {FORMAT!r}: make one with snnzoo convert")
        fields = read(metadata, source)
        names = ("model", "model_kwargs", "time_steps", "recipe", "classes", "source", "layers")
        try:
            coding = dict(fields["coding"])
            extrapolation = float(coding.pop("lead", 0.0))
            if extrapolation < 0:
                raise ValueError(f"lead must be at least 0, got {extrapolation}")
            return cls(
                coding=coding_from_dict(coding, source),
                preprocess=fields["preprocess"] and Preprocess(**fields["preprocess"]),
                extrapolation=extrapolation,
                **{name: fields[name] for name in names},
            )
        except ValueError as error:
            raise CheckpointError(f"{source}: metadata: {error}") from None


def save(net: SpikingNet, path: str | Path, *, replace: bool = True) -> None:
    """Write a converted network to a safetensors file: the ANN's tensors untouched, the neurons', and metadata.

    The same network twice is the same bytes twice. `replace` says whether a file of that name may be replaced.

    Raises:
        UsageError: if `net` was not converted.
        CheckpointError: if parameters of its neurons are not finite, or its `conversion` holds what no file can.
        SnnzooError: if the file cannot be written.
    """
    conversion = _conversion_of(net)
    _check_finite(net.state_dict(), "cannot save the network")
    metadata = conversion.to_metadata()
    read(metadata, "cannot save the network")  # so that no file is written that could not be read
    write_safetensors(Path(path), net.state_dict(), metadata, replace=replace)


def load(path: str | Path) -> SpikingNet:
    """Rebuild a converted network from its file alone: multi-step, eval mode, on the CPU.

    Raises:
        CheckpointError: if the file is not one that `save` wrote.
    """
    return load_with_ann(path)[0]


def load_with_ann(path: str | Path) -> tuple[SpikingNet, SpikingNet]:
    """As `load`, and the ANN in the same file beside it (single-step, ReLU)."""
    tensors, metadata = read_safetensors(Path(path))
    conversion = Conversion.from_metadata(metadata, str(path))
    make = functools.partial(build, conversion.model, neuron=nn.ReLU, **conversion.model_kwargs)
    ann_tensors = {key: value for key, value in tensors.items() if not is_neuron_key(key)}
    try:
        with torch.device("meta"):  # shapes alone, until it is known that the tensors back them
            check_fits(make(step_mode="s").state_dict(), ann_tensors, str(path))
        ann, net = make(step_mode="s"), make(step_mode="m")
    except (UsageError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: metadata: {' '.join(str(error).split())}") from None
    load_ann_weights(ann, ann_tensors, str(path))
    _check_finite(tensors, str(path))
    try:
        parameters = _neuron_parameters(net, tensors)
        _check_parameters(net, conversion.coding, parameters, str(path))
        install(net, conversion.coding, parameters, conversion.extrapolation)
        net.load_state_dict(tensors)
    except KeyError as error:
        raise CheckpointError(f"{path}: neuron parameter {error.args[0]!r} is missing") from None
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: neuron parameters do not fit: {' '.join(str(error).split())}") from None
    net.conversion = conversion
    return net.eval(), ann.eval()


def _check_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Damaged weights make thresholds that are not numbers, or infinite."""
    bad = [key for key, value in tensors.items() if is_neuron_key(key) and not value.isfinite().all()]
    if bad:
        raise CheckpointError(f"{source}: {first_few(bad)} not finite: are the ANN's weights or the images damaged?")


def _neuron_parameters(net: SpikingNet, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    prefixes = {site: f"{site}." for site in neuron_sites(net)}
    return {
        site: {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for site, prefix in prefixes.items()
    }


def _check_parameters(net: SpikingNet, coding: Coding, parameters: dict[str, dict[str, Tensor]], source: str) -> None:
    """Every site has the coding's parameters, with a value for each of its channels."""
    for site, tensors in parameters.items():
        for name in parameter_names(coding):
            if name not in tensors:
                raise KeyError(f"{site}.{name}")
        channels = net.channels_of(site)
        for name, value in tensors.items():
            if value.shape != (channels,):
                raise CheckpointError(
                    f"{source}: neuron parameters do not fit: {site}.{name} has shape {list(value.shape)} instead of "
                    f"[{channels}]"
                )


def _conversion_of(net: SpikingNet) -> Conversion:
    if not isinstance(net.conversion, Conversion):
        raise UsageError("the network was not converted: make one with snnzoo.convert, or load one with snnzoo.load")
    return net.conversion
