"""Who reads a NIR graph, and what each reader takes for granted: one row a target. Nothing here imports torch.

Found in the readers' sources, and pinned by tests where they install: Sinabs 3.1.3, snnTorch 1.0.0, Norse 1.1.0,
SpikingJelly 2.0.0, Spyx 1.0.0 (NIR 1.0.8, nirtorch 2.6). py-spinnaker2 is not on PyPI; its row is from its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snnzoo.errors import UsageError, suggestion

if TYPE_CHECKING:
    from snnzoo.codings import Coding


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        name: on the command line.
        title: of the library.
        read: Python that reads `graph`, for the file's metadata.
        assumes: what its reader takes for granted, in words.
        neuron: what its IF does, as settings of the coding "plain"; None for NIR's own equations.
        unit_r: whether IF's `r` is written as 1, which the reader wants or does not look at; otherwise 1 / dt.
        if_as_lif: whether an IF is written as a LIF without a leak, since the reader's IF is of no use.
        leaks: whether it takes LIF neurons that reset to zero.
        input_decays: whether it takes LIF neurons with r = 1 alone, whose input decays.
        pool: "avg" or "sum", the kind of pool that it has.
        flattens: whether its Flatten leaves the batch, and the order of channels, as they are; otherwise a classifier
            is written as a convolution over the whole map.
        dilates: whether it looks at a convolution's dilation.
        sums: whether several connections into one node add up in the same step.
        spikes_alone: whether spikes are all that goes in and comes out: the first neurons and what is behind the last
            are the host's.
    """

    name: str
    title: str
    read: str
    assumes: str
    neuron: Mapping[str, Any] | None = None
    unit_r: bool = False
    if_as_lif: bool = False
    leaks: bool = False
    input_decays: bool = False
    pool: str = "avg"
    flattens: bool = True
    dilates: bool = True
    sums: bool = True
    spikes_alone: bool = False

    @property
    def is_generic(self) -> bool:
        return self.neuron is None

    def coding(self) -> Coding:
        """Return the coding whose neurons the target has, for networks that are to be converted for it.

        Raises:
            UsageError: for the generic target, which takes any IF.
        """
        from snnzoo.codings import Plain, Rate

        return Rate() if self.neuron is None else Plain(**self.neuron)


GENERIC = Target(
    "generic",
    "any reader of all of NIR's nodes",
    "nirtorch.nir_to_torch(graph, node_map)",
    "NIR's equations with the time step 1e-4 s: r = 1 / dt of IF, tau = steps * dt of LIF. Soft resets are an "
    "integrator, a threshold and a connection back that takes one step",
    leaks=True,
)

_ROWS = (
    GENERIC,
    Target(
        "sinabs",
        "Sinabs",
        "sinabs.from_nir(graph, batch_size=1)",
        "IF ignores r, resets by subtraction, may send several spikes in one step, and clips v at -theta. No average "
        "pools, and what joins a shortcut comes one step late",
        neuron={"most": 7, "clipped": True},
        unit_r=True,
        pool="sum",
        sums=False,
    ),
    Target(
        "snntorch",
        "snnTorch",
        "snntorch.import_nir.import_from_nir(graph)",
        "IF is read with a leak of a tenth a step, so it is written as a LIF without one; it resets to zero, one "
        "threshold a layer. Flatten takes the batch, too",
        neuron={"to_zero": True},
        if_as_lif=True,
        leaks=True,
        flattens=False,
    ),
    Target(
        "norse",
        "Norse",
        "norse.torch.from_nir(graph, dt=1e-4)",
        "IF ignores r and resets to zero; a LIF's input decays. Flatten takes the batch, too, there are no average "
        "pools, and what joins a shortcut comes one step late",
        neuron={"to_zero": True},
        unit_r=True,
        leaks=True,
        input_decays=True,
        pool="sum",
        flattens=False,
        sums=False,
    ),
    Target(
        "spikingjelly",
        "SpikingJelly",
        "spikingjelly.activation_based.nir_exchange.import_from_nir(graph)",
        "IF wants r = 1 / dt and one threshold a layer, and resets to a value; no I, Threshold or Scale, "
        "so no soft resets",
        neuron={"to_zero": True},
        leaks=True,
    ),
    Target(
        "spyx",
        "Spyx",
        "spyx.nir.from_nir(graph, images, dt=1)",
        "IF ignores r, resets by subtraction, and fires one step late. A chain of layers alone: no shortcuts, no "
        "average pools, no dilation; channels come last, so that Flatten changes their order",
        neuron={"late": True},
        unit_r=True,
        pool="sum",
        flattens=False,
        dilates=False,
        sums=False,
    ),
    Target(
        "spinnaker2",
        "py-spinnaker2",
        "from_nir(graph, ConversionConfig(dt=1e-4, scale_weights=True))",
        "Spikes go in and come out; the reset, by subtraction unless told otherwise, is ConversionConfig's, thresholds "
        "are divided by r, weights become 8-bit integers, and lead from neurons to neurons: no shortcuts",
        neuron={},
        unit_r=True,
        pool="sum",
        flattens=False,
        dilates=False,
        sums=False,
        spikes_alone=True,
    ),
)

TARGETS: dict[str, Target] = {row.name: row for row in _ROWS}


def target_named(name: str) -> Target:
    """Return the row of a target.

    Raises:
        UsageError: for a name that there is not.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}: {suggestion(name, TARGETS, 'known: ' + ', '.join(TARGETS))}")
    return TARGETS[name]
