"""What an evaluation gives: plain values, for tables, JSON and reports. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from snnzoo.energy import LayerVerdict


@dataclass
class TimeStepResult:
    """One row: the network read out after `time_steps`. Rates are fractions of 1; `agreement` is None without an ANN.

    `synaptic_operations` and `energy_uj` (microjoules, model "arithmetic" of `snnzoo.energy`) are of one image;
    `energy_ratios` the network's energy over the ANN's by each model, nothing without an ANN.
    """

    time_steps: int
    top1: float
    top5: float
    agreement: float | None
    images_per_second: float
    events_per_neuron_step: float
    synaptic_operations: float
    energy_uj: float
    energy_ratios: dict[str, float] = field(default_factory=dict)


@dataclass
class EnergyResult:
    """One model of energy (`snnzoo.energy`), of one image after the last T.

    Args:
        model: its name; `contains` and `source` say what it counts, and whose constants it has.
        ann_uj, snn_uj: microjoules.
        ratio: the second over the first.
        layers: a verdict for each layer that events reach.
    """

    model: str
    contains: str
    source: str
    ann_uj: float
    snn_uj: float
    ratio: float
    layers: list[LayerVerdict]

    @property
    def above_break_even(self) -> int:
        """How many layers events do not pay in."""
        return sum(not layer.pays for layer in self.layers)


@dataclass
class ExitResult:
    """The row of early exit: each image read out when it was sure, and what that took.

    Fields that a `TimeStepResult` has are as there, of what was really run. `steps` counts the images that left after
    1, 2 ... T steps, whose mean is `mean_steps`; `curve` are the mean steps and top-1 for one threshold after another,
    the same at all steps.
    """

    mean_steps: float
    top1: float
    top5: float
    agreement: float | None
    images_per_second: float
    events_per_neuron_step: float
    synaptic_operations: float
    energy_uj: float
    steps: list[int]
    curve: list[tuple[float, float]]


@dataclass
class LayerResult:
    """One neuron site.

    `event_rates` are the share of neurons with an event, at each t; `errors` the squared error of the
    decoded output over the mean square of the ANN's activation after each T of the results, on a few
    images; empty where it was not measured.
    """

    site: str
    neurons: int
    event_rates: list[float]
    errors: list[float]


@dataclass
class Evaluation:
    """What `evaluate` measured.

    `ann` holds the ANN's "top1", "top5", "multiply_accumulates" and "energy_uj" of one image, and nothing
    without an ANN. `confusion`
    counts images by (class, what the spiking network took them for after the last T), where there are any.
    `exit` is the row of early exit, where a rule was given.
    `left_out` names the images that could not be read, and says why. `fit` tells how far the statistics of the ANN's BN
    are from what the images give (`snnzoo.fit.statistics`), None where there is no ANN or no BN. `energy` are the
    models of energy, where there is an ANN; `neurobench` the metrics of NeuroBench, by its names, where they were asked
    for.
    """

    images: int
    ann: dict[str, float]
    results: list[TimeStepResult]
    layers: list[LayerResult] = field(default_factory=list)
    classes: int = 0
    confusion: dict[tuple[int, int], int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    exit: ExitResult | None = None
    fit: dict[str, Any] | None = None
    energy: list[EnergyResult] = field(default_factory=list)
    neurobench: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; the confusion matrix is left out, and what there is none of."""
        values = asdict(self)
        del values["classes"], values["confusion"]
        for name in ("exit", "neurobench"):
            if values[name] is None:
                del values[name]
        return values


def powers_of_two(last: int) -> list[int]:
    """Return 1, 2, 4 ... up to and with `last`: the time steps to read out after, where none are asked for."""
    return sorted({2**k for k in range(last.bit_length())} | {last})
