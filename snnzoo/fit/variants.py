"""What a checkpoint's keys leave open: one table, one row a question, each answer a rewrite of the graph or the images.

Weights say which layers a network has, not what lies between them nor what its images were. Each row gives, for a
subject, the same with another answer. None changes a tensor, so that all answers fit the same keys.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snnzoo.data.preprocess import NORMALISATIONS, Preprocess
from snnzoo.fit.statistics import normalisations
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.operations import INPUT


@dataclass(frozen=True)
class Subject:
    """A network and its images, as they are taken to be.

    Args:
        graph: of the ANN.
        tensors: of its state_dict.
        images: preprocessed, `[N, C, H, W]`.
        preprocess: how; None where that is not known, or is not to be asked.
    """

    graph: Graph
    tensors: Mapping[str, Tensor]
    images: Tensor
    preprocess: Preprocess | None = None

    def kernel(self, node: Node) -> int:
        """Return the size of a convolution's kernel; 0 of what is none."""
        return self.tensors[node.parameters["weight"]].shape[-1] if node.operation == "conv2d" else 0

    def with_nodes(self, nodes: Iterable[Node]) -> Subject:
        """Return the subject with other nodes in its graph."""
        return dataclasses.replace(self, graph=dataclasses.replace(self.graph, nodes=tuple(nodes)))

    def settings(self, changes: Mapping[str, Mapping[str, Any]]) -> Subject:
        """Return the subject with other settings, by node, of its graph."""
        return self.with_nodes(
            dataclasses.replace(node, settings={**node.settings, **changes[node.name]})
            if node.name in changes
            else node
            for node in self.graph
        )


Answers = Mapping[str, Subject]


@dataclass(frozen=True)
class Row:
    """One question.

    Args:
        name: of what is open.
        answers: all that there are for a subject by what they are called, the one that it has first; none where the
            question does not arise.
        of_images: whether it is about images; the others are about the graph.
        layers: how many BN, from the first, tell: None for all.
        ratio: of divergences, below which two answers are a tie.
    """

    name: str
    answers: Callable[[Subject], Answers]
    of_images: bool = False
    layers: int | None = None
    ratio: float = 1.5


# -- Images ------------------------------------------------------------------------------------------------------------


def _normalisations(subject: Subject) -> Answers:
    own = subject.preprocess
    if own is None or len(own.mean) != 3:
        return {}
    taken = next((name for name, values in NORMALISATIONS.items() if values == (own.mean, own.std)), "as given")
    others = {
        name: dataclasses.replace(own, mean=mean, std=std)
        for name, (mean, std) in NORMALISATIONS.items()
        if name != taken
    }
    return {taken: subject} | {name: _prepared(subject, other) for name, other in others.items()}


def _prepared(subject: Subject, other: Preprocess) -> Subject:
    assert subject.preprocess is not None
    images = prepared_anew(subject.images, subject.preprocess, other)
    return dataclasses.replace(subject, images=images, preprocess=other)


def prepared_anew(images: Tensor, before: Preprocess, after: Preprocess) -> Tensor:
    """Return images `[N, C, H, W]` with the normalisation and order of channels of another preprocessing."""
    if (before.mean, before.std, before.order) == (after.mean, after.std, after.order):
        return images
    (mean, std), (new_mean, new_std) = (
        [images.new_tensor(values).view(-1, 1, 1) for values in (how.mean, how.std)] for how in (before, after)
    )
    pixels = images * std + mean
    pixels = pixels if before.order == after.order else pixels.flip(1)
    return (pixels - new_mean) / new_std


def _orders(subject: Subject) -> Answers:
    own = subject.preprocess
    if own is None or len(own.mean) != 3:
        return {}
    other = {"RGB": "BGR", "BGR": "RGB"}[own.order]
    turned = dataclasses.replace(own, order=other, mean=own.mean[::-1], std=own.std[::-1])
    return {own.order: subject, other: _prepared(subject, turned)}


# -- The graph ---------------------------------------------------------------------------------------------------------


def _is_residual(graph: Graph) -> bool:
    return any(node.operation == "add" for node in graph)


def _stems(subject: Subject) -> Answers:
    """The first convolution's stride, and a max pool behind it or none."""
    graph = subject.graph
    first = graph.nodes[0]
    if not _is_residual(graph) or subject.kernel(first) not in (3, 7):
        return {}
    second = next((place for place, node in enumerate(graph.nodes) if place and node.operation == "conv2d"), None)
    if second is None:
        return {}
    pool = next((node for node in graph.nodes[:second] if node.operation == "max_pool2d"), None)
    pooled = pool is not None
    own = (first.settings["stride"][0], pooled)
    both = {own: subject}
    for stride, has_pool in itertools.product((1, 2), (False, True)):
        if (stride, has_pool) == own:
            continue
        changed = subject.settings({first.name: {"stride": [stride, stride]}})
        if pooled and not has_pool:
            changed = _without(changed, pool)
        elif has_pool and not pooled:
            changed = _with_pool(changed)
        both[stride, has_pool] = changed
    return {
        f"stride {stride}, {'max pool' if pool else 'no max pool'}": changed for (stride, pool), changed in both.items()
    }


