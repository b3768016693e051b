"""What is good in a checkpoint comes back bit for bit: every type of number, views, training checkpoints."""

import argparse
from pathlib import Path

import hostile_corpus as corpus
import pytest
import torch
from hostile_reading import FORMATS, WEIGHT, refused, snnzoo, working_folder, written  # noqa: F401 (a fixture)
from safetensors.torch import save
from torch import nn

from snnzoo.checkpoints.files import read_checkpoint
from snnzoo.errors import CheckpointError
from snnzoo.models import factory
from snnzoo.recognition import inspect_checkpoint


@pytest.mark.parametrize("number", range(corpus.GOOD))
def test_the_good_files_of_the_corpus_load(number):
    suffix, data = corpus.seeds()[number]
    Path("part.safetensors").write_bytes(next(data for suffix, data in corpus.seeds() if suffix == ".safetensors"))
    read_checkpoint(written(data, f"file{suffix}"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_checkpoint_comes_back_as_torch_reads_it(zipped):
    path = written(corpus.saved(corpus.training_checkpoint(), zipped=zipped))
    expected, read = torch.load(path, weights_only=False), read_checkpoint(path)
    assert list(read) == list(expected)
    torch.testing.assert_close(read["state_dict"], expected["state_dict"], rtol=0, atol=0)
    nested = [{"a": None}, [1, 2], read["hyper_parameters"]["nested"][2]]  # a set as a list, bytes opaque
    assert read["hyper_parameters"] == {**expected["hyper_parameters"], "nested": nested}
    torch.testing.assert_close(read["optimizer_states"], expected["optimizer_states"], rtol=0, atol=0)
    assert read["lr_schedulers"] == expected["lr_schedulers"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_settings_of_torchvisions_training_script_do_not_keep_its_weights_from_loading(zipped):
    settings = argparse.Namespace(model="resnet18", lr=0.1, nested={"sizes": [224, 232]}, resume=None)
    read = read_checkpoint(written(corpus.saved({"model": WEIGHT, "epoch": 3, "args": settings}, zipped=zipped)))
    assert torch.equal(read["model"]["w"], WEIGHT["w"])
    assert read["args"].kind == "argparse.Namespace"
    assert dict(read["args"]) == vars(settings)


STORED = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool,
          torch.complex64, torch.uint16, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_tensors_of_every_type_come_back_bit_for_bit(dtype):
    value = torch.arange(6).to(dtype).view(2, 3)
    content = {"w": value, "none": torch.empty(0, 3, dtype=dtype), "scalar": torch.tensor(1).to(dtype)}
    read = read_checkpoint(written(corpus.saved(content)))
    for key, expected in content.items():
        assert read[key].dtype == dtype
        assert read[key].shape == expected.shape
        assert torch.equal(read[key].flatten().view(torch.uint8), expected.flatten().view(torch.uint8))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_views_tied_weights_and_parameters_come_back(zipped):
    weight = torch.randn(4, 6)
    content = {
        "weight": weight, "tied": weight, "rows": weight[1:3], "transposed": weight.t(), "part": weight[1:, 2:4],
        "expanded": torch.randn(1, 3).expand(5, 3), "parameter": nn.Parameter(weight.clone()),
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False), "grad": torch.ones(2, requires_grad=True),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }  # fmt: skip
    read = read_checkpoint(written(corpus.saved(content, zipped=zipped)))
    for key, expected in content.items():
        assert torch.equal(read[key], expected), key
        assert read[key].stride() == expected.stride(), key
    assert read["tied"].data_ptr() == read["weight"].data_ptr()


def test_tensors_of_a_zip_and_of_safetensors_are_mapped_not_copied():
    big = {"w": torch.zeros(8 << 20)}
    for name, data in (("a.pth", corpus.saved(big)), ("a.safetensors", save(big))):
        read = read_checkpoint(written(data, name))
        assert Path(name).name in Path("/proc/self/maps").read_text()
        assert torch.equal(read["w"], big["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_weights_that_are_not_numbers_load_and_are_counted(dtype):
    weight = torch.tensor([1.0, float("nan"), float("inf")]).to(dtype)
    bad = 3 - int(weight.float().isfinite().sum())  # float8_e4m3fn has no infinity
    assert bad == (1 if dtype == torch.float8_e4m3fn else 2)
    path = written(corpus.saved({"conv1.weight": weight, "b": torch.ones(2)}))
    assert inspect_checkpoint(path)["not_finite"] == {"conv1.weight": bad}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_of_a_type_that_means_something_else_are_not_loaded(dtype):
    net = factory.build("resnet20", nn.ReLU, step_mode="s")
    weights = {**net.state_dict(), "layer1.0.conv1.weight": net.state_dict()["layer1.0.conv1.weight"].to(dtype)}
    path = written(corpus.saved(weights))
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight " + str(dtype).removeprefix("torch.")):
        factory.load_ann_weights(net, read_checkpoint(path), "file.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_weights_of_every_floating_type_are_loaded(dtype):
    net = factory.build("resnet20", nn.ReLU, step_mode="s")
    weight = net.state_dict()["layer1.0.conv1.weight"].to(dtype)
    factory.load_ann_weights(net, {**net.state_dict(), "layer1.0.conv1.weight": weight}, "file.pth")
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], weight.float())
