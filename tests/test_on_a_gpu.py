"""All that runs on a GPU, on a stand-in for one (`standin`): nothing is left on the CPU, and results are the CPU's."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo import codings, functional, ops
from snnzoo.cli import main as cli
from snnzoo.evaluation import evaluate
from snnzoo.evaluation.activity import ActivityMeter
from snnzoo.evaluation.runner import Runner
from snnzoo.models.cifar_resnet import CifarResNet
from snnzoo.ops import backends
from standin import Standin


def small(neuron=nn.ReLU, classes=3):
    torch.manual_seed(0)
    return shake_batch_norm(
        CifarResNet(1, neuron=neuron, num_classes=classes, step_mode="s" if neuron is nn.ReLU else "m")
    )


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "ParametricLIFNode"])
@pytest.mark.parametrize("static", [True, False])
def test_training_gives_the_gradients_of_the_cpu(gpu, kind, static):
    x_seq = images(2, 3, 8, 8).expand(3, 2, 3, 8, 8) if static else images(3, 2, 3, 8, 8)
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        net = small(getattr(snnzoo.neuron, kind)).to(device).train()
        loss = net(x_seq.to(device)).mean(0).logsumexp(1).sum()
        loss.backward()
        functional.reset_net(net)
        assert all(isinstance(p.grad, Standin) == (device == "cuda") for p in net.parameters())
        losses.append(loss.item())
        gradients.append({name: p.grad.cpu() for name, p in net.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "recipe", ["delta", *(pytest.param(name, marks=pytest.mark.slow) for name in ("differential", "signed", "rate"))]
)
def test_conversion_by_every_recipe_gives_the_network_of_the_cpu(gpu, recipe):
    nets = []
    for device in ("cpu", "cuda"):
        options = {"gamma": 0.5} if recipe == "delta" else {}
        nets.append(snnzoo.convert(small().eval().to(device), images(4, 3, 8, 8).to(device), recipe, 2, **options))
    for key, value in nets[1].state_dict().items():
        assert isinstance(value, Standin), key
        same = torch.isclose(value.cpu().double(), nets[0].state_dict()[key].double(), rtol=1e-3, atol=1e-4)
        # of two thresholds that fit alike, rounding decides
        assert same.double().mean() >= (0.95 if ".sn" in f".{key}" else 1), key
    x_seq = images(2, 3, 8, 8).expand(2, 2, 3, 8, 8)
    found, expected = nets[1](x_seq.to("cuda")).cpu(), nets[0](x_seq)
    assert (found - expected).norm() <= 0.2 * expected.norm()


@pytest.mark.parametrize(("make", "frames"), [
    ("converted", False), ("trained", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("converted", True), ("trained", False),
    )),
])  # fmt: skip
def test_evaluation_counts_what_the_cpu_counts(gpu, make, frames):
    if make == "trained":
        net, ann = small(snnzoo.neuron.IFNode).eval(), None
    else:
        ann = small().eval()
        net = snnzoo.convert(copy.deepcopy(ann), images(8, 3, 8, 8), gamma=0.5, time_steps=2)
    data = images(2, 6, 3, 8, 8) if frames else images(6, 3, 8, 8), torch.arange(6) % 3
    results = [evaluate(net, ann, data, [1, 2], batch_size=4, device=device) for device in ("cpu", "cuda")]
    one, other = (result.to_dict() for result in results)
    assert one["results"][0]["top1"] == other["results"][0]["top1"]
    assert [row["synaptic_operations"] for row in one["results"]] == pytest.approx(
        [row["synaptic_operations"] for row in other["results"]], rel=1e-3
    )


@pytest.fixture
def run(gpu, monkeypatch, capfd, tmp_path):
    """Run a command in an empty folder: standard output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, device="cuda"):
        monkeypatch.setattr(sys, "argv", ["snnzoo", *map(str, arguments), "--device", device])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        assert not stop.value.code, err
        return out

    return run


NETWORK = """
from torch import nn
from snnzoo.models.cifar_resnet import CifarResNet
def make():
    return CifarResNet(1, neuron=nn.ReLU, num_classes=10)
"""


@pytest.fixture
def converted(run, image_folder):
    """What `snnzoo convert` reports of the file that it wrote."""
    Path("net.py").write_text(NETWORK)
    torch.save(small(classes=10).state_dict(), "net.pth")
    report = run(
        "convert", "net.py:make", "--checkpoint", "net.pth", "--calib-data", image_folder, "--calib-samples", 8,
        "--exit-samples", 8, "--input-size", 8, "--preprocess", "cifar10", "--recipe", "differential", "-T", 2,
        "-o", "net.safetensors", "--json", "-",
    )  # fmt: skip
    return json.loads(report)


