"""Speed of the multi-step neuron, beside a plain copy, the reference, torch.compile and SpikingJelly.

    python benchmarks/multistep_neuron.py                       # everything, on CUDA where there is a device
    OMP_NUM_THREADS=2 python benchmarks/multistep_neuron.py --device cpu

Each case moves at least `bytes`: every input read once, every output written once. Its effective bandwidth is set
beside that of a copy on the same device that moves as many. The contenders of a case run in turn, in one process, on
the same input; times are medians. SpikingJelly (2.0.0: `pip install --no-deps spikingjelly==2.0.0 numpy scipy tqdm h5py
matplotlib tensorboard requests packaging loguru`) chooses its CUDA implementation when it is imported, so that each has
a process of its own, in which ours and the copy are measured again. What did not run, and why, is printed at the end
and stands in the JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import snnzoo
from snnzoo import codings, ops
from snnzoo.checkpoints.output import atomic_output
from snnzoo.ops import backends

RESULTS = Path(__file__).parent / "results"
CODINGS: dict[str, codings.Coding] = {
    "if soft": codings.IF(None),
    "if hard": codings.IF(0.0),
    "lif hard": codings.LIF(0.0, reciprocal_tau=0.5),
    "signed": codings.Signed(),
    "differential": codings.Differential(8),
    "delta": codings.Delta(7, 0.5),
}
PEER_IMPLEMENTATIONS = ("triton", "torch", "cuda")  # "cuda": native kernels, from a source build; CuPy is gone in 2.0.0
PEER_IS_THERE = importlib.util.find_spec("spikingjelly") is not None
CHANNELS, SIZE = 64, 56

Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """`elements` are those of all T steps; `per_channel`: theta and bias `[C]`, and outputs worth theta."""

    direction: str
    coding: str
    dtype: str
    layout: str
    time_steps: int
    residual: bool
    per_channel: bool
    elements: int

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        batch = max(1, round(self.elements / (self.time_steps * CHANNELS * SIZE * SIZE)))
        return self.time_steps, batch, CHANNELS, SIZE, SIZE

    def tensor(self, device: str) -> Tensor:
        x = torch.randn(self.shape, device=device, dtype=torch.float32).to(getattr(torch, self.dtype))
        if self.layout == "channels_last":
            return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(self.shape)
        return x

    def bytes_moved(self, x: Tensor) -> int:
        if self.direction == "forward":
            return x.numel() * x.element_size() * (3 if self.residual else 2)
        return x.numel() * x.element_size() * (4 if self.residual else 3) + x[0].numel() * 4  # and the gradient of v


def cases(options: argparse.Namespace, device: str) -> Iterator[Case]:
    """The table, coding by coding."""
    elements = options.elements or (1 << 26 if device == "cuda" else 1 << 23)
    for direction in options.directions:
        for dtype in options.dtypes or (["float32", "float16"] if device == "cuda" else ["float32"]):
            for coding in options.codings:
                if direction == "backward" and not isinstance(CODINGS[coding], codings.IF):
                    continue
                for layout in options.layouts:
                    for residual in (False, True):
                        for time_steps in options.time_steps:
                            converted = not isinstance(CODINGS[coding], codings.IF)
                            yield Case(direction, coding, dtype, layout, time_steps, residual, converted, elements)


class Clock:
    """Runs contenders in turn, and gives the median time of each in milliseconds."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def once(self, run: Run) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        run()
        end_event.record()
        torch.cuda.synchronize()
        return start_event.elapsed_time(end_event)

    def medians(self, contenders: dict[str, Run]) -> dict[str, float]:
        for run in contenders.values():
            for _ in range(1 if self.device == "cpu" else 3):
                run()
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(self.repeats):
            for name, run in contenders.items():
                times[name].append(self.once(run))
        return {name: statistics.median(values) for name, values in times.items()}


