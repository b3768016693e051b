"""Training outside `torch.compile`: a backend's forward and backward pass as one node of autograd's graph.

The operator of `torch.library` does the same, but PyTorch takes long over an operator of so many arguments.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnzoo.codings import Coding
from snnzoo.ops.backends import Backend
from snnzoo.ops.spec import Arguments, Gradients, NeuronOutput


def run(backend: Backend, x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """Return what the backend does, differentiable; for codings of the IF family."""
    (v,) = arguments.state or (None,)
    tau = getattr(coding, "reciprocal_tau", None)
    tensors = (x_seq, arguments.residual, v, tau, arguments.v_threshold, arguments.bias)
    given = (tensor if isinstance(tensor, Tensor) else None for tensor in tensors)
    sequence, total, *state = _Neuron.apply(backend, coding, arguments, *given)
    return NeuronOutput(sequence, total, tuple(state))


class _Neuron(torch.autograd.Function):
    """Its backward pass computes the membrane anew: nothing but its inputs is kept."""

    @staticmethod
    def forward(
        ctx: Any, backend: Backend, coding: Coding, arguments: Arguments, x_seq: Tensor, *tensors: Tensor | None
    ) -> Any:
        result = backend.forward(x_seq, coding, dataclasses.replace(arguments, out=None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_seq, *tensors)
        ctx.call = backend, *_with(coding, arguments, (None,) * 5)  # its tensors are autograd's to keep
        return result.sequence, result.total, *result.state

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x_seq, *rest = ctx.saved_tensors
        residual, v, tau, *_ = rest
        backend, coding, arguments = ctx.call
        gradients = Gradients(*(*grads, None)[:3])
        grad_x, grad_v, grad_tau = backend.backward(gradients, x_seq, *_with(coding, arguments, rest))
        return (
            *(None,) * 3,
            grad_x,
            None if residual is None else grad_x.to(residual.dtype),
            None if v is None else grad_v.to(v.dtype),
            None if tau is None else grad_tau.to(tau.dtype),
            None,
            None,
        )


def _with(coding: Coding, arguments: Arguments, tensors: Any) -> tuple[Coding, Arguments]:
    """Return the call with these tensors in place of its own, or with None."""
    residual, v, tau, theta, bias = tensors
    if not isinstance(getattr(coding, "reciprocal_tau", 0.0), float):
        coding = dataclasses.replace(coding, reciprocal_tau=tau)  # type: ignore[call-arg]
    arguments = dataclasses.replace(
        arguments,
        residual=residual,
        state=None if v is None else (v,),
        v_threshold=arguments.v_threshold if isinstance(arguments.v_threshold, float) else theta,
        bias=arguments.bias if isinstance(arguments.bias, float) else bias,
        out=None,
    )
    return coding, arguments
