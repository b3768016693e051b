"""CUDA graphs: what a network launches, recorded once for each shape of input and replayed without Python."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
WARM_UP_RUNS = 2  # before recording: libraries choose algorithms and kernels are compiled then
GRAPHS_KEPT = 8


def capture(
    function: Function, x: Tensor, *, pool: Any = None, stream: Any = None, cudnn_benchmark: bool = True
) -> Function:
    """Return a function that replays what `function` does to an input like `x`, on a CUDA device.

    Args:
        function: of one tensor; it may not synchronise with the host.
        x: an example; later inputs need its shape, dtype and memory format.
        pool: memory that graphs share (`torch.cuda.graph_pool_handle()`), which then may not run at once.
        stream: of the device of `x`, to record on; a new one if None. PyTorch's default is of the device of the
            process's first record.
        cudnn_benchmark: whether cuDNN measures which algorithm is the fastest for each convolution, while warming up.

    Raises:
        whatever the run or its record raises; the current stream is then what it was, the pool of no use any more.
    """
    with torch.cuda.device(x.device):
        stream = stream or torch.cuda.Stream(x.device)
        held = x.clone()
        stream.wait_stream(torch.cuda.current_stream(x.device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):  # a record that fails to end leaves its own stream in force
            with _cudnn_benchmark(cudnn_benchmark):
                for _ in range(WARM_UP_RUNS):
                    function(held)
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                output = function(held)
        torch.cuda.current_stream(x.device).wait_stream(stream)

    def replay(x: Tensor) -> Tensor:
        held.copy_(x)
        graph.replay()
        return output.clone()  # the next replay, of any graph in the pool, overwrites it

    return replay


@contextmanager
def _cudnn_benchmark(on: bool) -> Iterator[None]:
    """Let cuDNN measure its algorithms, unless deterministic ones are asked for; what it found, it keeps."""
    before = torch.backends.cudnn.benchmark
    deterministic = torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = before or (on and not deterministic)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class GraphCache:
    """Functions recorded as graphs, the least recently used one given up first.

    What cannot be recorded runs as it is, with a warning: where memory is too small for the record, which keeps all
    activations reserved, or whatever else the driver says.

    Args:
        cudnn_benchmark: as in `capture`.
    """

    def __init__(self, cudnn_benchmark: bool = True) -> None:
        self.functions: OrderedDict[Hashable, Function] = OrderedDict()
        self.cudnn_benchmark = cudnn_benchmark
        self._pool: Any = None
        self._stream: Any = None

    def run(self, key: Hashable, function: Function, x: Tensor) -> Tensor:
        """`function(x)`, for the first call with this `key` recorded; equal keys mean equal functions and shapes."""
        if key not in self.functions:
            self.functions[key] = self._record(function, x)
            if len(self.functions) > GRAPHS_KEPT:
                self.functions.popitem(last=False)
        self.functions.move_to_end(key)
        return self.functions[key](x)

    def clear(self) -> None:
        """Give up all graphs, and the memory that they keep."""
        self.functions.clear()
        self._pool = self._stream = None

    def _record(self, function: Function, x: Tensor) -> Function:
        function(x)  # if this does not fit, the caller has to know
        if self._pool is None:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(x.device)
        torch.cuda.empty_cache()  # a graph cannot use what the allocator keeps for others
        try:
            return capture(
                function, x, pool=self._pool, stream=self._stream, cudnn_benchmark=self.cudnn_benchmark
            )  # fmt: skip
        except Exception as error:
            self._pool = self._stream = None  # of a record that failed: neither may be used again
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"no CUDA graph could be recorded ({reason}): the network runs without", stacklevel=2)
            return function