def forward_contenders(case: Case, device: str, compiled: bool) -> tuple[dict[str, Run], int]:
    x, coding = case.tensor(device), CODINGS[case.coding]
    arguments: dict[str, Any] = {"keep_state": False}
    if case.residual:
        arguments["residual"] = case.tensor(device)
    if case.per_channel:
        arguments |= {
            "v_threshold": torch.linspace(0.2, 0.9, CHANNELS, device=device),
            "bias": torch.linspace(-0.1, 0.1, CHANNELS, device=device),
            "scaled": True,
        }
    out = torch.empty_like(x)
    contenders = copy_of(case.bytes_moved(x), device)
    contenders["snnzoo"] = lambda: ops.multi_step_neuron(x, coding, **arguments)
    contenders["snnzoo, out="] = lambda: ops.multi_step_neuron(x, coding, out=out, **arguments)
    scratch = x.clone()
    contenders["snnzoo, in place"] = lambda: ops.multi_step_neuron(scratch, coding, out=scratch, **arguments)

    def reference() -> Any:
        with ops.use_backend("reference"):
            return ops.multi_step_neuron(x, coding, **arguments)

    contenders["reference"] = reference
    if compiled:
        torch._dynamo.reset()
        contenders["torch.compile"] = torch.compile(reference, fullgraph=False, dynamic=False)
    if PEER_IS_THERE and case.coding in PEERS and not case.residual:
        contenders["spikingjelly"] = peer_forward(case.coding, x)
    return contenders, case.bytes_moved(x)


def backward_contenders(case: Case, device: str, compiled: bool) -> tuple[dict[str, Run], int]:
    """The backward pass alone, of a graph that is kept."""
    x = case.tensor(device).requires_grad_()
    residual = case.tensor(device).requires_grad_() if case.residual else None
    gradient = case.tensor(device)
    contenders = copy_of(case.bytes_moved(x), device)

    def backward(y: Tensor | None, *inputs: Tensor | None) -> Run:
        assert y is not None
        wanted = [tensor for tensor in inputs if tensor is not None]
        return lambda: torch.autograd.grad(y, wanted, gradient, retain_graph=True)

    coding = CODINGS[case.coding]
    contenders["snnzoo"] = backward(ops.multi_step_neuron(x, coding, residual=residual).sequence, x, residual)
    with ops.use_backend("reference"):
        reference = ops.multi_step_neuron(x, coding, residual=residual).sequence
    contenders["reference"] = backward(reference, x, residual)
    if PEER_IS_THERE and case.coding in PEERS and not case.residual:
        contenders["spikingjelly"] = backward(peer_forward(case.coding, x)(), x)
    return contenders, case.bytes_moved(x)


