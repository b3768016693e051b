"""The multi-step neuron: every equation that fires, over all T steps at once."""

from snnzoo.ops.backends import use_backend
from snnzoo.ops.depthwise import depthwise_neurons
from snnzoo.ops.dispatch import multi_step_neuron
from snnzoo.ops.pointwise import pointwise_neurons
from snnzoo.ops.spec import NeuronOutput, count_events, state_dtype

__all__ = [
    "NeuronOutput",
    "count_events",
    "depthwise_neurons",
    "multi_step_neuron",
    "pointwise_neurons",
    "state_dtype",
    "use_backend",
]
