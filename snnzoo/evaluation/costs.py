"""What was counted, as energy: the models of `snnzoo.energy` on an `Activity`."""

from __future__ import annotations

from snnzoo.codings import Coding
from snnzoo.energy import MODELS, NetworkFacts
from snnzoo.evaluation.activity import Activity
from snnzoo.evaluation.results import EnergyResult

ARITHMETIC = MODELS["arithmetic"]


def facts(coding: Coding | None, time_steps: int) -> NetworkFacts:
    """Return what models need to know of a network of this coding, None for one that was trained (binary spikes)."""
    if coding is None:
        return NetworkFacts(time_steps)
    return NetworkFacts(time_steps, coding.event_bits, coding.activation_bits(time_steps), len(coding.state))


def ann_energy(activity: Activity) -> float:
    """Return the microjoules of one image in the ANN, arithmetic alone."""
    return ARITHMETIC.totals(activity.layer_counts(1), NetworkFacts(1))[0]


def snn_energy(activity: Activity, network: NetworkFacts) -> float:
    """Return the microjoules of one image in the spiking network, after `network.time_steps`, arithmetic alone."""
    return ARITHMETIC.totals(activity.layer_counts(int(network.time_steps)), network)[1]


def energy_ratios(activity: Activity, network: NetworkFacts) -> dict[str, float]:
    """Return the spiking network's energy over the ANN's, by each model."""
    return {result.model: result.ratio for result in energy_results(activity, network)}


def energy_results(activity: Activity, network: NetworkFacts) -> list[EnergyResult]:
    """Return the energy of one image by each model, and a verdict a layer."""
    layers = activity.layer_counts(int(network.time_steps))
    results = []
    for model in MODELS.values():
        ann, snn = model.totals(layers, network)
        verdicts = model.verdicts(layers, network)
        results.append(EnergyResult(model.name, model.contains, model.source, ann, snn, snn / ann, verdicts))
    return results
