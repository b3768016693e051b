"""Networks that were trained as spiking ones, from checkpoints: recognised, evaluated, and refused where unsure."""

import functools
import json
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import snnzoo
from helpers import shake_batch_norm
from snnzoo import functional, neuron
from snnzoo.checkpoints.layouts import from_torchvision
from snnzoo.cli.main import main
from snnzoo.errors import CheckpointError, UsageError


def trained(model="sew_resnet18", kind="plif", **kwargs):
    """A network with random BN and time constants."""
    net = shake_batch_norm(snnzoo.create_model(model, neuron=kind, num_classes=10, **kwargs))
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += 0.5
        if isinstance(module, neuron.ParametricLIFNode):
            module.w.data += torch.randn((), generator=generator)
    return net.eval()


def as_released(net):
    """The keys of SEW-ResNet's release, by hand."""
    renamed = {}
    for key, value in net.state_dict().items():
        for part, name in (("conv", ".module.0."), ("bn", ".module.1.")):
            for i in (1, 2, 3):
                key = key.replace(f".{part}{i}.", f".conv{i}{name}") if key.startswith("layer") else key
        key = key.replace(".downsample.0.", ".downsample.0.module.0.").replace(
            ".downsample.1.", ".downsample.0.module.1."
        )
        renamed[key.replace(".downsample_sn.", ".downsample.1.")] = value
    return renamed


def as_saved(net, layout):
    return as_released(net) if layout == "sew_release" else from_torchvision(net.state_dict(), layout)


def mean_logits(net, images, time_steps):
    functional.reset_net(net)
    with torch.inference_mode():
        return net(images.expand(time_steps, *images.shape)).mean(0)


@pytest.mark.parametrize("layout", ["sew_release", "sew_resnet"])
@pytest.mark.parametrize("model", ["sew_resnet18", "sew_resnet50"])
def test_checkpoints_of_sew_networks_load_with_the_parameters_of_their_neurons(tmp_path, layout, model):
    net = trained(model)
    torch.save({"model": as_saved(net, layout)}, tmp_path / "net.pth")
    lines = []
    loaded = snnzoo.load_snn(tmp_path / "net.pth", model, "plif", notify=lines.append)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(mean_logits(loaded, images, 3), mean_logits(net, images, 3))
    assert layout in lines[0]


@pytest.mark.parametrize("layout", ["spikingjelly", "container", "torchvision"])
def test_spiking_resnets_load_from_all_layouts_and_pool_behind_the_neuron(tmp_path, layout):
    net = trained("resnet18", "lif", pool_first=False)
    torch.save(as_saved(net, layout), tmp_path / "net.pth")
    loaded = snnzoo.load_snn(tmp_path / "net.pth", "resnet18", "lif")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(mean_logits(loaded, images, 3), mean_logits(net, images, 3))


def test_a_vgg_of_neurons_with_parameters_loads(tmp_path):
    net = snnzoo.create_model("vgg11_bn", neuron="plif", num_classes=4, hidden_features=8, pool_first=False)
    state_dict = {key.replace(".sn.", "."): value + 0.1 for key, value in net.state_dict().items()}
    assert "features.2.w" in state_dict
    torch.save(state_dict, tmp_path / "net.pth")
    loaded = snnzoo.load_snn(tmp_path / "net.pth", "vgg11_bn", "plif")
    assert torch.equal(loaded.features[2].sn.w, state_dict["features.2.w"])


def test_neurons_of_another_kind_are_refused_in_words(tmp_path):
    torch.save(trained("sew_resnet18", "plif").state_dict(), tmp_path / "plif.pth")
    torch.save(trained("sew_resnet18", "if").state_dict(), tmp_path / "if.pth")
    with pytest.raises(CheckpointError, match=r"parameters of neurons .*give --neuron plif"):
        snnzoo.load_snn(tmp_path / "plif.pth", "sew_resnet18", "lif")
    with pytest.raises(CheckpointError, match=r"lacks the parameters of its neurons .*give --neuron if or lif"):
        snnzoo.load_snn(tmp_path / "if.pth", "sew_resnet18", "plif")
    with pytest.raises(
        CheckpointError, match="holds the weights of sew_resnet18, not resnet18: give --model sew_resnet18"
    ):
        snnzoo.load_snn(tmp_path / "plif.pth", "resnet18", "plif")
    with pytest.raises(CheckpointError, match="holds the weights of resnet18, not sew_resnet34"):
        snnzoo.load_snn(tmp_path / "if.pth", "sew_resnet34")
    with pytest.raises(UsageError, match="--connect is for SEW ResNets"):
        snnzoo.load_snn(tmp_path / "if.pth", "resnet18", connect="AND")
    with pytest.raises(UsageError, match="no such file"):
        snnzoo.load_snn(tmp_path / "missing.pth", "resnet18")


