"""Reports and pictures: what is in them, and that they need nothing from outside."""

import itertools
import re
import xml.dom.minidom
from html.parser import HTMLParser

import pytest
from PIL import Image

from snnzoo.codings import Delta
from snnzoo.conversion.converted_file import Conversion
from snnzoo.data.preprocess import PRESETS
from snnzoo.energy import LayerVerdict
from snnzoo.evaluation.provenance import facts_of
from snnzoo.evaluation.results import EnergyResult, Evaluation, LayerResult, TimeStepResult
from snnzoo.report import figures
from snnzoo.report.figures import DARK, LIGHT, Measured, as_svg, write_plot
from snnzoo.report.html import most_confused, render, write_report


def measured(label="net", classes=3, layers=5, top1=0.8, errors=True, compared=True):
    confusion = {(i, j): 10 if i == j else (i + 2 * j) % 3 for i in range(classes) for j in range(classes)}
    steps = [1, 2, 4]
    agreement = 0.9 if compared else None
    results = [TimeStepResult(t, top1 - 0.1 / t, 0.99, agreement, 50.0 / t, 0.4, 1e6 * t, 2.0 * t) for t in steps]
    evaluation = Evaluation(
        images=sum(confusion.values()),
        ann={"top1": 0.81, "top5": 0.99, "multiply_accumulates": 4_000_000, "energy_uj": 18.4} if compared else {},
        results=results,
        layers=[
            LayerResult(f"layer{i}.0.sn1", 100, [0.5, 0.4, 0.3, 0.2], [0.1, 0.01, 0.001] if errors else [])
            for i in range(layers)
        ],
        classes=classes,
        confusion=confusion,
    )
    names = [f"class {i}" for i in range(classes)]
    conversion = Conversion(
        "resnet20",
        Delta(3, 0.5),
        4,
        {"name": "delta", "levels": 3, "gamma": None, "calibration": {"source": "train", "images": 512}},
        preprocess=PRESETS["cifar10"],
        classes=names,
        source={"file": "a.pth", "sha256": "0123"},
    )
    facts = facts_of(conversion, {"file": "net.safetensors", "data": "test", "device": "cpu"})
    return Measured(label, evaluation, "delta(levels=3)", "graded spikes of up to 3 levels", names, facts)