def test_convert_and_predict_run_on_it(run, converted, image_folder):
    assert converted["recipe"]["calibration"]["images"] == 8
    answers = []
    for device in ("cuda", "cpu"):
        report = json.loads(run("predict", converted["file"], image_folder, "--json", "-", device=device))
        answers.append([one["guesses"][0]["name"] for one in report["predictions"]])
    assert len(answers[0]) == 30
    assert sum(one == other for one, other in zip(*answers, strict=True)) >= 28  # rounding decides ties


@pytest.mark.slow
def test_eval_and_bench_run_on_it(run, converted, image_folder):
    report = json.loads(
        run("eval", "net.safetensors", "--data", image_folder, "-T", 1, "--batch-size", 8, "--json", "-")
    )
    assert report["device"] == "cuda"
    report = json.loads(run("bench", "net.safetensors", "--batch-size", 1, "--repeats", 1, "--json", "-"))
    assert report["device_name"] == "pretended"
    assert "ann_folded_graph" in [row["name"] for row in report["results"]]


@pytest.fixture(scope="module")
def converted_small():
    return snnzoo.convert(small().eval(), images(8, 3, 8, 8), gamma=0.5, time_steps=2)


def test_events_are_read_from_it_once_a_batch(gpu, converted_small):
    fast = snnzoo.prepare_for_inference(converted_small, device="cuda")
    meter, x_seq = ActivityMeter(fast.network), images(2, 3, 8, 8).to("cuda").expand(2, 2, 3, 8, 8)
    with meter:
        fast(x_seq, meter.watch)  # finds how far each input of a layer reaches, once
    before = gpu.waits
    for batch in (1, 2):
        with meter:
            fast(x_seq, meter.watch)
        assert gpu.waits == before + batch
    assert meter.activity.images == 6


def test_graphs_give_their_memory_back_before_a_smaller_batch_is_tried(gpu, converted_small, monkeypatch):
    runner = Runner(converted_small, None, 2, batch_size=4, device="cuda", dtype=torch.float32)
    batch = images(4, 3, 8, 8)
    runner.images_per_second(batch[:2], 2)
    assert len(runner.fast._graphs.functions) == 1
    run, kept = runner._run, []

    def too_large(part):
        kept.append(len(runner.fast._graphs.functions))
        if len(part) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(part)

    monkeypatch.setattr(runner, "_run", too_large)
    _, logits = runner(batch)
    assert logits.shape == (2, 4, 3)
    assert kept == [1, 0, 0]


def test_a_triton_that_does_not_import_is_named_once_and_the_reference_runs(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "snnzoo.ops.triton_launch", None)  # as an import that fails
    monkeypatch.delattr(ops, "triton_launch", raising=False)
    backends._triton_is_unavailable.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"triton does not import.*step by step in PyTorch") as warned:
            spikes = [ops.multi_step_neuron(images(3, 2, 4).to("cuda"), codings.IF()).sequence for _ in range(2)]
        assert len(warned) == 1
        assert torch.equal(spikes[1].cpu(), ops.multi_step_neuron(images(3, 2, 4), codings.IF()).sequence)
    finally:
        backends._triton_is_unavailable.cache_clear()


def test_where_kernels_cannot_be_launched_it_is_said_once_and_the_reference_runs(gpu, monkeypatch):
    probes = []

    def probe():
        probes.append(1)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(triton_launch(), "INTERPRETED", False)
    monkeypatch.setattr(triton_launch(), "probe", probe)
    backends._triton_is_unavailable.cache_clear()
    try:
        x_seq = images(3, 2, 4)
        with pytest.warns(UserWarning, match=r"cannot be launched: Failed to find C compiler.*step by step") as warned:
            spikes = [ops.multi_step_neuron(x_seq.to("cuda"), codings.IF()).sequence for _ in range(3)]
        assert (len(warned), len(probes)) == (1, 1)
        assert torch.equal(spikes[2].cpu(), ops.multi_step_neuron(x_seq, codings.IF()).sequence)
        with pytest.raises(RuntimeError, match=r"triton backend is unavailable.*C compiler"), ops.use_backend("triton"):
            pass
    finally:
        backends._triton_is_unavailable.cache_clear()


def triton_launch():
    from snnzoo.ops import triton_launch  # imports triton, which must have heard of its interpreter by then

    return triton_launch


def test_what_delta_needs_of_every_step_is_made_without_tensors(gpu):
    with torch.inference_mode():
        values = [codings.Delta(3, 0.3).spike_value(t, torch.float32) for t in range(100)]
    assert gpu.waits == 0
    assert {type(value) for value in values} == {float}
