"""Speed and memory of inference, beside spikingjelly, the unprepared network and T passes of the ANN.

    python benchmarks/inference.py                               # a CPU: batch 2, float32
    python benchmarks/inference.py --device cuda                 # a GPU: batch 32, float16
    python benchmarks/inference.py --models resnet18 densenet121 --time-steps 4 --json inference.json

All contenders take turns in one process, on the same random images; figures are medians. The spiking networks
have the same weights and IF neurons (hard reset); of networks that the zoo lacks (any of torchvision's), they are the
ANN converted with the rate recipe, and by spikingjelly's ann2snn. `fast_delta` is the ANN converted with the delta
recipe; on a CPU, `..._int8` and `..._int16` have integer weights.
spikingjelly runs multi-step in every setting that can be had here: as it is, channels-last, with its BN folding,
under torch.compile (`--compile`), and in half precision with its precision configuration; its best one counts.

The floor beside the times is what no execution layer by layer can go below: floating-point operations over the
measured rate of a large matrix product, and bytes that must move over the measured rate of a large copy.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import snnzoo
from snnzoo.graph.graph import Node
from snnzoo.graph.network import SpikingNetwork
from snnzoo.inference import InferenceNetwork, measure
from snnzoo.models.base import SpikingNet
from snnzoo.models.factory import build
from snnzoo.models.registry import MODELS

Run = Callable[[], object]


def main() -> None:
    options = parse_options()
    device = torch.device(options.device)
    rates = {
        "matmul_flops": matmul_rate(device, options.dtype),
        "copy_bytes": copy_rate(device, options.dtype),
    }
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}, {options.dtype}, batch {options.batch_size}")
    print(f"measured: {rates['matmul_flops'] / 1e12:.3f} Tflop/s, {rates['copy_bytes'] / 1e9:.1f} GB/s")
    report: dict[str, Any] = {"machine": machine, "torch": torch.__version__, **plain(options), **rates, "results": []}
    for model in options.models:
        for time_steps in options.time_steps:
            result = compare(model, time_steps, device, options, rates)
            report["results"].append(result)
            show(result)
            if options.json:
                options.json.write_text(json.dumps(report, indent=1))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--time-steps", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--batch-size", type=int, help="2 on a CPU, 32 on a GPU")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], help="float32 on a CPU, float16 on a GPU"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also under torch.compile: takes minutes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gpu = options.device.startswith("cuda")
    options.batch_size = options.batch_size or (32 if gpu else 2)
    options.dtype = getattr(torch, options.dtype or ("float16" if gpu else "float32"))
    return options


def plain(options: argparse.Namespace) -> dict[str, Any]:
    return {key: value if isinstance(value, (int, list)) else str(value) for key, value in vars(options).items()}


def compare(
    model: str, time_steps: int, device: torch.device, options: argparse.Namespace, rates: dict[str, float]
) -> dict[str, Any]:
    """Times, ratios, memory and floor of every contender."""
    torch.manual_seed(0)
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    ann, net = networks(model, time_steps, images)
    delta_net = snnzoo.convert(ann, images, levels=3, gamma=0.5, time_steps=time_steps, check_fit=False)
    images = images.to(device, options.dtype)
    fast, delta = (snnzoo.prepare_for_inference(n, dtype=options.dtype, device=device) for n in (net, delta_net))
    x_seq = images.expand(time_steps, *images.shape)
    peers, lacking = spikingjelly(ann, net, model, images, time_steps, options)
    with torch.inference_mode():
        difference = None
        if isinstance(net, SpikingNet) and peers:  # the same neurons
            difference = (fast(x_seq.float()).mean(0) - peers["spikingjelly"]().float()).abs().max().item()
        net, ann = net.to(device, options.dtype), ann.to(device, options.dtype)
        runs = measure.contenders(net, ann, fast, images, time_steps)
        runs |= {"fast_delta": lambda: delta(x_seq), "fast_delta_final": lambda: delta.final(x_seq), **peers}
        if device.type == "cpu":
            runs |= integer_runs({"fast": net, "fast_delta": delta_net}, x_seq)
        if options.compile:
            compiled = snnzoo.prepare_for_inference(net, dtype=options.dtype, device=device, compile=True)
            runs["fast_compiled"] = lambda: compiled(x_seq)
        seconds = measure.interleaved(runs, options.repeats, device)
        memory = measure.peak_memories(runs, fast, x_seq)
        flops, moved = flops_and_bytes(fast, x_seq)
    floor = {"arithmetic": flops / rates["matmul_flops"], "memory": moved / rates["copy_bytes"]}
    best_peer = min(peers, key=lambda name: seconds[name], default=None)
    return {
        "model": model,
        "time_steps": time_steps,
        "largest_difference_of_logits": difference,
        "spikingjelly_best": best_peer,
        "spikingjelly_lacks": lacking,
        "flops": flops,
        "bytes": moved,
        "floor_seconds": floor,
        "contenders": {
            name: {
                "seconds": seconds[name],
                "to_ann": seconds[name] / seconds["ann"],
                "to_ann_folded": seconds[name] / seconds["ann_folded"],
                "to_ann_folded_graph": seconds[name] / seconds.get("ann_folded_graph", float("nan")),
                "to_spikingjelly": seconds[name] / (seconds[best_peer] if best_peer else float("nan")),
                "peak_bytes": memory[name],
            }
            for name in runs
        },
    }


def networks(model: str, time_steps: int, images: Tensor) -> tuple[nn.Module, SpikingNet | SpikingNetwork]:
    """torchvision's ANN with random weights where it has one, and its spiking network."""
    if model not in MODELS:
        ann = torchvision.models.get_model(model, num_classes=1000).eval()
        return ann, snnzoo.convert(ann, images, "rate", time_steps=time_steps, check_fit=False)
    ann = measure.torchvision_ann(build(model, neuron=nn.ReLU, step_mode="s").eval())
    net = build(model, neuron=snnzoo.neuron.IFNode).eval()
    net.load_state_dict(ann.state_dict())
    return ann, net


