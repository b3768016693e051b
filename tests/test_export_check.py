"""Files are run before they get their name: what computes something else is an error, and leaves nothing."""

import dataclasses

import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo.conversion.converted_file import Conversion
from snnzoo.errors import SnnzooError
from snnzoo.export import check, measure, unrolled, write_nir, write_pt2
from snnzoo.export.check import AS_IT_IS, ROUNDED, Check, compare, expected_logits, write_checked
from snnzoo.export.formats import images_to_check

SHAPE = (3, 8, 8)
IMAGES = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(3))


def ann():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(8, 5)
    return shake_batch_norm(nn.Sequential(*layers)).eval()


@pytest.fixture(scope="module")
def net():
    return snnzoo.convert(ann(), IMAGES, "rate", time_steps=4)


def test_a_file_that_computes_something_else_is_an_error_and_is_not_there(net, tmp_path, monkeypatch):
    monkeypatch.setattr(unrolled, "open_pt2", lambda path: lambda images: torch.randn(4, len(images), 5))
    (tmp_path / "net.pt2").write_text("older")
    with pytest.raises(
        SnnzooError, match=r"net\.pt2: not written, since it does not compute what the network does, on 10"
    ):
        write_pt2(net, tmp_path / "net.pt2", 4, SHAPE, images=IMAGES)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_of_the_check_leaves_nothing(net, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(check, "compare", fail)
    with pytest.raises(error):
        write_nir(net, tmp_path / "net.nir", SHAPE, images=IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_what_was_found_is_in_the_file_and_all_else_as_it_was_run(net, tmp_path):
    seen = []

    def opened(path):
        seen.append(path.read_bytes())
        return lambda images: expected_logits(net, images, 4)

    def content(more):
        return repr(more).encode()

    found = write_checked(tmp_path / "a", content, opened, net, IMAGES, 4, replace=True)
    assert seen == [b"{}"]
    assert b'"agreement": 1.0' in (tmp_path / "a").read_bytes()
    assert (found.images, found.time_steps, found.difference, found.agreement) == (10, 4, 0.0, 1.0)
    assert write_checked(tmp_path / "b", content, opened, net, None, 4, replace=True) is None
    assert (tmp_path / "b").read_bytes() == b"{}"


def test_figures_are_of_the_last_step():
    expected = torch.zeros(2, 4, 3)
    expected[1] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])
    found = expected.clone()
    found[0] += 100
    found[1, 3] = torch.tensor([0.0, 0.0, 4.0])
    result = compare(lambda images: found, torch.zeros(4, 1), expected)
    assert (result.agreement, result.difference, result.typical) == (0.75, 4.0, 0.0)
    assert not result.is_within(AS_IT_IS)
    assert result.is_within(ROUNDED)
    assert not dataclasses.replace(result, typical=1.1).is_within(ROUNDED)


def test_logits_of_another_shape_are_an_error():
    with pytest.raises(SnnzooError, match=r"logits \[2, 4\] instead of \[2, 3\]"):
        compare(lambda images: torch.zeros(1, 2, 4), torch.zeros(2, 1), torch.zeros(1, 2, 3))


def test_images_are_those_given_or_of_calibration_or_noise(net, image_folder):
    images, source = images_to_check(net, SHAPE, None)
    assert (source, images.shape) == ("noise", (16, *SHAPE))
    with pytest.raises(SnnzooError, match="does not say how images are prepared"):
        images_to_check(net, SHAPE, str(image_folder))
    preprocess = snnzoo.data.preprocess.Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3)
    recipe = {"name": "rate", "calibration": {"source": str(image_folder)}}
    known = dataclasses.replace(net.conversion, preprocess=preprocess, recipe=recipe)
    own = net.conversion
    try:
        net.conversion = known
        assert isinstance(known, Conversion)
        images, source = images_to_check(net, SHAPE, None, count=4)
        assert (source, images.shape) == (str(image_folder), (4, *SHAPE))
        assert images_to_check(net, (3, 12, 12), str(image_folder), count=2)[0].shape == (2, 3, 12, 12)
    finally:
        net.conversion = own


def test_formats_side_by_side_have_the_figures_of_their_files(net, tmp_path):
    snnzoo.save(net, tmp_path / "net.safetensors")
    results = {row.format: row for row in measure.measure_formats(net, tmp_path / "net.safetensors", IMAGES, 4)}
    assert list(results) == ["safetensors", "nir", "onnx", "pt2", "integer"]
    assert results["safetensors"].size == (tmp_path / "net.safetensors").stat().st_size
    for row in results.values():
        assert row.problem is None
        assert row.agreement >= 0.9
        assert row.ms_per_image > 0


def test_a_format_that_cannot_hold_the_network_says_why(tmp_path):
    net = snnzoo.convert(ann(), IMAGES, "differential", time_steps=2)
    snnzoo.save(net, tmp_path / "net.safetensors")
    results = {row.format: row for row in measure.measure_formats(net, tmp_path / "net.safetensors", IMAGES, 2)}
    assert "--recipe rate" in results["nir"].problem
    assert "not for differential" in results["integer"].problem
    assert results["onnx"].agreement == 1.0


def test_a_check_is_told_in_one_line():
    assert str(Check(16, 4, 0.001234, 0.0, 0.9375, 1.0)) == (
        "16 images, T=4: logits differ by at most 0.0012, 93.8 % of classes agree"
    )
