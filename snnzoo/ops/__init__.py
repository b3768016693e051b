"""The multi-step neuron: every equation that fires, over all T steps at once."""

from snnzoo.ops.backends import use_backend
from snnzoo.ops.dispatch import multi_step_neuron
from snnzoo.ops.spec import IF, LIF, Coding, Delta, Differential, NeuronOutput, Signed, state_dtype

__all__ = [
    "IF",
    "LIF",
    "Coding",
    "Delta",
    "Differential",
    "NeuronOutput",
    "Signed",
    "multi_step_neuron",
    "state_dtype",
    "use_backend",
]