def integer_runs(nets: dict[str, nn.Module], x_seq: Tensor) -> dict[str, Run]:
    """The networks with weights of 8 and 16 bits."""
    runs: dict[str, Run] = {}
    for name, net in nets.items():
        for dtype in (torch.int8, torch.int16):
            rounded = snnzoo.prepare_for_inference(net, dtype=dtype)
            runs[f"{name}_{str(dtype).removeprefix('torch.')}"] = partial(rounded, x_seq)
    return runs


def their_network(ann: nn.Module, net: nn.Module, model: str) -> nn.Module:
    """spikingjelly's network with the weights of `net`; of networks that the zoo lacks, its conversion of `ann`."""
    from spikingjelly.activation_based import ann2snn, functional, neuron, surrogate
    from spikingjelly.activation_based.ann2snn.recipes import RateCodingRecipe
    from spikingjelly.activation_based.model import spiking_resnet

    if isinstance(net, SpikingNet):
        make = getattr(spiking_resnet, f"spiking_{model}")
        theirs = make(spiking_neuron=neuron.IFNode, surrogate_function=surrogate.ATan())
        theirs.load_state_dict(net.state_dict())
    else:
        recipe = RateCodingRecipe([torch.randn(2, 3, 64, 64)])
        theirs = ann2snn.Converter(recipe=recipe).convert(copy.deepcopy(ann))
    functional.set_step_mode(theirs, "m")
    return theirs.eval()  # type: ignore[no-any-return]


