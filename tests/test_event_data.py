"""Frames of events as data: `[T, N, C, H, W]` tensors, and folders of .npz files; networks of two channels."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo import codings, functional
from snnzoo.cli import main as cli
from snnzoo.conversion import choose, load_with_ann
from snnzoo.conversion.inputs import ann_input, network_input
from snnzoo.data.datasets import calibration_images, labelled_data, labelled_tensors
from snnzoo.data.folders import list_samples
from snnzoo.data.frames import read_frames
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.evaluation import evaluate

T = 5


@pytest.fixture(scope="module")
def ann():
    """A ResNet of two channels and three classes."""
    torch.manual_seed(0)
    net = snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s", in_channels=2, num_classes=3)
    return shake_batch_norm(net).eval()


@pytest.fixture(scope="module")
def frames():
    """Counts of events, `[T, N, 2, 16, 16]`."""
    return torch.poisson(torch.full((T, 6, 2, 16, 16), 0.3), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, frames):
    """Three classes of two recordings, written by numpy."""
    root = tmp_path_factory.mktemp("events")
    for i, recording in enumerate(frames.unbind(1)):
        (root / "abc"[i // 2]).mkdir(exist_ok=True)
        numbers = recording.numpy().astype(np.int16)
        (np.savez if i % 2 else np.savez_compressed)(root / "abc"[i // 2] / f"{i}.npz", frames=numbers)
    return root


# -- What ANN and network are given ------------------------------------------------------------------------------------


def test_the_ann_sees_the_mean_and_the_network_the_frames_or_their_mean_so_far(frames):
    samples = frames.transpose(0, 1)
    assert torch.equal(ann_input(samples), samples.mean(1))
    assert torch.equal(network_input(samples, codings.Rate(), T), frames)
    so_far = network_input(samples, codings.Delta(), T)
    for t in range(T):
        torch.testing.assert_close(so_far[t], frames[: t + 1].mean(0))
    assert torch.equal(network_input(samples, codings.Signed(), 2), frames[:2])


def test_an_image_stays_an_expanded_view():
    images = torch.rand(3, 2, 8, 8)
    x_seq = network_input(images, codings.Delta(), 4)
    assert (x_seq.shape, x_seq.stride(0)) == ((4, 3, 2, 8, 8), 0)
    assert ann_input(images) is images


def test_more_steps_than_frames_are_a_usage_error(frames):
    with pytest.raises(UsageError, match="5 frames each, but 6 time steps"):
        network_input(frames.transpose(0, 1), codings.Rate(), 6)


# -- Training, converting, evaluating ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "sew_resnet18"])
def test_a_network_to_train_learns_from_frames(name, frames):
    torch.manual_seed(0)
    arguments = {"hidden_features": 16} if name == "vgg11" else {}
    net = snnzoo.create_model(name, neuron="lif", in_channels=2, num_classes=3, **arguments)
    x_seq = frames.repeat_interleave(2, 3).repeat_interleave(2, 4)
    loss = nn.functional.cross_entropy(net(x_seq).mean(0), torch.arange(6) // 2)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("recipe", "options", "tolerance"), [
    ("delta", {"levels": 7, "gamma": 0.8}, 0.08),
    ("differential", {}, 0.1),
    ("signed", {}, 0.6),
    ("rate", {}, 0.6),
])  # fmt: skip
def test_a_network_converted_on_frames_comes_close_to_the_ann_of_their_mean(ann, recipe, options, tolerance):
    many = torch.poisson(torch.full((16, 6, 2, 16, 16), 0.3), torch.Generator().manual_seed(1))
    net = snnzoo.convert(ann, many, recipe, **options)
    assert net.conversion.time_steps == 16
    with torch.inference_mode():
        expected = ann(many.mean(0))
        actual = net(network_input(many.transpose(0, 1), net.conversion.coding, 16))[-1]
    assert (actual - expected).abs().mean() < tolerance * expected.std()


def test_convert_takes_batches_of_frames_as_it_takes_the_tensor(ann, frames):
    whole = snnzoo.convert(ann, frames, gamma=0.5)
    batches = snnzoo.convert(ann, [(frames[:, :4], torch.zeros(4)), (frames[:, 4:], torch.zeros(2))], gamma=0.5)
    assert torch.equal(whole.sn1.v_threshold, batches.sn1.v_threshold)


def test_time_steps_other_than_the_frames_are_a_usage_error(ann, frames):
    with pytest.raises(UsageError, match="5 frames each, so time_steps must be that, got 3"):
        snnzoo.convert(ann, frames, gamma=0.5, time_steps=3)


def test_choosing_for_frames_keeps_their_time_steps(ann, frames):
    choice = choose(ann, frames.transpose(0, 1), tolerance=99)
    assert {candidate.time_steps for candidate in choice.candidates} == {T}


def test_rates_equal_those_counted_by_hand(ann, frames):
    net = snnzoo.convert(ann, frames, levels=3, gamma=0.5)
    labels = torch.arange(6) // 2
    result = evaluate(net, ann, (frames, labels), [2, T], batch_size=4)
    with torch.inference_mode():
        expected = ann(frames.mean(0)).argmax(1)
        functional.reset_net(net)
        so_far = network_input(frames.transpose(0, 1), net.conversion.coding, T)
        logits = net(so_far)
    assert result.images == 6
    assert result.ann["top1"] == (expected == labels).double().mean().item()
    for row in result.results:
        found = logits[row.time_steps - 1].argmax(1)
        assert row.top1 == (found == labels).double().mean().item()
        assert row.agreement == (found == expected).double().mean().item()
    with pytest.raises(UsageError, match="5 frames each, but 8 time steps"):
        evaluate(net, ann, labelled_tensors(frames, labels), [8])


# -- Files -------------------------------------------------------------------------------------------------------------


def test_a_folder_of_npz_files_is_read_as_it_was_written(folder, frames):
    data = labelled_data(str(folder), None, None, 3)
    assert [label for _, label in data] == [0, 0, 1, 1, 2, 2]
    assert all(torch.equal(data[i][0], frames[:, i]) for i in range(6))
    drawn = calibration_images(str(folder), None, 4, seed=1)
    assert drawn.shape == (4, T, 2, 16, 16)


def save_pickled(path):
    np.savez(path, frames=np.array([{"a": 1}], dtype=object))


BAD = {
    "no zip": (lambda p: p.write_bytes(b"nothing of the kind"), "not an .npz file"),
    "a single array": (lambda p: np.save(open(p, "wb"), np.zeros((2, 2, 4, 4))), "not an .npz file"),  # noqa: SIM115
    "a pickle": (lambda p: p.write_bytes(pickle.dumps([1, 2])), "not an .npz file"),
    "pickled objects": (save_pickled, "pickled objects, which could run code"),
    "another key": (lambda p: np.savez(p, events=np.zeros(3)), "no array 'frames', but 'events'"),
    "no array": (lambda p: np.savez(p), "no array 'frames', but nothing"),
    "three dimensions": (
        lambda p: np.savez(p, frames=np.zeros((5, 16, 16))),
        r"shape \[T, C, H, W\], got \[5, 16, 16\]",
    ),
    "no frames": (lambda p: np.savez(p, frames=np.zeros((0, 2, 4, 4))), r"got \[0, 2, 4, 4\]"),
    "text": (lambda p: np.savez(p, frames=np.full((1, 1, 1, 1), "x")), "must be numbers, got the type <U1"),
    "NaN": (lambda p: np.savez(p, frames=np.full((1, 2, 4, 4), np.nan)), "NaN or infinite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_that_names_it(kind, tmp_path):
    path = tmp_path / "bad.npz"
    write, message = BAD[kind]
    write(path)
    with pytest.raises(SnnzooError, match=message) as error:
        read_frames(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_named(folder, tmp_path):
    whole = next((folder / "a").iterdir()).read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(SnnzooError, match=r"cut\.npz: "):
            read_frames(path)


def test_recordings_of_different_lengths_are_an_error_that_names_both(tmp_path):
    for label, steps in (("a", 3), ("b", 4)):
        (tmp_path / label).mkdir()
        np.savez(tmp_path / label / "1.npz", frames=np.zeros((steps, 2, 4, 4)))
    with pytest.raises(SnnzooError, match=r"b/1\.npz: .*\[4, 2, 4, 4\], but .*a/1\.npz has \[3, 2, 4, 4\]"):
        list(labelled_data(str(tmp_path), None, None, 2))


def test_images_and_frames_in_one_folder_are_a_usage_error(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "2.npz").touch()
    with pytest.raises(UsageError, match=r"both images and frames in it, .*1\.png and .*2\.npz"):
        list_samples(tmp_path)


def test_images_for_a_network_made_for_frames_are_a_usage_error(image_folder):
    with pytest.raises(UsageError, match="was converted for frames"):
        labelled_data(str(image_folder), None, None, 10)


# -- The commands ------------------------------------------------------------------------------------------------------


def main(arguments):
    """Run `snnzoo` with these arguments; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["snnzoo", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return stop.value.code or 0


@pytest.fixture(scope="module")
def converted(tmp_path_factory, ann, folder):
    """What `snnzoo convert` makes of the ANN's checkpoint with the folder."""
    home = tmp_path_factory.mktemp("home")
    torch.save(ann.state_dict(), home / "ann.pth")
    arguments = ["resnet20", "--checkpoint", str(home / "ann.pth"), "--calib-data", str(folder), "--levels", "7", "-q"]
    assert main(["convert", *arguments, "-o", str(home / "snn.safetensors")]) == 0
    return home / "snn.safetensors"


def test_convert_and_eval_take_a_folder_of_frames(converted, folder, ann, frames, tmp_path):
    net, loaded_ann = load_with_ann(converted)
    assert (net.conversion.preprocess, net.conversion.time_steps) == (None, T)
    assert net.conversion.input_shape == [2, 16, 16]
    assert torch.equal(loaded_ann(frames.mean(0)), ann(frames.mean(0)))
    report = tmp_path / "report.json"
    assert main(["eval", str(converted), "--data", str(folder), "--json", str(report), "-q"]) == 0
    result = json.loads(report.read_text("utf-8"))
    assert result["images"] == 6
    assert [row["time_steps"] for row in result["results"]] == [1, 2, 4, 5]
    labels = torch.arange(6) // 2
    assert result["ann"]["top1"] == (ann(frames.mean(0)).argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize(("arguments", "message"), [
    (["convert", "resnet20", "--checkpoint", "ANN", "--calib-data", "FRAMES", "--input-size", "16"], "are for images"),
    (["convert", "resnet20", "--checkpoint", "ANN", "--calib-data", "FRAMES", "-T", "3"], "5 frames each"),
    (["convert", "vgg11", "--checkpoint", "ANN"], "vgg11 has layers with no BN"),
    (["convert", "sew_resnet18", "--checkpoint", "ANN"], "sew_resnet18 is a network to train"),
    (["eval", "SNN", "--data", "FRAMES", "-T", "9"], "5 frames each, but 9 time steps"),
    (["eval", "SNN", "--data", "IMAGES"], "was converted for frames|class folders"),
    (["eval", "SNN", "--data", "digits"], "was converted for frames"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_and_exit_code_2(
    arguments, message, converted, folder, image_folder, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    places = {"ANN": converted.parent / "ann.pth", "SNN": converted, "FRAMES": folder, "IMAGES": image_folder}
    assert main([str(places.get(argument, argument)) for argument in arguments]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert any(part in error for part in message.split("|"))
    assert "Traceback" not in error