@pytest.mark.parametrize(("model", "kind"), [("sew_resnet18", "plif"), ("resnet20", "if")])
def test_evaluation_without_an_ann_counts_the_mean_of_the_logits(model, kind):
    net = trained(model, kind)
    images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 10
    result = snnzoo.evaluate(net, None, (images, labels), [1, 3], batch_size=5)
    for row in result.results:
        hits = mean_logits(net, images, row.time_steps).argmax(1) == labels
        assert row.top1 == pytest.approx(hits.float().mean().item())
        assert row.agreement is None
        assert row.synaptic_operations > 0
        assert row.energy_uj > 0
        assert row.images_per_second > 0
    assert result.ann == {}
    assert result.layers[0].event_rates


def test_an_ann_beside_a_network_that_was_not_converted_is_an_error_in_words():
    net, ann = snnzoo.create_model("resnet20"), snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s")
    data = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4))
    with pytest.raises(UsageError, match=r"was not converted.*evaluate\(net, None"):
        snnzoo.evaluate(net, ann, data, [2])


def test_a_converted_network_may_be_evaluated_without_its_ann(networks, data):
    snn, ann = networks
    alone, beside = snnzoo.evaluate(snn, None, data, [2]), snnzoo.evaluate(snn, ann, data, [2])
    assert alone.results[0].top1 == beside.results[0].top1
    assert alone.results[0].agreement is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "sew18.pth"
    torch.save({"model": as_released(trained())}, path)
    return path


@pytest.fixture
def run(monkeypatch):
    """Run a command in this process, and return its exit code."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["snnzoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0

    return run


def test_eval_of_a_release_checkpoint(run, checkpoint, image_folder, tmp_path, capsys):
    output = tmp_path / "result.json"
    options = ("--model", "sew_resnet18", "--neuron", "plif", "-T", "1,4", "--data", image_folder, "--device", "cpu")
    assert run("eval", checkpoint, *options, "--limit", 6, "--json", output) == 0
    result = json.loads(output.read_text())
    assert (result["model"], result["neuron"], result["images"]) == ("sew_resnet18", "plif", 6)
    assert [row["time_steps"] for row in result["results"]] == [1, 4]
    assert "agreement" not in result["results"][0] or result["results"][0]["agreement"] is None
    assert run("eval", checkpoint, *options, "--limit", 3) == 0
    shown = capsys.readouterr().out
    assert "sew_resnet18, trained, plif neurons" in shown
    assert "gap" not in shown


@pytest.mark.parametrize(("options", "message"), [
    (("--model", "sew_resnet18"), "give -T"),
    (("--model", "sew_resnet18", "-T", "2", "--neuron", "izhikevich"), "unknown neuron"),
    (("--model", "sew_resnet18", "-T", "2", "--report", "r.html"), "which this one has not"),
    (("--neuron", "plif"), "say what it is of with --model"),
    (("--model", "sew_resnet18", "-T", "2", "--neuron", "lif"), "give --neuron plif"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(run, checkpoint, image_folder, capsys, options, message):
    assert run("eval", checkpoint, "--data", image_folder, "--device", "cpu", *options) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())


def test_inspect_names_it_for_what_it_is(run, checkpoint, capsys):
    assert run("inspect", checkpoint, "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layout"]["name"] == "sew_release"
    assert report["model"]["name"] == "sew_resnet18"
    assert report["missing"] == report["unexpected"] == report["mismatched"] == []
    assert "layer2.0.downsample_sn.w" in report["neuron_parameters"]


@pytest.mark.parametrize("layout", ["sew_resnet", "sew_release"])
def test_remap_keeps_the_parameters_of_neurons(run, checkpoint, tmp_path, layout):
    output = tmp_path / "remapped.pth"
    assert run("remap", checkpoint, "--to", layout, "-o", output, "--quiet") == 0
    original = snnzoo.load_snn(checkpoint, "sew_resnet18", "plif").state_dict()
    again = snnzoo.load_snn(output, "sew_resnet18", "plif").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in original.items())


def test_the_fast_form_equals_the_network_with_the_settings_it_was_trained_with(tmp_path):
    make = functools.partial(neuron.LIFNode, tau=3.0, v_threshold=0.7)
    torch.save(trained("sew_resnet18", make).state_dict(), tmp_path / "net.pth")
    net = snnzoo.load_snn(tmp_path / "net.pth", "sew_resnet18", make, connect="ADD").double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    fast = snnzoo.prepare_for_inference(net, dtype=torch.float64)
    torch.testing.assert_close(fast.final(images.expand(3, *images.shape)), mean_logits(net, images, 3))


def test_bench_of_a_release_checkpoint(run, checkpoint, capsys):
    options = ("-T", 2, "--batch-size", 1, "--input-size", 32, "--repeats", 1, "--device", "cpu", "--json", "-")
    assert run("bench", checkpoint, "--model", "sew_resnet18", "--neuron", "plif", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "sew_resnet18"
    assert {"fast", "unprepared"} <= {row["name"] for row in report["results"]}
    assert run("bench", checkpoint, "--neuron", "plif") == 2
    assert "with --model" in capsys.readouterr().err
