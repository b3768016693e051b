"""Figures of evaluations, drawn with matplotlib: for `--plot`, and as SVG for the report.

Colours are roles (ink, grid, a series ...). In a picture file they are those of `LIGHT`; in SVG they become CSS
variables of the same names, so that a page shows the same drawing light or dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
import matplotlib.ticker
from matplotlib.figure import Figure

from snnzoo.checkpoints.output import atomic_output
from snnzoo.errors import printable
from snnzoo.evaluation.results import Evaluation

LIGHT = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "grid": "#d8dee4",
    "paper": "#ffffff",
    "series1": "#0969da",
    "series2": "#c2410c",
    "series3": "#15803d",
    "series4": "#9333ea",
    "series5": "#b45309",
    "series6": "#0e7490",
}
DARK = {
    "ink": "#e6edf3",
    "muted": "#9198a1",
    "grid": "#3d444d",
    "paper": "#0d1117",
    "series1": "#58a6ff",
    "series2": "#ff9b6b",
    "series3": "#4ade80",
    "series4": "#c297ff",
    "series5": "#f0b45b",
    "series6": "#56d4dd",
}
# in SVG a role is written as a colour that nothing else has, and then replaced
_CODES = {role: f"#0102{i:02x}" for i, role in enumerate(LIGHT, start=0x10)}

SERIES = 6
NAMED_CLASSES = 25  # a confusion matrix of more has no names at its sides
DRAWN_CLASSES = 100
NUMBERED_CLASSES = 12

_BELOW: dict[str, Any] = {"xytext": (4, -12), "textcoords": "offset points", "ha": "left", "size": 8}

Roles = dict[str, str]


@dataclass
class Measured:
    """One evaluation, with what a reader of a figure needs to know.

    `label` is short; `coding` and `spikes` say what an event is ("rate", "binary spikes"); `classes` names the
    network's classes; `facts` are the settings and the provenance, by heading.
    """

    label: str
    evaluation: Evaluation
    coding: str
    spikes: str
    classes: list[str] | None
    facts: dict[str, dict[str, str]]

    def __post_init__(self) -> None:
        self.label = printable(self.label)  # names of files and folders may hold anything
        self.classes = self.classes and [printable(name) for name in self.classes]


@contextmanager
def _style(roles: Roles) -> Iterator[None]:
    settings: dict[str, Any] = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "svg.fonttype": "path",
        "text.parse_math": False,
        "legend.frameon": False,
        "legend.labelcolor": roles["ink"],
        "grid.color": roles["grid"],
        "axes.edgecolor": roles["muted"],
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), roles["ink"]),
        **dict.fromkeys(("xtick.color", "ytick.color"), roles["muted"]),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), roles["ink"]),
    }
    with matplotlib.rc_context(cast(Any, settings)):
        yield


def as_svg(draw: Callable[[Roles], Figure]) -> str:
    """An `<svg>` element whose colours are CSS variables named as the roles."""
    with _style(_CODES):
        buffer = io.StringIO()
        draw(_CODES).savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for role, code in _CODES.items():
        svg = svg.replace(code, f"var(--{role})")
    # without a size of its own, it fills the page's width
    head, tail = svg.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + tail


def write_plot(measured: Sequence[Measured], path: Path, *, replace: bool = True) -> None:
    """Write one picture: accuracy against T and energy, and of a single network its layers and confusions.

    Raises:
        SnnzooError: if the file cannot be written.
    """
    with _style(LIGHT):
        figure = _overview(measured, LIGHT)
        with atomic_output(path, replace=replace) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160, bbox_inches="tight", facecolor="white")


def _overview(measured: Sequence[Measured], roles: Roles) -> Figure:
    if len(measured) > 1:
        return accuracy(measured, roles)
    (one,) = measured
    layers = len(one.evaluation.layers)
    height = max(4.2, 0.17 * layers + 1.2)
    figure = Figure(figsize=(11, 3.4 + height), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.4, height))
    top, bottom = parts
    _draw_accuracy(top.subplots(1, 2), measured, roles)
    if 0 < one.evaluation.classes <= DRAWN_CLASSES:
        left, right = bottom.subfigures(1, 2, width_ratios=(6, 5))
        _draw_confusion(right.subplots(), one, roles)
    else:
        left = bottom
    _draw_layers(left, one, roles)
    return figure


def accuracy(measured: Sequence[Measured], roles: Roles) -> Figure:
    """Top-1 against T and against energy, a line a network, dashed lines and stars for the ANNs."""
    figure = Figure(figsize=(9.5, 3.5 + (0.18 * len(measured) if len(measured) > 1 else 0)), layout="constrained")
    _draw_accuracy(figure.subplots(1, 2), measured, roles)
    return figure


def layers(one: Measured, roles: Roles) -> Figure:
    """Event rates, layers by time steps, and the conversion error of each layer."""
    figure = Figure(figsize=(9.5, max(2.6, 0.17 * len(one.evaluation.layers) + 1.2)), layout="constrained")
    _draw_layers(figure, one, roles)
    return figure


def early_exit(one: Measured, roles: Roles) -> Figure:
    """Top-1 against mean steps, of all thresholds, of the rule and of fixed T; and how many images took how many."""
    row = one.evaluation.exit
    assert row is not None
    figure = Figure(figsize=(9.5, 3.5), layout="constrained")
    curve, bars = figure.subplots(1, 2)
    fixed = one.evaluation.results
    points = ([result.time_steps for result in fixed], [100 * result.top1 for result in fixed])
    curve.plot(*points, "o", color=roles["series2"], markersize=5, label="fixed T")
    along = ([steps for steps, _ in row.curve], [100 * top1 for _, top1 in row.curve])
    curve.plot(*along, color=roles["series1"], linewidth=1.8, label="one threshold")
    curve.plot(row.mean_steps, 100 * row.top1, "*", color=roles["ink"], markersize=11, zorder=3, label="the rule")
    curve.set(title="Accuracy for steps", xlabel="mean time steps of an image", ylabel="top-1 %")
    curve.legend(loc="lower right")
    shares = [100 * count / sum(row.steps) for count in row.steps]
    bars.bar(range(1, 1 + len(shares)), shares, color=roles["series1"])
    bars.set(title="When images leave", xlabel="after time step", ylabel="% of the images")
    bars.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    for ax in (curve, bars):
        ax.grid(True, linewidth=0.6)
        ax.set_axisbelow(True)
    return figure


class _Plain(matplotlib.ticker.LogFormatter):
    """Numbers along a logarithmic axis as plain text: mathematical type is not drawn in SVG."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _plain_logarithm(ax: Any) -> None:
    ax.xaxis.set_major_formatter(_Plain())
    ax.xaxis.set_minor_formatter(_Plain(labelOnlyBase=False, minor_thresholds=(1, 0.5)))


