"""The forms in which weights are stored."""

import copy
from functools import partial

import numpy as np
import torch
from making import loaded, small, write_old, write_pickle, write_safetensors, write_script
from networks import Akamaster, prepared, seeded
from rows import Row
from torch import nn
from torch.nn.utils import fusion, parametrizations, prune


def changed(change):
    """A network whose weights `change` keeps in another form."""

    def make():
        net = seeded(Akamaster)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                change(module)
        return net

    return make


def with_biases(net):
    """The same network, with a bias in every convolution."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                other = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding,
                                  child.dilation, child.groups)  # fmt: skip
                setattr(module, name, other)
    return prepared(net)


def folded(net):
    """The network with each BN folded into the convolution before it, as `fuse_conv_bn` of inference tools does."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        children = dict(module.named_children())
        for before, behind in zip(list(children), list(children)[1:], strict=False):
            if isinstance(children[before], nn.Conv2d) and isinstance(children[behind], nn.BatchNorm2d):
                setattr(module, before, fusion.fuse_conv_bn_eval(children[before], children[behind]))
                setattr(module, behind, nn.Identity())
    return net


def numpy_arrays(net):
    return {key: value.numpy() for key, value in net.state_dict().items()}


def quantized(net):
    return {key: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8) if value.ndim == 4 else value
            for key, value in net.state_dict().items()}  # fmt: skip


def rounded(net, dtype):
    """The network with its weights rounded to a type, which are then saved in it."""
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(dtype))
    return net


def typed(dtype):
    return loaded(
        "resnet20", lambda: rounded(seeded(Akamaster), dtype), lambda net: copy.deepcopy(net).to(dtype).state_dict()
    )


ROWS = [
    Row(
        "safetensors",
        "github.com/huggingface/safetensors",
        loaded("resnet20", partial(seeded, Akamaster), write=write_safetensors),
    ),
    Row(
        "torch.save before 1.6",
        "pytorch.org, torch.save",
        loaded("resnet20", partial(seeded, Akamaster), write=write_old),
    ),
    Row(
        "a pickle of a state dict",
        "discuss.pytorch.org, pickle.dump of weights",
        loaded("resnet20", partial(seeded, Akamaster), write=write_pickle),
    ),
    Row(
        "a pickle of protocol 2",
        "discuss.pytorch.org, pickle.dump of weights",
        loaded("resnet20", partial(seeded, Akamaster), write=partial(write_pickle, protocol=2)),
    ),
    Row(
        "a pickle of NumPy arrays",
        "github.com/facebookresearch/detectron2, model zoo",
        loaded(
            "resnet20",
            partial(seeded, Akamaster),
            lambda net: {"model": numpy_arrays(net), "__author__": "somebody"},
            write_pickle,
        ),
    ),
    Row(
        "NumPy arrays in a file of torch.save",
        "github.com/ruotianluo/pytorch-resnet",
        loaded("resnet20", partial(seeded, Akamaster), numpy_arrays),
    ),
    Row(
        "a whole module",
        "discuss.pytorch.org, torch.save(model)",
        loaded("resnet20", partial(seeded, Akamaster), lambda net: net),
    ),
    Row(
        "a whole module in DataParallel",
        "discuss.pytorch.org, torch.save(model)",
        loaded("resnet20", partial(seeded, Akamaster), nn.DataParallel),
    ),
    Row(
        "a TorchScript archive",
        "pytorch.org, torch.jit.save",
        loaded("resnet20", partial(seeded, Akamaster), lambda net: net, write_script),
    ),
    Row("half precision", "pytorch.org, model.half()", typed(torch.float16)),
    Row("bfloat16", "pytorch.org, model.bfloat16()", typed(torch.bfloat16)),
    Row(
        "double precision",
        "pytorch.org, model.double()",
        loaded("resnet20", partial(seeded, Akamaster), lambda net: copy.deepcopy(net).double().state_dict()),
    ),
    Row(
        "pruned",
        "pytorch.org, Pruning Tutorial",
        loaded("resnet20", changed(lambda module: prune.l1_unstructured(module, "weight", 0.3))),
    ),
    Row(
        "weight-normed",
        "pytorch.org, torch.nn.utils.parametrizations.weight_norm",
        loaded("resnet20", changed(parametrizations.weight_norm)),
    ),
    Row(
        "spectrally normed",
        "pytorch.org, torch.nn.utils.parametrizations.spectral_norm",
        loaded("resnet20", changed(parametrizations.spectral_norm)),
    ),
    Row(
        "a bias in every convolution",
        "github.com/KaimingHe/deep-residual-networks, converted",
        loaded("resnet20", lambda: with_biases(seeded(Akamaster))),
    ),
    Row(
        "a bias in the first convolution",
        "github.com/ruotianluo/pytorch-resnet",
        loaded("resnet18", lambda: with_first_bias(small())),
    ),
    Row(
        "BN folded into its convolutions",
        "github.com/pytorch/pytorch, torch.nn.utils.fusion",
        loaded("resnet18", lambda: folded(small())),
    ),
    Row(
        "BN folded, CIFAR",
        "github.com/pytorch/pytorch, torch.nn.utils.fusion",
        loaded("resnet20", lambda: folded(seeded(Akamaster))),
    ),
    Row(
        "BN folded, bottlenecks",
        "github.com/DingXiaoH/RepVGG, deployed",
        loaded("resnet50", lambda: folded(small("resnet50"))),
    ),
    Row(
        "quantized tensors",
        "pytorch.org, torch.ao.quantization",
        loaded("resnet20", partial(seeded, Akamaster), quantized),
        "quantized tensors",
    ),
    Row(
        "integer weights",
        "github.com/pytorch/ao",
        loaded(
            "resnet20",
            partial(seeded, Akamaster),
            lambda net: {
                key: value.to(torch.int8) if value.ndim == 4 else value for key, value in net.state_dict().items()
            },
        ),
        "dequantize them first",
    ),
    Row(
        "a Keras file",
        "keras.io",
        loaded(
            "resnet20",
            lambda: b"\x89HDF\r\n\x1a\n" + bytes(99),
            lambda net: net,
            lambda content, file: file.write_bytes(content),
        ),
        "HDF5",
    ),
    Row(
        "a Git LFS pointer",
        "git-lfs.com",
        loaded(
            "resnet20",
            lambda: b"version https://git-lfs.github.com/spec/v1\n",
            lambda net: net,
            lambda content, file: file.write_bytes(content),
        ),
        "git lfs pull",
    ),
    Row(
        "an archive of NumPy arrays",
        "numpy.org, numpy.savez",
        loaded(
            "resnet20",
            lambda: seeded(Akamaster),
            numpy_arrays,
            lambda content, file: np.savez(file.open("wb"), **content),
        ),
        "not one of torch.save",
    ),
]


def with_first_bias(net):
    first = net.conv1
    net.conv1 = nn.Conv2d(first.in_channels, first.out_channels, first.kernel_size, first.stride, first.padding)
    return prepared(net)