def spikingjelly(
    ann: nn.Module, net: nn.Module, model: str, images: Tensor, time_steps: int, options: argparse.Namespace
) -> tuple[dict[str, Run], dict[str, str]]:
    """Ways to run spikingjelly's network, and why others cannot be had; none where it is not installed."""
    try:
        from spikingjelly.activation_based import functional

        theirs = their_network(ann, net, model).to(images.device)
    except Exception as error:  # whatever their library says: it is reported, not hidden
        return {}, {"spikingjelly": f"{type(error).__name__}: {error}"}
    x_seq = images.float().repeat(time_steps, 1, 1, 1, 1)
    x_last = x_seq.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x_seq.shape[:2])

    def multi_step(network: nn.Module, x_seq: Tensor, context: Callable[[], Any] = contextlib.nullcontext) -> Run:
        def run() -> Tensor:
            functional.reset_net(network)
            with context():
                return network(x_seq).mean(0)

        return run

    def channels_last() -> Run:
        return multi_step(copy.deepcopy(theirs).to(memory_format=torch.channels_last), x_last)

    def folded() -> nn.Module:
        from spikingjelly.activation_based.functional.conv_bn_fusion import fuse_conv_bn_eval_modules

        network = fuse_conv_bn_eval_modules(copy.deepcopy(theirs))
        return network.to(memory_format=torch.channels_last)

    def half(network: nn.Module) -> Run:
        from spikingjelly.activation_based.precision import PrecisionConfig, prepare_model_for_precision

        short = {torch.float16: "fp16", torch.bfloat16: "bf16"}[options.dtype]
        config = PrecisionConfig(mode=short, neuron_storage=short)
        prepared = prepare_model_for_precision(network, images.device, config)
        return multi_step(prepared.model, x_last, prepared.autocast_context)

    ways: dict[str, Callable[[], Run]] = {
        "spikingjelly": lambda: multi_step(theirs, x_seq),
        "spikingjelly_channels_last": channels_last,
        "spikingjelly_folded": lambda: multi_step(folded(), x_last),
    }
    if options.compile:
        ways["spikingjelly_compiled"] = lambda: multi_step(torch.compile(copy.deepcopy(theirs)), x_seq)
    if options.dtype != torch.float32:
        ways["spikingjelly_half"] = lambda: half(copy.deepcopy(theirs).to(memory_format=torch.channels_last))
        ways["spikingjelly_half_folded"] = lambda: half(folded())
    runs, lacking = {}, {}
    for name, way in ways.items():
        try:
            run = way()
            with torch.inference_mode():
                run()
            runs[name] = run
        except Exception as error:  # whatever their library says: it is reported, not hidden
            lacking[name] = f"{type(error).__name__}: {error}"
    return runs, lacking


def flops_and_bytes(fast: InferenceNetwork, x_seq: Tensor) -> tuple[int, int]:
    """What one `fast(x_seq)` cannot do without: floating-point operations, and bytes that move.

    Operations: two a multiply-accumulate, of convolutions and linear layers. Bytes: each weight once; each
    layer's input and output once, T steps of it (one, of a static image in the stem), in the network's dtype. A
    neuron that is fused with its convolution would not move its current: so this floor is of layers apart.
    """
    totals = {"flops": 0, "bytes": 0}
    tensors = fast.network.tensors()

    def count(node: Node, inputs: list[Tensor], output: Tensor) -> None:
        if node.row.weighted and node.parameters["weight"] in tensors:
            weight = tensors[node.parameters["weight"]]
            totals["flops"] += 2 * output.numel() * weight[0].numel()
            totals["bytes"] += weight.numel() * weight.element_size()
        for tensor in (*inputs, output):
            totals["bytes"] += _stored_elements(tensor) * tensor.element_size()

    fast(x_seq, count)
    return totals["flops"], totals["bytes"]


def _stored_elements(tensor: Tensor) -> int:
    return tensor.numel() // len(tensor) if tensor.stride(0) == 0 else tensor.numel()


def copy_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes a second, read and written, of a copy too large for caches."""
    source = torch.zeros((1 << 30 if device.type == "cuda" else 1 << 28) // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    seconds = min(measure.seconds_of(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * source.numel() * source.element_size() / seconds


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    out = torch.empty_like(a)
    seconds = min(measure.seconds_of(lambda: torch.mm(a, a, out=out), device) for _ in range(5))
    return 2 * size**3 / seconds


def show(result: dict[str, Any]) -> None:
    floor = result["floor_seconds"]
    difference = result["largest_difference_of_logits"]
    print(
        f"\n{result['model']}, T = {result['time_steps']}; floor: arithmetic {1000 * floor['arithmetic']:.1f} ms, "
        f"memory {1000 * floor['memory']:.1f} ms; best of spikingjelly: {result['spikingjelly_best']}"
        + ("" if difference is None else f"; logits differ from its by {difference:.1e}")
    )
    print(f"{'':28}{'ms':>9}{'/ ANN':>9}{'/ folded':>10}{'/ graph':>9}{'/ SJ best':>11}{'peak MB':>9}")
    for name, row in result["contenders"].items():
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
        print(
            f"{name:28}{1000 * row['seconds']:9.1f}{row['to_ann']:9.2f}{row['to_ann_folded']:10.2f}"
            f"{row['to_ann_folded_graph']:9.2f}{row['to_spikingjelly']:11.2f}{memory:>9}"
        )
    for name, reason in result["spikingjelly_lacks"].items():
        print(f"{name}: cannot be had: {reason}")


if __name__ == "__main__":
    main()
