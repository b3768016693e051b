"""`prepare_for_inference`: a network in the form that runs fastest, behind one call."""

from __future__ import annotations

import torch
from torch import Tensor

from snnzoo.functional import reset_net
from snnzoo.inference.folding import FoldedNeuron
from snnzoo.inference.network import FoldedNetwork, fold_network
from snnzoo.models.resnet import SpikingNet
from snnzoo.ops.spec import state_dtype

STEPS_AT_ONCE = 8  # a longer sequence is run in pieces, so that memory does not grow with T


def prepare_for_inference(
    net: SpikingNet,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> InferenceNetwork:
    """A network's fast form for evaluation mode. The network itself is not changed.

    BN is folded into convolutions, and its bias, like the residual, is added by the neuron operator.

    Args:
        net: trained or converted; its state is left out.
        dtype: of weights and activations, the network's if None. Neurons and the classifier stay float32 or better.
        device: the network's if None.
        memory_format: of images and activations; `torch.channels_last` is the fastest nearly everywhere.

    Raises:
        UsageError: for a network, block or neuron that has no fast form.

    Example:
        >>> fast = prepare_for_inference(snnzoo.create_model("resnet18"))
        >>> fast(images.expand(4, *images.shape))  # [T, N, classes], after each of 4 steps
    """
    weight = next(net.parameters())
    dtype, device = dtype or weight.dtype, torch.device(device or weight.device)
    network = fold_network(net)
    _cast(network, dtype)
    return InferenceNetwork(network.to(device).to(memory_format=memory_format), dtype, device, memory_format)


def _cast(network: FoldedNetwork, dtype: torch.dtype) -> None:
    """To `dtype`; neurons and classifier to one with room for sums."""
    precise = {id(m) for part in network.modules() if isinstance(part, FoldedNeuron) for m in part.modules()}
    precise |= {id(m) for m in network.head.modules()}
    for module in network.modules():
        if next(module.children(), None) is None or isinstance(module, FoldedNeuron):
            module.to(state_dtype(dtype) if id(module) in precise else dtype)


class InferenceNetwork:
    """What `prepare_for_inference` makes. Each call starts at t = 0, and leaves no state behind.

    `network` is the folded network itself, a module with the module names of the original: it keeps state from
    call to call, and hooks on it see every layer.
    """

    def __init__(
        self, network: FoldedNetwork, dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
    ) -> None:
        self.network, self.dtype, self.device, self.memory_format = network, dtype, device, memory_format

    @torch.inference_mode()
    def __call__(self, x_seq: Tensor) -> Tensor:
        """`[T, N, C, H, W] -> [T, N, classes]`: the logits of the network, after each step.

        Logits are float32 (float64 of a float64 network). A static image, `x.expand(T, *x.shape)`, passes the
        stem once.

        Raises:
            ValueError: if the input has another shape.
        """
        return self._run(self._prepared_input(x_seq), final=False)

    @torch.inference_mode()
    def final(self, x_seq: Tensor) -> Tensor:
        """`[T, N, C, H, W] -> [N, classes]`: the readout of all T steps, without those before.

        Of a converted network, the logits after the last step; of one with a readout of each step, their mean.
        It is faster: the last neurons' outputs are summed up as they come, then pooled and classified once.
        """
        return self._run(self._prepared_input(x_seq), final=True)

    def _run(self, x_seq: Tensor, *, final: bool) -> Tensor:
        network, pieces = self.network, x_seq.split(STEPS_AT_ONCE)
        reset_net(network)
        try:
            if not final:
                return torch.cat([network(piece) for piece in pieces])
            if not network.totals_suffice:
                return torch.cat([network(piece) for piece in pieces]).mean(0)
            total = network.run(pieces[0], output="sum")
            for piece in pieces[1:]:
                total = total + network.run(piece, output="sum")
            return network.classify_total(total, len(x_seq))
        finally:
            reset_net(network)

    def _prepared_input(self, x_seq: Tensor) -> Tensor:
        """On the device, in dtype and memory format; a static image stays one image."""
        if x_seq.ndim != 5:
            raise ValueError(f"the network needs an input of shape [T, N, C, H, W], got {list(x_seq.shape)}")
        static = x_seq.stride(0) == 0
        images = (x_seq[:1] if static else x_seq).flatten(0, 1).to(self.device, self.dtype, non_blocking=True)
        images = images.contiguous(memory_format=self.memory_format)
        return images.unflatten(0, (-1, x_seq.shape[1])).expand(x_seq.shape)

    def __repr__(self) -> str:
        return f"InferenceNetwork({self.dtype}, {self.device}, {self.memory_format})"
