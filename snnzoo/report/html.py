"""An evaluation as one HTML file: figures, tables, settings and provenance. It loads nothing from anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape as escape_html
from pathlib import Path

from matplotlib.figure import Figure

from snnzoo._version import __version__
from snnzoo.checkpoints.output import atomic_output
from snnzoo.errors import printable
from snnzoo.evaluation.results import ExitResult, TimeStepResult
from snnzoo.report import figures
from snnzoo.report.figures import DARK, DRAWN_CLASSES, LIGHT, Measured, Roles, as_svg

CONFUSIONS = 10  # of the most frequent ones that are listed

STYLE = """
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 48px; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere }
h2 { font-size: 18px; margin: 36px 0 10px; overflow-wrap: anywhere }
h3 { font-size: 15px; margin: 24px 0 6px }
p { margin: 6px 0 } .note { color: var(--muted); font-size: 13px }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 }
.tile { flex: 1 1 130px; border: 1px solid var(--grid); border-radius: 8px; padding: 10px 14px }
.tile b { display: block; font-size: 22px; font-weight: 600; white-space: nowrap }
.tile span { color: var(--muted); font-size: 13px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap }
th { color: var(--muted); font-weight: 500; font-size: 13px; vertical-align: bottom }
th:first-child, td:first-child, .facts td { text-align: left }
.facts td { white-space: normal; overflow-wrap: anywhere; vertical-align: top }
.facts td:first-child { color: var(--muted); white-space: nowrap }
figure { margin: 14px 0 } figure svg { display: block; max-width: 100%%; height: auto }
figure.half svg { max-width: 640px; width: 100%% }
"""


def write_report(measured: Sequence[Measured], path: Path, title: str, command: str, *, replace: bool = True) -> None:
    """Write the report of one evaluation, or of several on the same images.

    Args:
        measured: in the order of the tables; at least one.
        title: heading.
        command: how it was made.
        replace: whether a file of that name may be replaced.

    Raises:
        SnnzooError: if the file cannot be written.
    """
    with atomic_output(path, replace=replace) as temporary:
        temporary.write_text(render(measured, title, command), encoding="utf-8")


def render(measured: Sequence[Measured], title: str, command: str) -> str:
    """The report as a string. Everything that comes out of files is escaped."""
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">snnzoo {__version__} &middot; {escape(command)}</p>']
    if len(measured) == 1:
        parts.append(_tiles(measured[0]))
    parts += [_figure(lambda roles: figures.accuracy(measured, roles), "Accuracy against time steps and energy")]
    parts += [_results(measured), _notes(measured), *_energy(measured)]
    for one in measured:
        if len(measured) > 1:
            parts.append(f"<h2>{escape(one.label)}: {escape(one.coding)}</h2>")
        parts += _details(one, "h2" if len(measured) == 1 else "h3")
    style = STYLE % {"light": _variables(LIGHT), "dark": _variables(DARK)}
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n"
        "</html>\n"
    )


def escape(text: str) -> str:
    """Text that shows as it is, with what nothing can show as numbers."""
    return escape_html(printable(text))


def _variables(roles: Roles) -> str:
    return " ".join(f"--{role}: {color};" for role, color in roles.items())


def _figure(draw: Callable[[Roles], Figure], label: str, kind: str = "") -> str:
    svg = as_svg(draw).replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return f'<figure class="{kind}">{svg}</figure>'


def _tiles(one: Measured) -> str:
    evaluation, last = one.evaluation, one.evaluation.results[-1]
    tiles = [(f"{100 * last.top1:.2f} %", f"SNN top-1, T={last.time_steps}")]
    if evaluation.ann:
        tiles += [
            (f"{100 * evaluation.ann['top1']:.2f} %", "ANN top-1"),
            (f"{100 * (evaluation.ann['top1'] - last.top1):+.2f}", "gap, points"),
            (f"{_percent(last.agreement)} %", "agreement with the ANN"),
            (f"{last.energy_uj / evaluation.ann['energy_uj']:.2f} &times;", "energy of the ANN (estimate)"),
        ]
    tiles.append((f"{evaluation.images:,}", "images"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        + "</div>"
    )


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.2f}"


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">' + (f"<tr>{head}</tr>" if head else "") + body + "</table></div>"


def _results(measured: Sequence[Measured]) -> str:
    rows = []
    for one in measured:
        ann = one.evaluation.ann
        name = [one.label] if len(measured) > 1 else []
        if ann:
            macs = f"{ann['multiply_accumulates'] / 1e6:.1f} MAC"
            tops = (_percent(ann["top1"]), _percent(ann["top5"]))
            rows.append([*name, "ANN", *tops, "", "", "", macs, f"{ann['energy_uj']:.2f}", ""])
        shown: list[tuple[str, TimeStepResult | ExitResult]] = [
            (str(row.time_steps), row) for row in one.evaluation.results
        ]
        if one.evaluation.exit:
            shown.append((f"ø {one.evaluation.exit.mean_steps:.2f}", one.evaluation.exit))
        for i, (steps, row) in enumerate(shown):
            rows.append(
                [
                    *(["" if ann or i else one.label] if name else []),
                    steps,
                    _percent(row.top1),
                    _percent(row.top5),
                    f"{100 * (ann['top1'] - row.top1):+.2f}" if ann else "",
                    _percent(row.agreement),
                    f"{row.events_per_neuron_step:.3f}",
                    f"{row.synaptic_operations / 1e6:.1f} SOP",
                    f"{row.energy_uj:.2f}",
                    f"{row.images_per_second:.1f}",
                ]
            )
    headings = ["T", "top-1 %", "top-5 %", "gap", "agreement %", "events", "operations, 10⁶", "energy, µJ", "images/s"]
    return "<h2>Results</h2>" + _table([*(["network"] if len(measured) > 1 else []), *headings], rows)


def _notes(measured: Sequence[Measured]) -> str:
    spikes = "; ".join(
        dict.fromkeys(f"{one.label}: {one.spikes}" if len(measured) > 1 else one.spikes for one in measured)
    )
    return (
        '<p class="note">Gap: ANN minus spiking network, in points. Agreement: same top-1 class as the ANN. Events: '
        f"per neuron and step ({escape(spikes)}). Operations and energy are of one image: MAC, a weight multiplied and "
        "accumulated; SOP, a weight accumulated for an event that reaches it. 45 nm, 0.9 pJ an accumulation, 4.6 pJ a "
        "multiplication and accumulation (Horowitz 2014); a graded event counts once for each of its bits; memory is "
        "left out.</p>"
    )


def _energy(measured: Sequence[Measured]) -> list[str]:
    """The models of energy, of networks that have an ANN."""
    compared = [one for one in measured if one.evaluation.energy]
    if not compared:
        return []
    name = len(measured) > 1
    rows = [
        [
            *([one.label] if name else []),
            row.model,
            f"{row.ann_uj:.3g}",
            f"{row.snn_uj:.3g}",
            f"{row.ratio:.2f}",
            f"{row.above_break_even} of {len(row.layers)}",
        ]
        for one in compared
        for row in one.evaluation.energy
    ]
    headings = ["model", "ANN, µJ", "SNN, µJ", "ratio", "layers above break-even"]
    models = "; ".join(f"{row.model}: {row.contains} ({row.source})" for row in compared[0].evaluation.energy)
    return [
        "<h2>Energy</h2>",
        _figure(lambda roles: figures.energy(compared, roles), "Energy over that of the ANN, by model and by layer"),
        _table([*(["network"] if name else []), *headings], rows),
        '<p class="note">Of an image after the last T, 45 nm. The dashed line is the ANN. A layer above it is marked: '
        "its event rate is above the rate at which both networks take the same. No model contains what keeps a chip "
        f"awake, nor how a chip reaches its memories. {escape(models[:1].upper() + models[1:])}.</p>",
    ]


def _details(one: Measured, level: str) -> list[str]:
    evaluation = one.evaluation
    parts = [
        f"<{level}>Layers</{level}>",
        _figure(lambda roles: figures.layers(one, roles), "Event rate and error of each layer"),
    ]
    if any(layer.errors for layer in evaluation.layers):
        parts.append(
            "<p class=\"note\">Error: squared difference of a layer's decoded output and the ANN's activation, over "
            "the mean square of the activation, on a few images; what earlier layers bring in is part of it.</p>"
        )
    if 0 < evaluation.classes <= DRAWN_CLASSES:
        parts += [
            "<h2>Confusion</h2>",
            _figure(lambda roles: figures.confusion(one, roles), "Confusion matrix", "half"),
        ]
    if evaluation.exit:
        parts += [
            f"<{level}>Early exit</{level}>",
            _figure(lambda roles: figures.early_exit(one, roles), "Accuracy against mean steps, and steps taken"),
            '<p class="note">ø: an image leaves when its readout is sure, by the rule of the file. The curve has one '
            "threshold for all steps, from none to one that nothing is above.</p>",
        ]
    worst = most_confused(one)
    if worst:
        parts += [
            "<h3>Most frequent confusions</h3>",
            _table(["class", "taken for", "images", "% of the class"], worst),
        ]
    if evaluation.left_out:
        parts += [f"<{level}>Left out</{level}>", _table([], [[reason] for reason in evaluation.left_out], "facts")]
    for heading, facts in one.facts.items():
        parts += [f"<{level}>{escape(heading)}</{level}>", _table([], facts.items(), "facts")]
    return parts


def most_confused(one: Measured) -> list[tuple[str, str, str, str]]:
    """The most frequent confusions: class, prediction, images and their share of the class in percent."""
    counts, totals = one.evaluation.confusion, Counter[int]()
    for (label, _), count in counts.items():
        totals[label] += count
    names = one.classes or [str(i) for i in range(one.evaluation.classes)]
    wrong = sorted((-count, i, j) for (i, j), count in counts.items() if i != j)[:CONFUSIONS]
    return [(names[i], names[j], str(-count), f"{-100 * count / totals[i]:.1f}") for count, i, j in wrong]
