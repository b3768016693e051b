"""What the Triton kernels take of a GPU: registers, stack (what does not fit into registers) and shared memory.

    python benchmarks/kernel_resources.py --arch 80 90

Compiles, without a GPU, what the launchers would launch: the calls are real ones, on tensors of a ResNet-50's layer. It
shows that kernels compile and do not spill, nothing of their speed.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel
from triton.runtime.jit import native_specialize_impl

from snnzoo import codings
from snnzoo.codings import Coding
from snnzoo.ops import triton_kernels, triton_launch, triton_pointwise
from snnzoo.ops.spec import Arguments, Gradients

TIME_STEPS, BATCH, CHANNELS_IN, CHANNELS, SIZE = 4, 32, 256, 1024, 14
CODINGS = {
    "delta": codings.Delta(7, 0.5),
    "differential": codings.Differential(8),
    "signed": codings.Signed(),
    "if": codings.IF(),
    "lif": codings.LIF(reciprocal_tau=0.5),
}


def sequence(channels: int) -> Tensor:
    step = torch.empty(TIME_STEPS * BATCH, channels, SIZE, SIZE, dtype=torch.float16)
    return step.contiguous(memory_format=torch.channels_last).view(TIME_STEPS, BATCH, channels, SIZE, SIZE)


def arguments(residual: bool) -> Arguments:
    theta, added = torch.ones(CHANNELS), sequence(CHANNELS) if residual else None
    return Arguments(theta, theta, added, None, 0, "sequence", True, torch.float16, False)


def calls() -> Iterator[tuple[str, Any, str, Callable[[], object]]]:
    """A name, the kernel's module and name, and what launches it."""

    def forward(coding: Coding, residual: bool) -> object:
        return triton_launch.forward(sequence(CHANNELS), coding, arguments(residual))

    def backward(coding: Coding, residual: bool) -> object:
        gradients = Gradients(sequence(CHANNELS), None, None)
        return triton_launch.backward(gradients, sequence(CHANNELS), coding, arguments(residual))

    def pointwise(coding: Coding, residual: bool) -> object:
        weight = torch.empty(CHANNELS, CHANNELS_IN, 1, 1, dtype=torch.float16)
        return triton_pointwise.forward(sequence(CHANNELS_IN), weight, coding, arguments(residual))

    for name, residual in itertools.product(CODINGS, (False, True)):
        title, coding = f"{name}{' and a residual' if residual else ''}", CODINGS[name]
        yield f"forward, {title}", triton_kernels, "forward_kernel", lambda c=coding, r=residual: forward(c, r)
        if name in ("if", "lif"):
            yield f"backward, {title}", triton_kernels, "backward_kernel", lambda c=coding, r=residual: backward(c, r)
        if name in ("delta", "differential"):
            launch = lambda c=coding, r=residual: pointwise(c, r)  # noqa: E731
            yield f"1x1 convolution, {title}", triton_pointwise, "pointwise_kernel", launch


class Recorder:
    """Stands in for a kernel, and keeps the arguments of its launch."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.args, self.kwargs = args, kwargs

        return launch


def compiled(module: Any, name: str, launch: Callable[[], object], arch: int) -> Any:
    """What Triton would compile for a launch."""
    kernel, recorder = getattr(module, name), Recorder()
    with mock.patch.object(module, name, recorder):
        launch()
    target = GPUTarget("cuda", arch, 32)
    backend = CUDABackend(target)
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        if parameter.name in recorder.kwargs:
            signature[parameter.name], constants[place,] = "constexpr", recorder.kwargs[parameter.name]
            continue
        value = recorder.args[place]
        kind, attribute = native_specialize_impl(backend, value, False, not parameter.do_not_specialize, True)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[place,] = value
        elif attribute:
            attributes[place,] = backend.parse_attr(attribute)
    options = {key: value for key, value in recorder.kwargs.items() if key not in signature}
    return compile_kernel(ASTSource(kernel, signature, constants, attributes), target=target, options=options)


def resources(kernel: Any) -> tuple[int, int, int]:
    """Registers and bytes of stack of a thread, bytes of shared memory of a program."""
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    assert found is not None, printed
    return int(found[1]), int(found[2]), kernel.metadata.shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], help="compute capabilities, such as 90")
    parser.add_argument("--only", default="", help="only kernels whose names begin so")
    arguments = parser.parse_args()
    if triton_launch.INTERPRETED:
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    print(f"Triton {triton.__version__}, float16\n\n| kernel | sm | registers | stack | shared memory |")
    print("|---|---:|---:|---:|---:|")
    for (name, *launch), arch in itertools.product(calls(), arguments.arch):
        if name.startswith(arguments.only):
            columns = " | ".join(str(value) for value in resources(compiled(*launch, arch)))
            print(f"| {name} | {arch} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