def _without(subject: Subject, gone: Node | None) -> Subject:
    """Without a node of one input, which those behind it take instead."""
    assert gone is not None
    nodes = [node for node in subject.graph if node.name != gone.name]
    return subject.with_nodes(_renamed(node, {gone.name: gone.inputs[0]}) for node in nodes)


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    return dataclasses.replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))


def _inserted(subject: Subject, after: str, new: Node) -> Subject:
    """With a node behind that called `after`, between it and all that take it."""
    nodes: list[Node] = []
    names: dict[str, str] = {}
    for node in subject.graph:
        nodes.append(_renamed(node, names))
        if node.name == after:
            nodes.append(new)
            names = {after: new.name}
    return subject.with_nodes(nodes)


def _with_pool(subject: Subject) -> Subject:
    """With torchvision's max pool in front of the first activation."""
    activation = next(node for node in subject.graph if node.is_activation)
    settings = {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "ceil_mode": False}
    pool = Node("stem_pool", "max_pool2d", activation.inputs, settings, {}, "stem_pool")
    return _inserted(subject, activation.inputs[0], pool)


def _strides_of_bottlenecks(subject: Subject) -> Answers:
    """The stride is in the 3x3 convolution (torchvision, "v1.5") or in the 1x1 before it ("v1", Caffe, Keras)."""
    pairs = [(narrow, wide) for narrow, wide in _bottlenecks(subject) if _strides(narrow) + _strides(wide) == 3]
    if not pairs:
        return {}
    swapped = {}
    for narrow, wide in pairs:
        swapped[narrow.name], swapped[wide.name] = (
            {"stride": wide.settings["stride"]},
            {"stride": narrow.settings["stride"]},
        )
    names = ["in the 3x3 convolutions", "in the 1x1 convolutions before"]
    if _strides(pairs[0][0]) == 2:
        names.reverse()
    return dict(zip(names, (subject, subject.settings(swapped)), strict=True))


def _strides(node: Node) -> int:
    return int(node.settings["stride"][0])


def _bottlenecks(subject: Subject) -> list[tuple[Node, Node]]:
    """Each 1x1 convolution with the 3x3 one behind its BN and activation."""
    graph, found = subject.graph, []
    for wide in graph:
        if subject.kernel(wide) != 3:
            continue
        chain = [wide]
        for _ in range(3):
            if chain[-1].inputs[0] != INPUT:
                chain.append(graph[chain[-1].inputs[0]])
        kinds = [node.operation for node in chain[1:]]
        if kinds == ["activation", "batch_norm", "conv2d"] and subject.kernel(chain[3]) == 1:
            found.append((chain[3], wide))
    return found