def copy_of(size: int, device: str) -> dict[str, Run]:
    """A plain copy that moves `size` bytes, half of them read and half of them written."""
    source, target = (torch.empty(size // 2, dtype=torch.uint8, device=device).fill_(1) for _ in range(2))
    return {"copy": lambda: target.copy_(source)}


PEERS: dict[str, Callable[[Any], Any]] = {
    "if soft": lambda neuron: neuron.IFNode(v_reset=None, step_mode="m"),
    "if hard": lambda neuron: neuron.IFNode(v_reset=0.0, step_mode="m"),
    "lif hard": lambda neuron: neuron.LIFNode(tau=2.0, decay_input=True, v_reset=0.0, step_mode="m"),
}


def peer_forward(coding: str, x: Tensor) -> Run:
    from spikingjelly.activation_based import functional, neuron

    node = PEERS[coding](neuron).to(x.device)

    def run() -> Any:
        functional.reset_net(node)
        return node(x)

    return run


def measure(case: Case, device: str, clock: Clock, wanted: set[str], compiled: bool, notes: dict[str, str]) -> Any:
    """One row: times in ms, and the share of the copy's bandwidth that is reached."""
    forward = case.direction == "forward"
    with torch.inference_mode(forward):
        contenders, moved = (forward_contenders if forward else backward_contenders)(case, device, compiled)
        contenders = {name: run for name, run in contenders.items() if name.split(",")[0] in wanted}
        for name in list(contenders):
            try:
                contenders[name]()
            except Exception as error:
                notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                del contenders[name]
        times = clock.medians(contenders)
    best = min(value for name, value in times.items() if name.startswith("snnzoo"))
    return {
        **asdict(case),
        "bytes": moved,
        "ms": times,
        "bandwidth": moved / best / 1e6,
        "of_copy": times["copy"] / best,
        "faster_than": {n: t / times["snnzoo"] for n, t in times.items() if n.split(",")[0] not in ("copy", "snnzoo")},
    }


def show(row: dict[str, Any], peer: str | None) -> None:
    faster = "  ".join(f"{n if peer is None else f'{n} ({peer})'} {r:.1f}x" for n, r in row["faster_than"].items())
    residual = "+res" if row["residual"] else ""
    best = min(t for n, t in row["ms"].items() if n.startswith("snnzoo"))
    print(
        f"{row['direction']:8} {row['coding']:12} {row['dtype']:8} {row['layout']:13} "
        f"T={row['time_steps']:<3}{residual:4} {best:8.2f} ms {row['bandwidth']:7.1f} GB/s "
        f"{row['of_copy']:6.1%} of copy  {faster}",
        flush=True,
    )


def environment(device: str) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "snnzoo": snnzoo.__version__, "python": platform.python_version()}
    for name in ("triton", "spikingjelly", "cupy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            versions[name] = f"not there: {error}"
    found: dict[str, Any] = {"versions": versions, "triton": backends.named("triton").unavailable() or "runs"}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"]
        found |= {
            "device": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "driver": subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip(),
        }
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        found |= {"device": names[0] if names else platform.processor(), "threads": torch.get_num_threads()}
    return found


def run_peer(implementation: str, arguments: list[str], notes: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of one of SpikingJelly's implementations, from a process of its own."""
    names = ("SJ_IF_CUDA_IMPLEMENTATION", "SJ_LIF_CUDA_IMPLEMENTATION")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, __file__, *arguments, "--peer", implementation, "--json", str(path)]
        result = subprocess.run(command, env={**os.environ, **dict.fromkeys(names, implementation)}, check=False)
        if result.returncode or not path.is_file():
            notes[f"spikingjelly ({implementation})"] = f"its process ended with {result.returncode}"
            return []
        report = json.loads(path.read_text())
    notes |= {f"{name} ({implementation})": note for name, note in report["did_not_run"].items()}
    return [{**row, "peer": implementation} for row in report["rows"]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--time-steps", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--codings", nargs="+", choices=list(CODINGS), default=list(CODINGS))
    parser.add_argument("--layouts", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--directions", nargs="+", choices=("forward", "backward"), default=["forward", "backward"])
    parser.add_argument("--elements", type=int, help="of all steps together; 2^26 on CUDA, 2^23 on a CPU")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile of the reference out")
    parser.add_argument("--peer", choices=PEER_IMPLEMENTATIONS, help="only SpikingJelly, ours and the copy")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/multistep_neuron-DEVICE.json")
    return parser.parse_args()


def main() -> None:
    options = parse()
    clock = Clock(options.device, options.repeats or (20 if options.device == "cuda" else 3))
    everything = {"copy", "snnzoo", "reference", "torch.compile", "spikingjelly"}
    if options.peer:
        wanted = everything - {"reference", "torch.compile"}
    else:  # on a CPU there is one implementation, so it needs no process of its own
        wanted = everything if options.device == "cpu" else everything - {"spikingjelly"}
    rows: list[dict[str, Any]] = []
    notes: dict[str, str] = {}
    for case in cases(options, options.device):
        if options.peer and (case.coding not in PEERS or case.residual):
            continue
        # compiling takes long: the steps are unrolled
        compiled = not (options.no_compile or options.peer or case.residual or case.time_steps != 8)
        compiled = compiled and case.layout == "contiguous" and case.direction == "forward"
        rows.append(measure(case, options.device, clock, wanted, compiled, notes))
        show(rows[-1], options.peer)
    if not PEER_IS_THERE:
        notes["spikingjelly"] = "it is not installed"
    elif options.device == "cuda" and not options.peer:
        for implementation in PEER_IMPLEMENTATIONS:
            rows += run_peer(implementation, sys.argv[1:], notes)
    for name, note in notes.items():
        print(f"did not run: {name}: {note}")
    path = options.json or RESULTS / f"multistep_neuron-{options.device}.json"
    path.parent.mkdir(exist_ok=True)
    report = {**environment(options.device), "did_not_run": notes, "rows": rows}
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
