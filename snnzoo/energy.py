"""Models of energy: what an image costs in a spiking network, and in the ANN that it stands for. A model is a row.

Costs are those of a 45 nm chip at 0.9 V, in picojoules: M. Horowitz, "Computing's energy problem (and what we can do
about it)", ISSCC 2014, figure 1.1.9. They compare operations and movements of data, not chips: what no model contains
is in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PJ_PER_ACCUMULATE = 0.9  # 32-bit floating point
PJ_PER_MULTIPLY_ACCUMULATE = 4.6  # 3.7 of them for the multiplication
PJ_PER_INTEGER_ADDITION = 0.1  # 32 bits
PJ_PER_BYTE_PRODUCT = 0.2  # of 8 bits by 8 bits; a multiplier's area, and so its energy, is taken as bits by bits
WEIGHT_BITS = 8  # of the integer models
MEMORIES = ((8 << 10, 10.0), (32 << 10, 20.0), (1 << 20, 100.0))  # bytes, and pJ an access of 8 bytes
PJ_PER_DRAM_ACCESS = 1300.0  # the lower end of 1.3 to 2.6 nJ
BYTES_OF_ACCESS, BYTES_OF_WORD = 8, 4


@dataclass(frozen=True)
class LayerCounts:
    """A layer with weights, for one image.

    Args:
        name: of the layer.
        dense: multiply-accumulates if every input counts.
        analog: whether both networks compute it so, once: it sees the image, or what is read out.
        weights, inputs, outputs: how many there are.
        operations: synaptic operations in all steps; 0 if analog.
        received: events that reach it in all steps; 0 if analog.
        fires: whether neurons are behind it, whose states its outputs change.
    """

    name: str
    dense: int
    analog: bool
    weights: int
    inputs: int
    outputs: int
    operations: float
    received: float
    fires: bool = True


@dataclass(frozen=True)
class NetworkFacts:
    """What the models need to know beside the counts.

    Args:
        time_steps: T of the counts.
        event_bits: of an event's size, `Coding.event_bits`.
        activation_bits: that all events of T steps resolve an activation to, `Coding.activation_bits`.
        states: words that a neuron keeps from step to step.
    """

    time_steps: float
    event_bits: int = 1
    activation_bits: int = 1
    states: int = 1


@dataclass(frozen=True)
class LayerEnergy:
    """Picojoules of one layer, for one image: in the ANN, and in the spiking network without and for its events."""

    ann: float
    fixed: float
    events: float

    @property
    def snn(self) -> float:
        return self.fixed + self.events


@dataclass(frozen=True)
class LayerVerdict:
    """Whether events pay in one layer.

    Args:
        layer: its name.
        event_rate: the share of its operations that a step makes.
        break_even: the rate at which both networks take the same; 0 if they never do.
        ratio: its energy over that in the ANN.
    """

    layer: str
    event_rate: float
    break_even: float
    ratio: float

    @property
    def pays(self) -> bool:
        return self.ratio < 1


@dataclass(frozen=True)
class EnergyModel:
    """One way to count: its name, what it contains, its source, and the energy of a layer."""

    name: str
    contains: str
    source: str
    layer: Callable[[LayerCounts, NetworkFacts], LayerEnergy]

    def totals(self, layers: Sequence[LayerCounts], facts: NetworkFacts) -> tuple[float, float]:
        """Return the microjoules of one image in the ANN, and in the spiking network."""
        found = [self.layer(layer, facts) for layer in layers]
        return sum(one.ann for one in found) * 1e-6, sum(one.snn for one in found) * 1e-6

    def verdicts(self, layers: Sequence[LayerCounts], facts: NetworkFacts) -> list[LayerVerdict]:
        """Return one for each layer that events reach."""
        found = []
        for layer in layers:
            if layer.analog or not layer.dense:
                continue
            energy = self.layer(layer, facts)
            rate = layer.operations / (layer.dense * facts.time_steps)
            saved = max(0.0, energy.ann - energy.fixed)
            break_even = rate * saved / energy.events if energy.events else float(saved > 0)
            found.append(LayerVerdict(layer.name, rate, break_even, energy.snn / energy.ann))
        return found


def _arithmetic(layer: LayerCounts, facts: NetworkFacts) -> LayerEnergy:
    """An ANN multiplies and accumulates; a synaptic operation accumulates, once for each bit of the event's size."""
    ann = layer.dense * PJ_PER_MULTIPLY_ACCUMULATE
    if layer.analog:
        return LayerEnergy(ann, ann, 0.0)
    return LayerEnergy(ann, 0.0, layer.operations * facts.event_bits * PJ_PER_ACCUMULATE)


def pj_per_byte(size: int) -> float:
    """Return what a byte costs to read or write in the smallest memory that holds `size` bytes."""
    access = next((cost for holds, cost in MEMORIES if size <= holds), PJ_PER_DRAM_ACCESS)
    return access / BYTES_OF_ACCESS


def _traffic(layer: LayerCounts, facts: NetworkFacts) -> LayerEnergy:
    """Arithmetic, and the least that must be moved where a layer is computed as a whole, in both networks alike.

    A weight is read once a pass, and used at all positions: once an image in the ANN, once a step in the spiking
    network. A value, or an event, is written once and read once by each layer that takes it. Sums are kept beside the
    adders until they are complete; then the ANN is done with them, while states are read and written at every step.
    """
    arithmetic = _arithmetic(layer, facts)
    weights, inputs, outputs = (count * BYTES_OF_WORD for count in (layer.weights, layer.inputs, layer.outputs))
    pass_over_weights = weights * pj_per_byte(weights)
    moved = pass_over_weights + 2 * inputs * pj_per_byte(inputs)
    states = outputs * facts.states
    kept = 2 * states * pj_per_byte(states) * facts.time_steps if layer.fires else 0.0
    if layer.analog:
        return LayerEnergy(arithmetic.ann + moved, arithmetic.fixed + moved + kept, 0.0)
    sent = 2 * layer.received * BYTES_OF_WORD * pj_per_byte(inputs)
    fixed = pass_over_weights * facts.time_steps + kept
    return LayerEnergy(arithmetic.ann + moved, fixed, arithmetic.events + sent)


def _bit_matched(layer: LayerCounts, facts: NetworkFacts) -> LayerEnergy:
    """The ANN with activations of as many bits as the events of all steps resolve, in integers; images have 8 bits."""
    bits = WEIGHT_BITS if layer.analog else facts.activation_bits
    ann = layer.dense * (PJ_PER_BYTE_PRODUCT * bits * WEIGHT_BITS / 64 + PJ_PER_INTEGER_ADDITION)
    if layer.analog:
        return LayerEnergy(ann, ann, 0.0)
    return LayerEnergy(ann, 0.0, layer.operations * facts.event_bits * PJ_PER_INTEGER_ADDITION)


_HOROWITZ = "Horowitz 2014"
MODELS = {
    model.name: model
    for model in (
        EnergyModel("arithmetic", "additions and multiplications, 32-bit floating point", _HOROWITZ, _arithmetic),
        EnergyModel(
            "traffic",
            "arithmetic, weights read, states read and written, events or activations sent",
            f"{_HOROWITZ}; what to count: Bhattacharjee et al., arXiv 2309.03388",
            _traffic,
        ),
        EnergyModel(
            "bit-matched",
            "integer arithmetic, beside the ANN quantised to the bits that events carry, weights 8 bits",
            f"{_HOROWITZ}; what to compare: Yan et al., arXiv 2409.08290",
            _bit_matched,
        ),
    )
}
