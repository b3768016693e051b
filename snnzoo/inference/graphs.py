"""CUDA graphs: what a network launches, recorded once for each shape of input and replayed without Python."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
WARM_UP_RUNS = 2  # before recording: libraries choose algorithms and kernels are compiled then
GRAPHS_KEPT = 8


def capture(function: Function, x: Tensor, pool: Any = None) -> Function:
    """A function that replays what `function` does to an input like `x`, on a CUDA device.

    Args:
        function: of one tensor; it may not synchronise with the host.
        x: an example; later inputs need its shape, dtype and memory format.
        pool: memory that graphs share (`torch.cuda.graph_pool_handle()`), which then may not run at once.

    Raises:
        torch.OutOfMemoryError: if the run or its record does not fit the memory.
    """
    held = x.clone()
    with torch.cuda.device(x.device):
        stream = torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function(held)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = function(held)

    def replay(x: Tensor) -> Tensor:
        held.copy_(x)
        graph.replay()
        return output.clone()  # the next replay, of any graph in the pool, overwrites it

    return replay


class GraphCache:
    """Functions recorded as graphs, the least recently used one given up first.

    Where memory is too small for the record (it keeps all activations reserved), the function runs as it is.
    """

    def __init__(self) -> None:
        self.functions: OrderedDict[Hashable, Function] = OrderedDict()
        self.pool: Any = None

    def run(self, key: Hashable, function: Function, x: Tensor) -> Tensor:
        """`function(x)`, for the first call with this `key` recorded; equal keys mean equal functions and shapes."""
        if key not in self.functions:
            self.functions[key] = self._record(function, x)
            if len(self.functions) > GRAPHS_KEPT:
                self.functions.popitem(last=False)
        self.functions.move_to_end(key)
        return self.functions[key](x)

    def _record(self, function: Function, x: Tensor) -> Function:
        function(x)  # if this does not fit, the caller has to know
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()  # a graph cannot use what the allocator keeps for others
        try:
            return capture(function, x, self.pool)
        except torch.OutOfMemoryError:
            return function
