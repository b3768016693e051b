"""Measuring speed and memory: contenders interleaved in one process, and the layers of a network."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from snnzoo.early_exit import ExitRule
from snnzoo.functional import reset_net
from snnzoo.graph.graph import Node
from snnzoo.graph.network import Ann, SpikingNetwork
from snnzoo.graph.operations import batch_norm_scale
from snnzoo.inference.engine import InferenceNetwork
from snnzoo.inference.graphs import capture
from snnzoo.models.base import SpikingNet

Run = Callable[[], object]


def interleaved(
    contenders: Mapping[str, Run],
    repeats: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Median seconds of each contender. They take turns, so that what the machine does besides hits all alike.

    Args:
        repeats: turns that count; two before them warm up.
        progress: called with (turns done, turns in all).
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(2 + repeats):
        for name, run in contenders.items():
            seconds[name].append(seconds_of(run, device))
        if progress:
            progress(turn + 1, 2 + repeats)
    return {name: statistics.median(measured[2:]) for name, measured in seconds.items()}


def seconds_of(run: Run, device: torch.device) -> float:
    """Wall-clock time of one run, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(run: Run, device: torch.device) -> int | None:
    """Bytes that `run` takes at most, beyond what was held before it: of a CUDA device, or resident of the process.

    None where the system does not tell (on a CPU, only Linux does).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed, and is used again, would not count
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def peak_memories(runs: Mapping[str, Run], fast: InferenceNetwork, x_seq: Tensor) -> dict[str, int | None]:
    """`peak_memory` of contenders. A CUDA graph's memory is set aside for good, so that of a run without it counts."""
    eager = fast.without_graphs()
    runs = {**runs, "fast": lambda: eager(x_seq), "fast_final": lambda: eager.final(x_seq)}
    return {name: None if name.endswith("_graph") else peak_memory(run, fast.device) for name, run in runs.items()}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


KINDS = {
    "conv2d": "convolution",
    "linear": "linear",
    "activation": "neuron",
    "max_pool2d": "pool",
    "adaptive_max_pool2d": "pool",
    "avg_pool2d": "pool",
    "adaptive_avg_pool2d": "pool",
    "mean": "pool",
}


def layer_seconds(fast: InferenceNetwork, x_seq: Tensor, repeats: int = 5) -> dict[str, tuple[str, float]]:
    """Median seconds of each layer of `fast` on `x_seq`, by name: its kind ("convolution", "neuron" ...) and time.

    Each layer is waited for, so on a CUDA device the times are those without a graph, and add up to more.
    """
    kinds = {node.name: KINDS.get(node.operation, "other") for node in fast.network.graph}
    measured: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 + repeats):
        passed: dict[str, float] = defaultdict(float)
        since = time.perf_counter()

        def watch(node: Node, inputs: list[Tensor], value: Tensor, passed: dict[str, float] = passed) -> None:
            nonlocal since
            synchronize(fast.device)
            passed[node.name] += time.perf_counter() - since  # more than once, where time is run in pieces
            since = time.perf_counter()

        fast(x_seq, watch)
        for name, seconds in passed.items():
            measured[name].append(seconds)
    names = {node.name: node.path or node.name for node in fast.network.graph}
    layers: dict[str, tuple[str, float]] = {}
    for name, times in measured.items():
        label = names[name] if names[name] not in layers else f"{names[name]} ({name})"
        layers[label] = kinds[name], statistics.median(times[1:])
    return layers


def folded_ann(ann: nn.Module) -> nn.Module:
    """A copy of an ANN with each BN folded into the convolution registered before it; of a graph, that feeds it."""
    ann = copy.deepcopy(ann).eval()
    if isinstance(ann, Ann):
        return _folded_graph(ann)
    for parent in ann.modules():
        children = list(parent.named_children())
        for (name, conv), (bn_name, bn) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, bn))
                setattr(parent, bn_name, nn.Identity())
    return ann


def _folded_graph(ann: Ann) -> Ann:
    nodes, tensors = {node.name: node for node in ann.graph}, ann.tensors()
    for bn in ann.graph:
        conv = nodes.get(bn.inputs[0])
        if bn.operation != "batch_norm" or conv is None or len(ann.graph.consumers[conv.name]) > 1:
            continue
        if conv.operation == "conv2d":
            roles = {role: tensors[key].detach() for role, key in bn.parameters.items()}
            scale = batch_norm_scale(roles, bn.settings)
            weight, bias = (tensors[conv.parameters[r]] if r in conv.parameters else 0.0 for r in ("weight", "bias"))
            tensors[f"{bn.name}/weight"] = (weight * scale.view(-1, 1, 1, 1)).detach()
            tensors[f"{bn.name}/bias"] = ((bias - roles["running_mean"]) * scale + roles.get("bias", 0.0)).detach()
            keys = {"weight": f"{bn.name}/weight", "bias": f"{bn.name}/bias"}
            nodes[bn.name] = dataclasses.replace(conv, name=bn.name, parameters=keys)
    graph = ann.graph.with_nodes(list(nodes.values()))
    used = {key for node in graph for key in node.parameters.values()}
    return Ann(graph, {key: tensors[key].detach() for key in used}, ann.model_name, ann.input_shape)


def contenders(
    net: SpikingNet | SpikingNetwork,
    ann: nn.Module,
    fast: InferenceNetwork,
    images: Tensor,
    time_steps: int,
    exit: ExitRule | None = None,
) -> dict[str, Run]:
    """A network in its fast form and as it is, and T passes of its ANN: how to run each on static `images`.

    "fast" reads out after each step, "fast_final" once; "fast_exit", where there is a rule, until an image is sure;
    "ann" is the module as it is, "ann_folded" has BN folded and is channels-last, on a CUDA device also
    "ann_folded_graph", under a CUDA graph.

    Args:
        net, ann: on the device and in the dtype of `fast`.
        images: `[N, C, H, W]`, likewise.
        exit: a rule of early exit.
    """
    x_seq = images.expand(time_steps, *images.shape)
    folded = folded_ann(ann).to(memory_format=torch.channels_last)
    channels_last = images.to(memory_format=torch.channels_last)

    def unprepared() -> None:
        reset_net(net)
        net(x_seq)
        reset_net(net)

    def passes(module: Callable[[Tensor], Tensor], images: Tensor) -> Run:
        return lambda: [module(images) for _ in range(time_steps)]

    runs: dict[str, Run] = {
        "fast": lambda: fast(x_seq),
        "fast_final": lambda: fast.final(x_seq),
        **({} if exit is None else {"fast_exit": lambda: fast.until_sure(images, exit)}),
        "unprepared": unprepared,
        "ann": passes(ann, images),
        "ann_folded": passes(folded, channels_last),
    }
    if images.is_cuda:
        runs["ann_folded_graph"] = passes(capture(folded, channels_last), channels_last)
    return runs


def torchvision_ann(ann: SpikingNet | Ann) -> nn.Module:
    """torchvision's own module with the weights of `ann`, where it has such a model; else `ann`."""
    import torchvision

    try:
        module: nn.Module = torchvision.models.get_model(ann.model_name, num_classes=ann.num_classes)
        module.load_state_dict(ann.state_dict())
    except (ValueError, RuntimeError):
        return ann
    return module.eval()