class Structure(HTMLParser):
    """Tags in order, and every attribute."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in ("meta", "br", "!doctype"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_loads_nothing_from_anywhere():
    text = render([measured()], "title", "command")
    attributes = Structure(text).attributes
    loading = [value for name, value in attributes if name in ("src", "href", "xlink:href", "data", "action", "srcset")]
    assert all(value.startswith(("#", "data:")) for value in loading)
    assert "<script" not in text
    assert not re.search(r"url\((?!#)|@import", text)


def test_a_report_says_what_was_measured_and_where_it_comes_from():
    text = render([measured()], "resnet20, delta", "snnzoo eval net.safetensors")
    for expected in (
        "77.50", "90.00", "+3.50", "4.0 MAC", "18.40", "graded spikes of up to 3 levels", "Horowitz",
        "net.safetensors", "0123", "made for T=4", "recipe levels", "calibration images", "512", "class 0",
    ):  # fmt: skip
        assert expected in text, expected
    assert "gamma</td>" not in text  # what is not set is not listed
    assert text.count("<svg") == 3


def test_a_network_without_an_ann_is_reported_without_one():
    alone = measured("trained", compared=False)
    text = render([alone], "resnet20", "command")
    Structure(text)
    assert "77.50" in text
    assert "ANN top-1" not in text
    assert "MAC<" not in text
    assert as_svg(lambda roles: figures.accuracy([alone], roles)).count("ANN, ") == 0
    both = render([alone, measured("converted")], "compared", "command")
    assert both.count("<td>ANN</td>") == 1


def test_a_report_is_light_or_dark_as_its_reader_wishes():
    text = render([measured()], "title", "command")
    assert "prefers-color-scheme: dark" in text
    for roles in (LIGHT, DARK):
        assert all(f"--{role}: {color};" in text for role, color in roles.items())
    svg = text[text.index("<svg") :]
    used = set(re.findall(r"var\(--(\w+)\)", svg))
    assert {"ink", "muted", "grid", "series1"} <= used <= set(LIGHT)
    assert not re.search(r"#0102[0-9a-f]{2}", text)
    # no drawing has a colour of its own but those of the colour map's pictures and numbers
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg)) <= {"#111111", "#f5f5f5"}


def test_what_comes_out_of_files_is_escaped():
    one = measured()
    one.facts["Weights"] = {"url": "<script>alert(1)</script>"}
    one.classes = ["<img src=x onerror=y>", "a$b^{c}$", "c"]
    text = render([one], "<b>title</b>", "a && b")
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;b&gt;title" in text
    assert "a &amp;&amp; b" in text


def test_several_networks_share_one_table_and_one_figure():
    text = render([measured("first"), measured("second", top1=0.7, errors=False)], "compared", "command")
    Structure(text)
    assert text.count("<svg") == 1 + 2 * 2
    assert text.index(">first</td>") < text.index(">second</td>") < text.index("<h2>first: delta(levels=3)</h2>")


def test_more_classes_than_can_be_drawn_are_listed_only():
    text = render([measured(classes=120)], "title", "command")
    assert text.count("<svg") == 2
    assert "Most frequent confusions" in text


def test_the_most_frequent_confusions_come_first():
    one = measured()
    one.evaluation.confusion = {(0, 0): 5, (0, 1): 3, (1, 1): 9, (1, 2): 1, (2, 0): 4, (2, 2): 6}
    assert most_confused(one) == [
        ("class 2", "class 0", "4", "40.0"), ("class 0", "class 1", "3", "37.5"), ("class 1", "class 2", "1", "10.0"),
    ]  # fmt: skip
    one.evaluation.confusion = {(0, 0): 5, (1, 1): 9, (2, 2): 6}
    assert most_confused(one) == []


@pytest.mark.parametrize("layers", [1, 151])
def test_drawings_are_well_formed_and_their_labels_do_not_overlap(layers):
    one = measured(layers=layers, classes=10)
    one.classes = [f"a rather long name {i}" for i in range(10)]
    for draw in (
        lambda roles: figures.accuracy([one, measured("other")], roles),
        lambda roles: figures.layers(one, roles),
        lambda roles: figures.confusion(one, roles),
    ):
        xml.dom.minidom.parseString(as_svg(draw))
        figure = draw(LIGHT)
        figure.canvas.draw()
        for ax in figure.axes:
            boxes = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
            boxes = sorted(box.y0 for box in boxes)
            assert all(b - a > 6 for a, b in itertools.pairwise(boxes))


def test_pictures_are_written_in_the_format_of_their_suffix(tmp_path):
    for suffix in ("png", "svg", "pdf"):
        write_plot([measured()], tmp_path / f"plot.{suffix}")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    assert (tmp_path / "plot.pdf").read_bytes().startswith(b"%PDF")
    write_plot([measured("a"), measured("b", top1=0.6)], tmp_path / "two.png")
    write_report([measured("a")], tmp_path / "a.html", "title", "command")
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".pdf", ".png", ".png", ".svg"]


def test_energy_is_shown_by_model_with_the_layers_that_lose():
    one = measured()
    layers = [LayerVerdict("layer1.0.conv2", 0.1, 0.3, 0.4), LayerVerdict("<b>", 0.4, 0.3, 1.5)]
    one.evaluation.energy = [EnergyResult("traffic", "all that moves", "Horowitz 2014", 3.0, 4.5, 1.5, layers)]
    page = render([one], "title", "snnzoo eval")
    assert "<h2>Energy</h2>" in page
    assert "<td>traffic</td><td>3</td><td>4.5</td><td>1.50</td><td>1 of 2</td>" in page
    assert "<b>" not in page.split("<h2>Energy</h2>")[1].split("</h2>")[0]
    assert "<h2>Energy</h2>" not in render([measured()], "title", "snnzoo eval")
