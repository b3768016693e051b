"""`prepare_for_inference`: a network in the form that runs fastest, behind one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial, reduce

import torch
from torch import Tensor

from snnzoo.early_exit import ExitRule
from snnzoo.errors import UsageError
from snnzoo.functional import stateful
from snnzoo.graph.network import SpikingNetwork, Watch
from snnzoo.graph.operations import INPUT
from snnzoo.graph.shapes import value_shapes
from snnzoo.graph.trained import as_graph
from snnzoo.inference import ahead
from snnzoo.inference.graphs import GraphCache
from snnzoo.inference.integer import PIECES, round_weights
from snnzoo.inference.network import FoldedNetwork
from snnzoo.inference.neuron import FoldedNeuron
from snnzoo.inference.stepwise import run_until_sure
from snnzoo.models.base import SpikingNet
from snnzoo.ops import backends
from snnzoo.ops.memory import KEPT_BYTES, keep_freed_memory
from snnzoo.ops.spec import state_dtype

STEPS_AT_ONCE = 8  # a longer sequence is run in pieces, so that memory does not grow with T


def prepare_for_inference(
    net: SpikingNet | SpikingNetwork,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    memory_format: torch.memory_format = torch.channels_last,
    cuda_graph: bool = True,
    cudnn_benchmark: bool = True,
    compile: bool = False,
    fuse_pointwise: bool = False,
) -> InferenceNetwork:
    """A network's fast form for evaluation mode. The network itself is not changed.

    BN is folded into convolutions, and its bias, like the residual, is added by the neuron operator. In float64 the
    logits are the network's; in float32 and below rounding differs, and where a spike hangs on it, so does the
    spike. Half precision is closest where the readout is fine: at more steps, or more levels.

    On a CPU, in float32 and float64, a depthwise convolution between neurons runs with both of them as one compiled
    kernel, where `memory_format` is channels_last. Its sums may round other than PyTorch's: so may logits, and a spike
    that hangs on it, between this and a call with `watch`, which runs layers one by one. malloc keeps more freed memory
    from then on (`ops.memory.keep_freed_memory`).

    Args:
        net: trained or converted; its state is left out.
        dtype: of weights and activations, the network's if None. Neurons and the classifier stay float32 or better.
            On a CPU also torch.int8 or torch.int16: weights of a ResNet's blocks are rounded to so many bits, spikes
            are whole numbers anyway, and all else is float32.
        device: the network's if None.
        memory_format: of images and activations; `torch.channels_last` is the fastest nearly everywhere.
        cuda_graph: on a CUDA device, record a graph for each shape of input, at the first call with it.
        cudnn_benchmark: let cuDNN measure, before a graph is recorded, which algorithm is the fastest for each
            convolution. False keeps to its own guess, which is the same in every process.
        fuse_pointwise: on a CUDA device in half precision, run each 1x1 convolution of stride 1 and the delta or
            differential neurons behind it as one kernel, sequences of up to 8 steps. Their input is then not rounded
            to half precision in between. Off, since its speed was not measured yet.
        compile: pass the network through `torch.compile`, which takes minutes at the first call.

    Raises:
        UsageError: for a network, block or neuron that has no fast form, or not in this dtype.

    Example:
        >>> fast = prepare_for_inference(snnzoo.create_model("resnet18"))
        >>> fast(images.expand(4, *images.shape))  # [T, N, classes], after each of 4 steps
    """
    weight = next(net.parameters())
    dtype, device = dtype or weight.dtype, torch.device(device or weight.device)
    network = FoldedNetwork(as_graph(net))
    weights, dtype = dtype, torch.float32 if dtype in PIECES else dtype
    network.cast(dtype, state_dtype(dtype))
    network = network.to(device).to(memory_format=memory_format)
    if weights in PIECES:
        if device.type != "cpu" or compile:
            raise UsageError("integer weights run on a CPU, without torch.compile: use float32 or float16")
        round_weights(network, weights)
    if fuse_pointwise:
        if device.type != "cuda" or dtype.itemsize != 2 or memory_format != torch.channels_last or compile:
            raise UsageError(
                "fuse_pointwise needs a CUDA device, float16 or bfloat16 and channels_last, and no torch.compile"
            )
        network.fuse_pointwise()
    if device.type == "cpu":
        keep_freed_memory()
        if weights not in PIECES and not compile:
            network.fuse_depthwise()
    if compile:
        network.run = torch.compile(network.run, dynamic=False)  # type: ignore[method-assign]
    graphs = GraphCache(cudnn_benchmark) if cuda_graph and device.type == "cuda" else None
    return InferenceNetwork(network, dtype, device, memory_format, graphs)


class InferenceNetwork:
    """What `prepare_for_inference` makes. Each call starts at t = 0, and leaves no state behind.

    `network` is the folded network itself, a graph with the neurons of the original: it keeps state from call to call.
    """

    def __init__(
        self,
        network: FoldedNetwork,
        dtype: torch.dtype,
        device: torch.device,
        memory_format: torch.memory_format,
        graphs: GraphCache | None,
    ) -> None:
        self.network, self.dtype, self.device, self.memory_format = network, dtype, device, memory_format
        self._graphs = graphs
        self._stateful = stateful(network)
        self._neurons = [module for module in self._stateful if isinstance(module, FoldedNeuron)]

    def __call__(self, x_seq: Tensor, watch: Watch | None = None) -> Tensor:
        """`[T, N, C, H, W] -> [T, N, classes]`: the logits of the network, after each step.

        Logits are float32 (float64 of a float64 network). A static image, `x.expand(T, *x.shape)`, passes the
        stem once.

        Args:
            watch: called with each node of `network.graph`, its inputs and its value, `[T, N, ...]`, once for each
                piece of a long sequence, or of a large batch on a CPU; without a CUDA graph then.

        Raises:
            ValueError: if the input has another shape.
        """
        if watch is None:
            return self._run(x_seq, self._after_each_step)
        return self.without_graphs()._run(x_seq, partial(self._after_each_step, watch=watch))

    def final(self, x_seq: Tensor) -> Tensor:
        """`[T, N, C, H, W] -> [N, classes]`: the readout of all T steps, without those before.

        Of a converted network, the logits after the last step; of one with a readout of each step, their mean.
        The last neurons' outputs are summed up as they come, then pooled and classified once.
        """
        return self._run(x_seq, self._after_all_steps)

    @torch.inference_mode()
    def until_sure(self, images: Tensor, exit: ExitRule, watch: Watch | None = None) -> tuple[Tensor, Tensor]:
        """Run each image for as many steps as it needs: those that are sure leave, and the rest goes on without them.

        What becomes of an image does not depend on others in the batch. Steps between which none may leave run layer by
        layer, as those of a call do; all are launched from Python. So do steps after which so few are expected to leave
        that to stop there would cost more than it saves, unless they are watched (`inference.ahead`).

        Args:
            images: `[N, C, H, W]`; or a sequence of frames, `[T, N, C, H, W]`, of the rule's T.
            exit: of the network's file, `net.conversion.exits.rule(0.5)`, or any other.
            watch: as of a call, once for each run of steps; for what comes before all neurons once, if images are
                static.

        Returns:
            the logits with which each image left, `[N, classes]`, and after how many steps, `[N]`. Those of a network
            that was trained as it is are the mean over its steps.

        Raises:
            ValueError: if the input has another shape.
        """
        x_seq = images.expand(exit.time_steps, *images.shape) if images.ndim in (2, 4) else images
        if x_seq.ndim not in (3, 5) or len(x_seq) != exit.time_steps:
            raise ValueError(
                f"until_sure needs images [N, C, H, W], or frames [T, N, C, H, W] of the rule's T={exit.time_steps}, "
                f"got {list(images.shape)}"
            )
        time_steps, batch = x_seq.shape[:2]
        inputs = self._on_device(x_seq)
        at_once = min(STEPS_AT_ONCE, max(1, self._images_at_once(x_seq[:1]) // max(1, batch)))
        goes_ahead = watch is None and exit.staying is not None
        runs = ahead.cheapest(exit, at_once, batch, self._cost) if goes_ahead else ahead.to_each_exit(exit, at_once)
        self._reset(keeps_state=True)
        try:
            static_or_frames = inputs.unflatten(0, (-1, batch)).expand(time_steps, *x_seq.shape[1:])
            return run_until_sure(self.network, static_or_frames, exit, runs, watch)
        finally:
            self._reset(keeps_state=True)

    def without_graphs(self) -> InferenceNetwork:
        """The same network, launched from Python at each call."""
        if self._graphs is None:
            return self
        return InferenceNetwork(self.network, self.dtype, self.device, self.memory_format, None)

    def forget_graphs(self) -> None:
        """Give up the CUDA graphs recorded so far, and the memory that they keep; the next calls record anew."""
        if self._graphs is not None:
            self._graphs.clear()

    @torch.inference_mode()
    def _run(self, x_seq: Tensor, readout: Callable[[Tensor], Tensor]) -> Tensor:
        if x_seq.ndim not in (3, 5):
            raise ValueError(f"the network needs an input of shape [T, N, C, H, W], got {list(x_seq.shape)}")
        parts = x_seq.tensor_split(math.ceil(x_seq.shape[1] / self._images_at_once(x_seq)) or 1, 1)
        logits = [self._run_part(part, readout) for part in parts]
        return logits[0] if len(logits) == 1 else torch.cat(logits, -2)

    def _images_at_once(self, x_seq: Tensor) -> int:
        """As many as a CPU has their largest value in its cache, and in memory that it need not take anew."""
        if self.device.type != "cpu":
            return max(1, x_seq.shape[1])
        steps = min(len(x_seq), STEPS_AT_ONCE)
        size = self._growth * math.prod(x_seq.shape[2:]) * steps * self.dtype.itemsize
        return max(1, KEPT_BYTES // max(1, int(size)))

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one image as the network was captured with, and of its values."""
        network = self.network
        shapes = value_shapes(network.graph, network.tensors(), network.input_shape, network.model_name)
        return {INPUT: tuple(network.input_shape), **shapes}

    @cached_property
    def _cost(self) -> ahead.Cost:
        return ahead.cost_of(self.network, self._shapes)

    @cached_property
    def _growth(self) -> float:
        """How many times as large as its image the largest value is."""
        values = (self._shapes[node.name] for node in self.network.graph)
        return max(map(math.prod, values)) / math.prod(self._shapes[INPUT])

    def _run_part(self, x_seq: Tensor, readout: Callable[[Tensor], Tensor]) -> Tensor:
        time_steps, batch = x_seq.shape[:2]
        images = self._on_device(x_seq)

        def run(images: Tensor) -> Tensor:
            x_seq = images.unflatten(0, (-1, batch))
            self._reset(keeps_state=time_steps > STEPS_AT_ONCE)
            try:
                return readout(x_seq.expand(time_steps, *x_seq.shape[1:]))
            finally:
                self._reset(keeps_state=True)

        if self._graphs is None:
            return run(images)
        key = (images.shape, batch, time_steps, readout.__name__, backends.forced())
        return self._graphs.run(key, run, images)

    def _on_device(self, x_seq: Tensor) -> Tensor:
        """`[T * N, ...]`, or `[N, ...]` of a static image, as the network takes them."""
        if x_seq.stride(0) == 0:
            x_seq = x_seq[:1]
        images = x_seq.flatten(0, 1).to(self.device, self.dtype, non_blocking=True)
        return images.contiguous(memory_format=self.memory_format) if images.ndim == 4 else images

    def _reset(self, *, keeps_state: bool) -> None:
        for module in self._stateful:
            module.reset()
        for neuron in self._neurons:
            if neuron.keeps_state != keeps_state:  # a module takes a while to be given something
                neuron.keeps_state = keeps_state

    def _after_each_step(self, x_seq: Tensor, watch: Watch | None = None) -> Tensor:
        return torch.cat([self.network.run(piece, watch) for piece in x_seq.split(STEPS_AT_ONCE)])

    def _after_all_steps(self, x_seq: Tensor) -> Tensor:
        if not self.network.totals_suffice:
            return self._after_each_step(x_seq).mean(0)
        pieces = x_seq.split(STEPS_AT_ONCE)
        totals = (self.network.total(piece, is_last=piece is pieces[-1]) for piece in pieces)
        return self.network.classify_total(reduce(torch.add, totals), len(x_seq))

    def __repr__(self) -> str:
        return f"InferenceNetwork({type(self.network).__name__}, {self.dtype}, {self.device}, {self.memory_format})"