def energy(measured: Sequence[Measured], roles: Roles) -> Figure:
    """The network's energy over its ANN's by each model; and of each layer, marked where events do not pay."""
    layers = max(len(one.evaluation.energy[0].layers) for one in measured)
    figure = Figure(figsize=(9.5, max(3.2, 0.17 * layers + 1.4)), layout="constrained")
    by_model, by_layer = figure.subplots(1, 2, width_ratios=(2, 3))
    models = [row.model for row in measured[0].evaluation.energy]
    width = 0.8 / len(measured)
    for i, one in enumerate(measured):
        places = [place + (i - (len(measured) - 1) / 2) * width for place in range(len(models))]
        ratios = [row.ratio for row in one.evaluation.energy]
        bars = by_model.bar(places, ratios, width * 0.9, color=roles[f"series{i % SERIES + 1}"], label=one.label)
        if len(measured) == 1:
            by_model.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], color=roles["ink"])
    by_model.set_xticks(range(len(models)), models)
    by_model.set(title="Energy over that of the ANN", ylabel="ratio")
    if len(measured) > 1:
        by_model.legend(loc="upper left", bbox_to_anchor=(0, -0.1))
    for i, row in enumerate(measured[0].evaluation.energy):
        ratios = [layer.ratio for layer in row.layers]
        color = roles[f"series{i % SERIES + 1}"]
        by_layer.plot(ratios, range(len(ratios)), color=color, marker=".", label=row.model)
        above = [(layer.ratio, place) for place, layer in enumerate(row.layers) if not layer.pays]
        if above:
            by_layer.plot(*zip(*above, strict=True), "x", color=color, markersize=7)
    verdicts = measured[0].evaluation.energy[0].layers
    skip = max(1, -(-len(verdicts) // 60))
    by_layer.set_yticks(range(0, len(verdicts), skip), [layer.layer for layer in verdicts[::skip]], fontsize=7)
    which = f" of {measured[0].label}" if len(measured) > 1 else ""
    by_layer.set(title=f"Layers{which} (x: above break-even)", xlabel="ratio", xscale="log")
    _plain_logarithm(by_layer)
    by_layer.invert_yaxis()
    by_layer.legend(loc="upper left", bbox_to_anchor=(1, 1))
    by_model.axhline(1, color=roles["ink"], linestyle="--", linewidth=1.2)
    by_layer.axvline(1, color=roles["ink"], linestyle="--", linewidth=1.2)
    for ax in (by_model, by_layer):
        ax.grid(True, linewidth=0.6)
        ax.set_axisbelow(True)
    return figure


def confusion(one: Measured, roles: Roles) -> Figure:
    """What images of each class were taken for."""
    figure = Figure(figsize=(6.5, 5.6), layout="constrained")
    _draw_confusion(figure.subplots(), one, roles)
    return figure


def _draw_accuracy(axes: Any, measured: Sequence[Measured], roles: Roles) -> None:
    by_time, by_energy = axes
    steps = sorted({row.time_steps for one in measured for row in one.evaluation.results})
    for i, one in enumerate(measured):
        color, rows, ann = roles[f"series{i % SERIES + 1}"], one.evaluation.results, one.evaluation.ann
        top1s = [100 * row.top1 for row in rows]
        line = {"color": color, "marker": "o", "markersize": 4.5, "linewidth": 1.8}
        label = f"{one.label}: {one.coding}" if len(measured) > 1 else "spiking network"
        by_time.plot([row.time_steps for row in rows], top1s, label=label, **line)
        by_energy.plot([row.energy_uj for row in rows], top1s, **line)
        if ann:
            by_energy.plot(ann["energy_uj"], 100 * ann["top1"], "*", color=roles["ink"], markersize=11, zorder=3)
        if len(measured) == 1:
            for row, percent in zip(rows, top1s, strict=True):
                by_time.annotate(f"{percent:.2f}", (row.time_steps, percent), **_BELOW)
                by_energy.annotate(f"T={row.time_steps}", (row.energy_uj, percent), **_BELOW)
    anns = [one.evaluation.ann for one in measured if one.evaluation.ann]
    for top1 in dict.fromkeys(round(100 * ann["top1"], 6) for ann in anns):
        name = f"ANN, {top1:.2f} %"
        by_time.axhline(top1, color=roles["ink"], linestyle="--", linewidth=1.2, label=name)
    by_time.set(title="Accuracy after T steps", xlabel="time steps T", ylabel="top-1 %", xscale="log")
    by_time.set_xticks(steps, [str(t) for t in steps])
    by_time.minorticks_off()
    by_energy.set(
        title=f"Accuracy for energy (a point: one T{'; star: ANN' if anns else ''})",
        xlabel="energy per image, µJ (45 nm estimate)",
        xscale="log",
    )
    _plain_logarithm(by_energy)
    for ax in axes:
        ax.grid(True, linewidth=0.6)
        ax.margins(x=0.14, y=0.16)
    if len(measured) > 1:
        by_time.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=1)
    else:
        by_time.legend(loc="lower right", bbox_to_anchor=(1, 0.08))


def _draw_layers(figure: Any, one: Measured, roles: Roles) -> None:
    sites, results = one.evaluation.layers, one.evaluation.results
    with_errors = bool(sites) and all(layer.errors for layer in sites)
    axes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2)) if with_errors else [figure.subplots()]
    rates = [layer.event_rates for layer in sites]
    time_steps = len(rates[0])
    image = axes[0].imshow(rates, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes[0], pad=0.02)
    bar.outline.set_visible(False)
    axes[0].set(title="Events per neuron", xlabel=f"time step ({one.spikes})")
    every = max(1, -(-time_steps // 16))
    axes[0].set_xticks(range(0, time_steps, every), [str(t + 1) for t in range(0, time_steps, every)])
    skip = max(1, -(-len(sites) // 60))
    axes[0].set_yticks(range(0, len(sites), skip), [layer.site for layer in sites[::skip]], fontsize=7)
    axes[0].tick_params(length=0)
    axes[0].spines[:].set_visible(False)
    if not with_errors:
        return
    shades = [0.3 + 0.7 * (i + 1) / len(results) for i in range(len(results))]
    for i, row in enumerate(results):
        errors = [max(layer.errors[i], 1e-12) for layer in sites]
        places = range(len(sites))
        axes[1].plot(errors, places, color=roles["series1"], alpha=shades[i], marker=".", label=f"T={row.time_steps}")
    axes[1].set(title="Conversion error", xlabel="squared, % of the ANN's", xscale="log")
    axes[1].xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes[1].xaxis.set_major_locator(matplotlib.ticker.LogLocator(numticks=4))
    axes[1].minorticks_off()
    axes[1].grid(True, axis="x", linewidth=0.6)
    axes[1].tick_params(axis="y", length=0)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), title="after", title_fontsize=8, fontsize=8)


def _draw_confusion(ax: Any, one: Measured, roles: Roles) -> None:
    size = one.evaluation.classes
    counts = [[one.evaluation.confusion.get((i, j), 0) for j in range(size)] for i in range(size)]
    shares = [[100 * count / max(sum(row), 1) for count in row] for row in counts]
    image = ax.imshow(shares, cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, shrink=0.85, label="% of the class")
    bar.outline.set_visible(False)
    ax.set(title=f"Confusion at T={one.evaluation.results[-1].time_steps}", xlabel="predicted", ylabel="class")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if size <= NAMED_CLASSES:
        names = [_shortened(name) for name in one.classes or map(str, range(size))]
        ax.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(size), names)
    if size <= NUMBERED_CLASSES:
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                if share >= 0.5:
                    color = "#111111" if share > 55 else "#f5f5f5"
                    ax.text(j, i, f"{share:.0f}", ha="center", va="center", color=color, fontsize=8)


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