def _shortcuts(subject: Subject) -> Answers:
    """Shortcuts without weights: how channels are padded, and pixels left out."""
    graph = subject.graph
    pads = [node for node in graph if node.operation == "pad" and len(node.settings["pad"]) == 6]
    starts = []
    for pad in pads:
        rows = columns = graph[pad.inputs[0]] if pad.inputs[0] != INPUT else pad
        if columns.operation == "slice":
            rows = graph[columns.inputs[0]] if columns.inputs[0] != INPUT else columns
        if (rows.operation, columns.operation) != ("slice", "slice"):
            return {}
        starts.append((rows, columns))
    if not pads or any(sum(pad.settings["pad"][:4]) for pad in pads):
        return {}
    totals = {pad.name: sum(pad.settings["pad"][4:]) for pad in pads}
    padded = {
        "zeros on both sides": {name: {"pad": [0, 0, 0, 0, n // 2, n - n // 2]} for name, n in totals.items()},
        "zeros at the end": {name: {"pad": [0, 0, 0, 0, 0, n]} for name, n in totals.items()},
    }
    answers = {name: subject.settings(changes) for name, changes in padded.items()}
    own = next((name for name, other in answers.items() if other.graph == graph), "as given")
    pooled = {f"{name}, pixels averaged": _averaging(answers[name], starts) for name in padded}
    return {own: subject, **{name: other for name, other in {**answers, **pooled}.items() if name != own}}


def _averaging(subject: Subject, pairs: Iterable[tuple[Node, Node]]) -> Subject:
    """With an average over 2x2 pixels where two slices take every second one."""
    for rows, columns in pairs:
        subject = _without(subject, rows)
        pool = Node(columns.name, "avg_pool2d", (rows.inputs[0],), _HALVED, {}, columns.path)
        subject = subject.with_nodes(pool if node.name == columns.name else node for node in subject.graph)
    return subject


_HALVED = {
    "kernel_size": [2, 2],
    "stride": [2, 2],
    "padding": [0, 0],
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}


def _dilations(subject: Subject) -> Answers:
    """The last stage, or the last two, with dilation instead of stride, as in backbones for segmentation."""
    if not _is_residual(subject.graph) or not any(node.path.startswith("layer4.") for node in subject.graph):
        return {}
    if any(max(node.settings["dilation"]) > 1 for node in subject.graph if node.operation == "conv2d"):
        return {}
    return {
        "none": subject,
        "in the last stage": _dilated(subject, ("layer4",)),
        "in the last two stages": _dilated(subject, ("layer3", "layer4")),
    }


def _dilated(subject: Subject, stages: tuple[str, ...]) -> Subject:
    changes: dict[str, dict[str, Any]] = {}
    dilation = 1
    for stage in stages:
        before, dilation = dilation, 2 * dilation
        for node in subject.graph:
            if node.operation != "conv2d" or not node.path.startswith(f"{stage}."):
                continue
            changes[node.name] = {"stride": [1, 1]}
            if subject.kernel(node) == 3:
                first = node.path.startswith(f"{stage}.0.") and (_strides(node) == 2 or _follows_stride(subject, node))
                by = before if first else dilation
                changes[node.name] |= {"dilation": [by, by], "padding": [by, by]}
    return subject.settings(changes)


def _follows_stride(subject: Subject, wide: Node) -> bool:
    return any(other.name == wide.name and _strides(narrow) == 2 for narrow, other in _bottlenecks(subject))


def _anti_aliased(subject: Subject) -> Answers:
    """Averages over 2x2 pixels behind 3x3 convolutions instead of their stride, and instead of the max pool (timm)."""
    graph = subject.graph
    strided = [node for node in graph.nodes[1:] if subject.kernel(node) == 3 and _strides(node) == 2]
    if not _is_residual(graph) or not strided:
        return {}
    changed = subject.settings({node.name: {"stride": [1, 1]} for node in strided})
    for pool in [node for node in graph if node.operation == "max_pool2d"]:
        active, *others = graph.consumers[pool.name]
        if others or not active.is_activation:
            return {}
        average = dataclasses.replace(pool, operation="avg_pool2d", inputs=(active.name,), settings=_HALVED)
        changed = _inserted(_without(changed, pool), active.name, average)
    for node in strided:
        normalised, *_ = graph.consumers[node.name]
        activation = next((user for user in graph.consumers[normalised.name] if user.is_activation), None)
        if activation is None:
            return {}
        name = f"{activation.name}_pool"
        average = Node(name, "avg_pool2d", (activation.name,), _HALVED, {}, f"{activation.path}_pool")
        changed = _inserted(changed, activation.name, average)
    return {"none": subject, "averages instead of strides": changed}


_FUNCTIONS: dict[str, dict[str, Any]] = {
    "ReLU6": {"name": "clamp", "minimum": 0.0, "maximum": 6.0},
    "LeakyReLU(0.01)": {"name": "leaky_relu", "slope": 0.01},
    "LeakyReLU(0.1)": {"name": "leaky_relu", "slope": 0.1},
    "tanh": {"name": "tanh"},
}


def _with_functions(subject: Subject, nodes: Iterable[Node], *names: str) -> Answers:
    """With each of some functions at activations."""
    places = [node.name for node in nodes]
    return {name: subject.settings({place: {"function": _FUNCTIONS[name]} for place in places}) for name in names}


def _is_relu(node: Node) -> bool:
    return bool(node.settings["function"]["name"] == "relu")


def _activations(subject: Subject) -> Answers:
    nodes = subject.graph.neurons
    if not all(map(_is_relu, nodes)):
        return {}
    return {"ReLU": subject, **_with_functions(subject, nodes, "ReLU6", "LeakyReLU(0.01)", "LeakyReLU(0.1)")}


def _head_activations(subject: Subject) -> Answers:
    """What is between the Linear layers of a classifier; only a BN behind it can tell."""
    graph = subject.graph
    head = [node for node in graph if node.name in graph.behind_readout]
    nodes = [node for node in head if node.is_activation and any(n.operation == "batch_norm" for n in head)]
    if not nodes or not all(map(_is_relu, nodes)):
        return {}
    without = subject
    for node in nodes:
        without = _without(without, node)
    return {"ReLU": subject, "none": without, **_with_functions(subject, nodes, "LeakyReLU(0.01)", "tanh")}


def _eps(subject: Subject) -> Answers:
    nodes = normalisations(subject.graph)
    own = nodes[0].settings["eps"] if nodes else 0.0
    if any(node.settings["eps"] != own for node in nodes):
        return {}
    values = [own, *(eps for eps in (1e-5, 1e-3) if eps != own)]
    return {f"{eps:g}": subject.settings({node.name: {"eps": eps} for node in nodes}) for eps in values}


ROWS = (
    Row("normalisation", _normalisations, of_images=True, layers=1, ratio=3.0),
    Row("channel order", _orders, of_images=True, layers=1, ratio=1.25),
    Row("stem", _stems),
    Row("stride of bottlenecks", _strides_of_bottlenecks),
    Row("shortcut", _shortcuts),
    Row("dilation", _dilations),
    Row("anti-aliasing", _anti_aliased),
    Row("activation", _activations),
    Row("activation in the head", _head_activations),
    Row("eps", _eps),
)
