"""The file that a converted network is kept in: safetensors, the ANN's tensors untouched, the graph in its metadata.

It rebuilds itself: neither the zoo nor the user's module is needed, and no code is in it. Files of the first format
named a model of the zoo instead; they are read, too.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo._version import __version__
from snnzoo.checkpoints.files import read_safetensors, write_safetensors
from snnzoo.checkpoints.layout_rules import is_neuron_key
from snnzoo.checkpoints.layouts import check_fits, refuse_empty
from snnzoo.codings import Coding, Delta, coding_from_dict
from snnzoo.conversion.ann import capture_ann
from snnzoo.conversion.metadata import FIRST_FORMAT, FORMAT, read
from snnzoo.conversion.neurons import PARAMETER_NAMES, Parameters, install
from snnzoo.data.preprocess import Preprocess
from snnzoo.early_exit import ExitRule, ExitTable
from snnzoo.errors import CheckpointError, SnnzooError, UsageError, first_few
from snnzoo.graph.graph import Graph
from snnzoo.graph.network import Ann, SpikingNetwork
from snnzoo.graph.shapes import value_shapes
from snnzoo.models.factory import build, load_ann_weights


@dataclass
class Conversion:
    """Where a converted network comes from and how it was made; all that a file holds beside tensors and the graph."""

    model: str  # name in the zoo, or of the user's class
    coding: Coding
    time_steps: int
    recipe: dict[str, Any]
    extrapolation: float = 0.0  # of the readout
    preprocess: Preprocess | None = None
    classes: list[str] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    gammas: dict[str, float] = field(default_factory=dict)  # of delta coding, of the sites whose neuron has its own
    layers: list[dict[str, Any]] = field(default_factory=list)  # calibration's report on each neuron site
    exits: ExitTable | None = None  # rules of early exit
    fit: dict[str, Any] | None = None  # of its BN to the calibration images (fit.statistics); None if not measured
    input_shape: list[int] | None = None  # of an image that it was captured with, [C, H, W]; None in the first format

    @property
    def gammas_told(self) -> str | None:
        """From where to where the gammas go that neurons have of their own; None if there are none."""
        values = self.gammas.values()
        return f"{min(values):g} to {max(values):g}, each neuron its own" if values else None

    def to_metadata(self) -> dict[str, str]:
        """Return the strings of a safetensors header: JSON where it is not a plain name."""
        return {
            "format": FORMAT,
            "model": self.model,
            "coding": json.dumps(self.coding.to_dict()),
            "extrapolation": json.dumps(self.extrapolation),
            "time_steps": str(self.time_steps),
            "recipe": json.dumps(self.recipe),
            "preprocess": json.dumps(self.preprocess and self.preprocess.to_dict()),
            "classes": json.dumps(self.classes),
            "source": json.dumps(self.source),
            **({"gammas": json.dumps(self.gammas)} if self.gammas else {}),
            "layers": json.dumps(self.layers),
            **({"exits": json.dumps(self.exits.to_dict())} if self.exits else {}),
            "fit": json.dumps(self.fit),
            "input_shape": json.dumps(self.input_shape),
            "snnzoo": __version__,
            "torch": str(torch.__version__),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> Conversion:
        """Return the inverse of `to_metadata`, also of the first format.

        Raises:
            CheckpointError: if the metadata is not that of a converted network.
        """
        fields = read(metadata, source)
        plain = ("model", "time_steps", "recipe", "extrapolation", "classes", "source", "gammas", "layers", "fit")
        try:
            return cls(
                coding=coding_from_dict(fields["coding"], source),
                preprocess=fields["preprocess"] and Preprocess(**fields["preprocess"]),
                exits=fields["exits"] and ExitTable.from_dict(fields["exits"]),
                input_shape=fields["input_shape"],
                **{name: fields[name] for name in plain},
            )
        except ValueError as error:
            raise CheckpointError(f"{source}: metadata: {error}") from None


def exit_rule(conversion: Conversion, tolerance: float, source: str) -> ExitRule:
    """Return the exit rule of a network for a tolerance in points.

    Raises:
        UsageError: naming `source`, if it has none, or none of this tolerance; it says how to get one.
    """
    if conversion.exits is None:
        raise UsageError(
            f"{source} has no exit rules: convert again with --calib-data, or choose them with "
            "snnzoo.conversion.calibrate_exits(net, images) and save the network"
        )
    try:
        return conversion.exits.rule(tolerance)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def save(net: SpikingNetwork, path: str | Path, *, replace: bool = True) -> None:
    """Write a converted network to a safetensors file: the ANN's tensors untouched, the neurons', and metadata.

    The same network twice is the same bytes twice. `replace` says whether a file of that name may be replaced.

    Raises:
        UsageError: if `net` was not converted.
        CheckpointError: if parameters of its neurons are not finite, or its `conversion` holds what no file can.
        SnnzooError: if the file cannot be written.
    """
    conversion = getattr(net, "conversion", None)
    if not isinstance(conversion, Conversion):
        raise UsageError("the network was not converted: make one with snnzoo.convert, or load one with snnzoo.load")
    tensors = net.state_dict()
    _check_finite(net.graph, tensors, "cannot save the network")
    _check_classes(conversion, net.num_classes, "cannot save the network")
    metadata = {**conversion.to_metadata(), "graph": net.graph.to_json()}
    read(metadata, "cannot save the network")  # so that no file is written that could not be read
    write_safetensors(Path(path), tensors, metadata, replace=replace)


def load(path: str | Path) -> SpikingNetwork:
    """Rebuild a converted network from its file alone: multi-step, eval mode, on the CPU.

    Raises:
        CheckpointError: if the file is not one that `save` wrote.
    """
    return load_with_ann(path)[0]


def load_with_ann(path: str | Path) -> tuple[SpikingNetwork, Ann]:
    """As `load`, and the ANN in the same file beside it."""
    tensors, metadata = read_safetensors(Path(path))
    source = str(path)
    conversion = Conversion.from_metadata(metadata, source)
    if metadata["format"] == FIRST_FORMAT:
        ann = _ann_of_first_format(tensors, metadata, source)
        conversion.input_shape = ann.input_shape  # written anew, it is of today's format
        tensors = {key: value for key, value in tensors.items() if not key.endswith(".offset")}
    else:
        graph = Graph.from_json(metadata["graph"], source)
        neurons = {f"{node.path}.{name}" for node in graph.neurons for name in PARAMETER_NAMES}
        ann = _ann(graph, {key: value for key, value in tensors.items() if key not in neurons}, conversion, source)
    parameters = _neuron_parameters(ann, tensors, conversion, source)
    _check_gammas(ann.graph, conversion, source)
    _check_finite(ann.graph, tensors, source)
    try:
        for node in ann.graph.neurons:
            conversion.coding.check_activation(node.activation)
        net = install(ann, conversion.coding, parameters, conversion.extrapolation, conversion.gammas)
    except (RuntimeError, ValueError, SnnzooError) as error:
        raise CheckpointError(f"{source}: neuron parameters do not fit: {' '.join(str(error).split())}") from None
    net.conversion = conversion
    return net, ann


def _ann(graph: Graph, tensors: Mapping[str, Tensor], conversion: Conversion, source: str) -> Ann:
    for node in graph:
        for role, key in node.parameters.items():
            if key not in tensors:
                raise CheckpointError(
                    f"{source}: the tensor {key!r} is missing, the {role} of {node.path or node.name}"
                )
    refuse_empty(tensors, source)
    try:
        return Ann(graph, tensors, conversion.model, conversion.input_shape or []).eval()
    except SnnzooError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _ann_of_first_format(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> Ann:
    """The ANN of a model of the zoo, captured anew."""
    make = functools.partial(
        build, metadata["model"], neuron=nn.ReLU, step_mode="s", **json.loads(metadata["model_kwargs"])
    )
    own = {key: value for key, value in tensors.items() if not is_neuron_key(key)}
    try:
        with torch.device("meta"):  # shapes alone, until it is known that the tensors back them
            check_fits(make().state_dict(), own, source)
        module = make()
    except (UsageError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: metadata: {' '.join(str(error).split())}") from None
    load_ann_weights(module, own, source)
    return capture_ann(module.eval())


def _check_classes(conversion: Conversion, outputs: int, source: str) -> None:
    if conversion.exits is not None and any(len(step) != outputs for step in conversion.exits.shift):
        raise CheckpointError(f"{source}: metadata: field 'exits.shift' is not of {outputs} classes")
    if conversion.classes is not None and len(conversion.classes) != outputs:
        raise CheckpointError(
            f"{source}: metadata: field 'classes' has {len(conversion.classes)} names for {outputs} classes"
        )


def _check_gammas(graph: Graph, conversion: Conversion, source: str) -> None:
    unknown = conversion.gammas.keys() - {node.path for node in graph.neurons}
    if unknown:
        raise CheckpointError(f"{source}: metadata: field 'gammas' names {first_few(sorted(unknown))}, no neurons")
    if conversion.gammas and not isinstance(conversion.coding, Delta):
        raise CheckpointError(f"{source}: metadata: field 'gammas' is for delta coding, not for {conversion.coding}")


def _check_finite(graph: Graph, tensors: Mapping[str, Tensor], source: str) -> None:
    """Damaged weights make thresholds that are not numbers, or infinite."""
    keys = [f"{node.path}.{name}" for node in graph.neurons for name in PARAMETER_NAMES]
    bad = [key for key in keys if not tensors[key].isfinite().all()]
    if bad:
        raise CheckpointError(f"{source}: {first_few(bad)} not finite: are the ANN's weights or the images damaged?")


def _neuron_parameters(ann: Ann, tensors: Mapping[str, Tensor], conversion: Conversion, source: str) -> Parameters:
    """Those of every site, with a value for each of its channels."""
    shapes = value_shapes(ann.graph, ann.tensors(), ann.input_shape, source)
    channels = {node.path: shapes[node.name][0] for node in ann.graph.neurons}
    _check_classes(conversion, shapes[ann.graph.output][0], source)
    parameters: Parameters = {}
    for node in ann.graph.neurons:
        parameters[node.path] = {}
        for name in PARAMETER_NAMES:
            key = f"{node.path}.{name}"
            if key not in tensors:
                raise CheckpointError(f"{source}: neuron parameter {key!r} is missing")
            if tensors[key].shape != (channels[node.path],):
                raise CheckpointError(
                    f"{source}: neuron parameters do not fit: {key} has shape {list(tensors[key].shape)} instead of "
                    f"[{channels[node.path]}]"
                )
            parameters[node.path][name] = tensors[key]
    return parameters
