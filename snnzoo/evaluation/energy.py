"""The estimate of energy that the field uses: what the arithmetic costs in a 45 nm chip, at 0.9 V.

Figures: M. Horowitz, "Computing's energy problem", ISSCC 2014, 32-bit floating point: 3.7 pJ a multiplication and
0.9 pJ an addition. An ANN multiplies and accumulates; an event only accumulates. Memory, which costs more than
arithmetic, is left out: the estimate compares operations, not chips.
"""

from __future__ import annotations

from snnzoo.evaluation.activity import Activity

PJ_PER_ACCUMULATE = 0.9
PJ_PER_MULTIPLY_ACCUMULATE = 4.6


def ann_energy(activity: Activity) -> float:
    """Return the microjoules of one image in the ANN: every layer multiplies and accumulates, whatever its inputs."""
    return activity.dense_operations() * PJ_PER_MULTIPLY_ACCUMULATE * 1e-6


def snn_energy(activity: Activity, time_steps: int, event_bits: int = 1) -> float:
    """Return the microjoules of one image in the spiking network, in the first `time_steps`.

    The layers that see analog values multiply and accumulate once: the first one, since the image does not
    change, and the classifier. Each synaptic operation accumulates; that of a graded event once for each of
    its bits, as a multiplication by shifts and additions does.

    Args:
        event_bits: of an event's size (`Coding.event_bits`); 1 for binary and ternary spikes.
    """
    analog = activity.dense_operations(analog_only=True) * PJ_PER_MULTIPLY_ACCUMULATE
    return (analog + activity.synaptic_operations(time_steps) * event_bits * PJ_PER_ACCUMULATE) * 1e-6
