"""The multi-step neuron: every equation that fires, over all T steps at once."""

from snnzoo.ops.reference import channel_view, delta, differential, integrate_and_fire, signed

__all__ = ["channel_view", "delta", "differential", "integrate_and_fire", "signed"]
