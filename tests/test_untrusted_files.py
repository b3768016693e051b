"""Files as torch.save, torch.jit.save and others write them: their weights are read, and nothing is run."""

import collections
import datetime
import enum
import io
import pathlib
import pickle
import struct
import tarfile

import hostile_corpus as corpus
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from snnzoo.checkpoints.files import file_format, read_checkpoint
from snnzoo.checkpoints.wrapping import unwrap
from snnzoo.errors import CheckpointError
from snnzoo.recognition.ann import load_ann


def network():
    """With tied weights, a buffer that is not kept, None among parameters, and modules in modules."""
    torch.manual_seed(0)
    net = nn.Sequential(
        collections.OrderedDict(
            conv1=nn.Conv2d(3, 4, 3, bias=False),
            bn1=nn.BatchNorm2d(4),
            layer1=nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4, affine=False)),
            fc=nn.Linear(4, 4),
        )
    )
    net.register_buffer("positions", torch.arange(4), persistent=False)
    net.fc2 = nn.Linear(4, 4)
    net.fc2.weight = net.fc.weight
    net.training = False
    return net


def saved(content, path="file.pt", **kwargs):
    path = pathlib.Path(path)
    torch.save(content, path, **kwargs)
    return path


def assert_same(read, expected):
    assert list(read) == list(expected)
    for key, value in expected.items():
        assert type(read[key]) is torch.Tensor, key
        assert read[key].dtype == value.dtype, key
        assert torch.equal(read[key], value), key


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FORMS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    **{f"protocol {number}": {"pickle_protocol": number} for number in (3, 4, 5)},
    "legacy, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


@pytest.mark.parametrize("form", FORMS)
def test_state_dicts_of_every_protocol_are_read(form):
    expected = network().state_dict()
    assert_same(read_checkpoint(saved(expected, **FORMS[form])), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "DataParallel"])
def test_whole_modules_are_read_as_their_state_dicts(form, wrapped):
    net = nn.DataParallel(network()) if wrapped else network()
    read = read_checkpoint(saved(net, **FORMS[form]))
    assert_same(read, net.state_dict())
    assert_same(unwrap(read, "file").state_dict, network().state_dict())


def test_a_whole_module_in_a_training_checkpoint_is_read():
    net = torchvision.models.resnet18(num_classes=10)
    found = unwrap(read_checkpoint(saved({"model": net, "epoch": 3, "optimizer": None})), "file")
    assert_same(found.state_dict, net.state_dict())
    assert found.wrapping == ("model",)
    assert found.extra["epoch"] == 3


class Learner:
    """As fastai's: no module, but it has one, and callbacks that have it."""

    def __init__(self, model):
        self.model = model
        self.callbacks = [self]


def test_an_object_that_trains_a_module_is_read_as_that_module():
    net = torchvision.models.resnet18(num_classes=10)
    found = unwrap(read_checkpoint(saved(Learner(net))), "file")
    assert_same(found.state_dict, net.state_dict())
    assert found.wrapping == ("model",)


def test_a_whole_module_around_another_is_read():
    net = torchvision.models.resnet18(num_classes=10)
    for whole in (torch.optim.swa_utils.AveragedModel(net), nn.Sequential(collections.OrderedDict(model=net))):
        assert_same(unwrap(read_checkpoint(saved(whole)), "file").state_dict, net.state_dict())


def test_a_graph_module_is_read():
    net = torch.fx.symbolic_trace(torchvision.models.resnet18(num_classes=2))
    assert_same(read_checkpoint(saved(net)), net.state_dict())


@pytest.mark.parametrize("form", ["script", "trace"])
def test_torchscript_archives_are_read_without_their_code(form):
    net = torchvision.models.resnet18(num_classes=10).eval()
    scripted = torch.jit.script(net) if form == "script" else torch.jit.trace(net, torch.zeros(1, 3, 32, 32))
    torch.jit.save(scripted, "file.pt")
    read = read_checkpoint(pathlib.Path("file.pt"))
    assert set(read) == set(net.state_dict())
    assert all(torch.equal(read[key], value) for key, value in net.state_dict().items())


class Colour(enum.Enum):
    RED = 1


class Settings(dict):
    """As EasyDict and its like: a dict with attributes."""

    def __init__(self, **values):
        super().__init__(values)
        self.__dict__ = self


class HistoryBuffer:
    """As mmengine's: arrays, and functions by their names."""

    def __init__(self):
        self._log_history, self._count_history, self._max_length = np.array([0.5, 0.25]), np.array([1, 1]), 1_000_000
        self._statistics_methods = collections.OrderedDict(mean=HistoryBuffer.mean)

    def mean(self):
        return self._log_history.mean()


def beside():
    return {
        "numpy scalar": np.float64(91.25),
        "numpy array": np.random.default_rng(0).standard_normal((50, 3)),
        "path": pathlib.PurePosixPath("/data/imagenet"),
        "defaultdict": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2], maxlen=3),
        "date": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        "enum": Colour.RED,
        "class": nn.Conv2d,
        "dtype": torch.float16,
        "shape": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "generator": torch.random.get_rng_state(),
        "set": {1, "a"},
        "frozenset": frozenset({1}),
        "complex": 1j,
        "bytes": b"\xff",
        "bytearray": bytearray(b"abc"),
        "range": range(3),
        "slice": slice(1, 2),
        "counter": collections.Counter("aab"),
        "dict of any key": {(1, 2): 3, None: 4, Colour.RED: 5, torch.float32: 6, 1 << 80: 7, "\n": 8},
        "settings": Settings(lr=0.1, nested=Settings(a=1)),
        "history": {"train/loss": HistoryBuffer()},
        "module": nn.Linear(2, 2),
        "optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1),
        "itself": itself(),
        "large number": 1 << 20_000,
    }


def itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", beside())
def test_what_lies_beside_the_weights_keeps_them_from_nobody(name, form):
    expected = network().state_dict()
    path = saved({"state_dict": expected, "epoch": 7, "other": beside()[name]}, **FORMS[form])
    found = unwrap(read_checkpoint(path), "file")
    assert_same(found.state_dict, expected)
    assert found.extra["epoch"] == 7


def test_settings_of_other_libraries_keep_weights_from_nobody():
    omegaconf = pytest.importorskip("omegaconf")
    settings = omegaconf.OmegaConf.create({"lr": 0.1, "data": {"sizes": [1, 2]}, "name": "${lr}"})
    found = unwrap(read_checkpoint(saved({"state_dict": network().state_dict(), "hyper_parameters": settings})), "file")
    assert_same(found.state_dict, network().state_dict())


def test_parameters_and_buffers_with_attributes_are_read_as_tensors():
    parameter = nn.Parameter(torch.ones(2, 3))
    parameter.no_weight_decay = True
    tensor = torch.arange(3.0)
    tensor.note = "attribute"
    content = {"a.weight": parameter, "a.bias": tensor, "a.frozen": nn.Parameter(torch.ones(1), requires_grad=False)}
    if hasattr(nn, "Buffer"):
        content["a.running_mean"] = nn.Buffer(torch.zeros(2))
    for form in FORMS.values():
        assert_same(read_checkpoint(saved(content, **form)), content)


REFUSED = {
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized tensors"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "sparse tensors"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "sparse tensors"),
    "without data": (lambda: torch.empty(3, device="meta"), "tensors without data"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested tensors"),
    "a conjugated view": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_of_another_kind_are_refused_by_name(kind):
    make, text = REFUSED[kind]
    with pytest.raises(CheckpointError, match=rf"^file\.pt: holds .*{text}"):
        read_checkpoint(saved({"conv1.weight": make()}))


def test_text_of_python_2_that_is_not_utf8_is_read():
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
    weight = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x04\x85K\x01\x85\x89"
    weight += b"ccollections\nOrderedDict\n](](U\x01aK\x01ee\x85RtR"
    data = b"\x80\x02}(U\x06name-\xe9" + weight + b"U\x05place" + b"U\x05caf\xe9!" + b"u."
    path = pathlib.Path("file.pth")
    path.write_bytes(corpus.zip_of_pickle(data))
    read = read_checkpoint(path)
    assert torch.equal(read["name-é"], torch.zeros(4))
    assert read["place"] == "café!"


def tar_of(tensors, content, storages, views=()):
    """The bytes that torch.save wrote before 0.1.10; `content` is a pickle that speaks of the tensors' numbers."""
    buffer = io.BytesIO()
    storage_part = pickle.dumps(len(storages), 2)
    for key, numbers in storages.items():
        storage_part += pickle.dumps((key, "cpu", torch.FloatStorage), 2) + struct.pack("<q", len(numbers))
        storage_part += torch.tensor(numbers).numpy().tobytes()
    storage_part += pickle.dumps(list(views), 2)
    tensor_part = pickle.dumps(len(tensors), 2)
    for key, (storage, shape, stride, offset) in tensors.items():
        tensor_part += pickle.dumps((key, storage, torch.FloatTensor), 2) + struct.pack("<q", len(shape))
        tensor_part += struct.pack(f"<{2 * len(shape) + 1}q", *shape, *stride, offset)
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in {
            "sys_info": b"",
            "pickle": content,
            "tensors": tensor_part,
            "storages": storage_part,
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Named(pickle.Pickler):
    def persistent_id(self, value):
        return str(value.number) if isinstance(value, Number) else None


class Number:
    def __init__(self, number):
        self.number = number


def test_the_tar_format_of_old_is_read_as_torch_reads_it():
    buffer = io.BytesIO()
    Named(buffer, 2).dump({"a.weight": Number(10), "b.weight": Number(11), "epoch": 3})
    tensors = {10: (1, (2, 3), (3, 1), 0), 11: (2, (2,), (2,), 1)}
    path = pathlib.Path("file.pth")
    path.write_bytes(tar_of(tensors, buffer.getvalue(), {1: [0.0, 1, 2, 3, 4, 5]}, views=[(2, 1, 1, 4)]))
    assert file_format(path) == "tar"
    read, expected = read_checkpoint(path), torch.load(path, weights_only=False)
    assert read["epoch"] == expected.pop("epoch") == 3
    assert read["b.weight"].tolist() == [2, 4]
    assert_same({key: value for key, value in read.items() if key != "epoch"}, expected)
    for broken in ({10: (1, (2, 4), (4, 1), 0)}, {10: (7, (2,), (1,), 0)}, {10: (1, (-2,), (1,), 0)}):
        path.write_bytes(tar_of(broken, buffer.getvalue(), {1: [0.0, 1, 2, 3, 4, 5]}))
        with pytest.raises(CheckpointError, match=r"^file\.pth: "):
            read_checkpoint(path)


def test_what_is_written_to_a_tensor_does_not_reach_the_file():
    path = saved({"w": torch.ones(4)})
    before = path.read_bytes()
    read_checkpoint(path)["w"].fill_(5)
    assert path.read_bytes() == before


@torch.inference_mode()
@pytest.mark.parametrize("form", ["a module", "TorchScript"])
def test_a_whole_network_is_loaded_with_equal_logits(form):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10).eval()
    if form == "TorchScript":
        torch.jit.save(torch.jit.script(net), "file.pt")
    else:
        saved(net)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load_ann("resnet18", checkpoint="file.pt")(images), net(images), rtol=0, atol=1e-5)
