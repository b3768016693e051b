"""Whether a network may be taken for what it is given as: its weights alone, and on its images.

The limits are chosen on trained networks, right and wrong ones: see docs/fit.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from snnzoo.errors import SnnzooError, first_few
from snnzoo.fit.statistics import Fit, measure_fit, normalisations
from snnzoo.graph.network import GraphModule

IMAGES = 64  # that are run
DOUBTFUL = 0.08  # nats, on average over layers: beyond, a line is said
MISFIT = 3.0  # nats: beyond, nothing goes on
FORCE = "--force-fit (in Python check_fit=False) goes on all the same"


def check_weights(ann: GraphModule) -> None:
    """Refuse weights that no network can have been trained to.

    Raises:
        SnnzooError: naming the tensors, if some are NaN or infinite, or variances negative.
    """
    graph, tensors = ann.graph, ann.tensors()
    used = list(dict.fromkeys(key for node in graph for key in node.parameters.values()))
    bad = [key for key in used if tensors[key].is_floating_point() and not bool(tensors[key].isfinite().all())]
    if bad:
        raise SnnzooError(f"{first_few(bad)} hold NaN or infinite values: the weights are damaged")
    negative = [
        node.parameters["running_var"]
        for node in normalisations(graph)
        if bool((tensors[node.parameters["running_var"]] < 0).any())
    ]
    if negative:
        raise SnnzooError(f"{first_few(negative)} hold negative variances: the weights are damaged")


def is_trained(ann: GraphModule) -> bool:
    """Return False if every BN has mean 0 and variance 1 still, as one that no batch ever reached; True without BN."""
    found, tensors = normalisations(ann.graph), ann.tensors()
    return not found or any(
        bool((tensors[node.parameters["running_mean"]] != 0).any())
        or bool((tensors[node.parameters["running_var"]] != 1).any())
        for node in found
    )


def check_data_free(ann: GraphModule) -> None:
    """Refuse what only images can tell, and damaged weights.

    Raises:
        SnnzooError: if no batch ever reached the BN, or layers were known by their order alone.
    """
    check_weights(ann)
    if ann.by_position:
        raise SnnzooError(
            f"{ann.model_name}: the checkpoint has no names that tell its layers, only their order and shapes: whether "
            "it is this network, calibration images tell (--calib-data DIR)"
        )
    if not is_trained(ann):
        raise SnnzooError(f"{UNTRAINED}, so that no thresholds can be guessed from it: give calibration images")


UNTRAINED = "its batch normalisation was never trained (mean 0 and variance 1 everywhere)"


def check_fit(
    ann: GraphModule,
    images: Tensor,
    *,
    force: bool = False,
    advice: Callable[[], str] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Fit | None:
    """Return how well a network's BN fits images, having said so where it does not.

    Args:
        images: preprocessed, `[N, C, H, W]`; `IMAGES` of them are run, from all over.
        force: only say what would be refused otherwise.
        advice: gives what would fit, for the end of a line that is said.
        notify: called with a line on what does not fit; if None, it is a Python warning.

    Raises:
        SnnzooError: for damaged weights, a gross misfit, and BN that was never trained; or any misfit, where nothing
            but the order of layers tells the network.
    """
    notify = notify or _warn
    check_weights(ann)
    images = images[spread(len(images))]
    fit, divergence = None, math.inf
    if is_trained(ann):
        fit = measure_fit(ann.graph, ann.tensors(), images)
        line = None if fit is None else misfit(fit)
        divergence = 0.0 if fit is None else fit.mean
    else:
        line = f"{UNTRAINED}: are these the weights meant?"
    if line is None:
        return fit
    better = advice() if advice is not None else ""
    line += better and f"; {better}"
    gross = beyond(MISFIT, divergence, len(images))
    if ann.by_position:
        line = f"its layers are known by their order and shapes alone, and {line}"
    if (gross or ann.by_position) and not force:
        raise SnnzooError(f"{line}; {FORCE}")
    notify(line)
    return fit


def spread(images: int) -> list[int]:
    """Return the places of `IMAGES` images at most, from all over, since neighbours may be of one class."""
    count = min(IMAGES, images)
    return [place * images // count for place in range(count)]


def beyond(limit: float, divergence: float, images: int) -> bool:
    """Return whether a divergence that was measured on so many images is beyond a limit, and beyond chance."""
    return divergence > limit + by_chance(images)


def by_chance(images: int) -> float:
    """Return the divergence to expect of a network that fits, in nats, where each image is one sample of a channel.

    The mean of `KL(N(sample's mean, variance) || N(0, 1))` over samples of a standard normal variable. Of one image, no
    variance but BN's eps is left.
    """
    if images < 2:
        return -0.5 * math.log(1e-5)
    return 0.5 * (math.log(images / 2) - float(torch.digamma(torch.tensor((images - 1) / 2))))


def misfit(fit: Fit) -> str | None:
    """Return a line on what does not fit and likely causes; None if all is well."""
    if not beyond(DOUBTFUL, fit.mean, fit.images):
        return None
    limit = DOUBTFUL + by_chance(fit.images)
    first = next(iter(fit.layers))
    if fit.layers[first] > limit:
        causes = "other preprocessing (normalisation, size, order of channels)"
    else:
        causes = (
            f"from {next(path for path, value in fit.layers.items() if value > limit)} on: another network with the "
            "same keys (strides, shortcuts, activations)"
        )
    return (
        f"the network may not be meant for these images: what reaches its batch normalisation is {fit.mean:.2g} nats "
        f"from what it was trained on, on average over {len(fit.layers)} layers ({fit.layers[fit.worst]:.2g} in "
        f"{fit.worst}; up to {limit:.2g} is usual on {fit.images} images); likely {causes}, images "
        "of another kind, or fine-tuning with frozen BN"
    )


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=4)
