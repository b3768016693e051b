"""Events, synaptic operations and energy against counts made one by one."""

import itertools

import pytest
import torch
from torch import nn

import snnzoo
from snnzoo import functional
from snnzoo.codings import Delta, Differential, Rate, Signed
from snnzoo.energy import NetworkFacts
from snnzoo.evaluation.activity import Activity, ActivityMeter, fan_out
from snnzoo.evaluation.costs import ann_energy, snn_energy
from snnzoo.graph import Node
from snnzoo.graph.trained import as_graph
from snnzoo.inference import engine
from snnzoo.models.base import SpikingNet
from snnzoo.models.resnet import BasicBlock, conv3x3, make_stage, projection
from snnzoo.neuron import MultiStepIFNode
from snnzoo.ops import count_events


def operations_one_by_one(conv, x):
    """Walk over every output and every weight that it uses, and count the weights that meet an event: x [C, H, W]."""
    height, width = conv(x[None].float()).shape[2:]
    in_group, out_group = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    (pad_y, pad_x) = (
        conv.padding
        if isinstance(conv.padding, tuple)
        else [
            d * (k - 1) // 2 if conv.padding == "same" else 0  # an odd one is at the end
            for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        ]
    )
    count = 0
    for out, oy, ox in itertools.product(range(conv.out_channels), range(height), range(width)):
        for c, ky, kx in itertools.product(range(in_group), *map(range, conv.kernel_size)):
            y = oy * conv.stride[0] - pad_y + ky * conv.dilation[0]
            x_ = ox * conv.stride[1] - pad_x + kx * conv.dilation[1]
            inside = 0 <= y < x.shape[1] and 0 <= x_ < x.shape[2]
            count += inside and x[out // out_group * in_group + c, y, x_].item() != 0
    return count


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, (3, 5), stride=(2, 3), padding=(0, 2), dilation=(2, 1), groups=4),
        nn.Conv2d(4, 2, 7, stride=3, padding=3),
        nn.Conv2d(4, 2, 3, dilation=2, padding="same"),
        nn.Conv2d(4, 2, (2, 4), padding="same"),
        nn.Conv2d(4, 2, 3, stride=2, padding="valid"),
        nn.Conv2d(4, 2, 3, stride=5, padding=4),
    ],
    ids=str,
)
def test_each_event_counts_as_often_as_the_convolution_uses_it(conv):
    x = (torch.rand(4, 7, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    names = ("stride", "padding", "dilation", "groups")
    node = Node("conv", "conv2d", ("input",), {name: getattr(conv, name) for name in names})
    fan = fan_out(node, conv.weight.shape, x.shape, conv(x[None]).shape[1:])
    assert int((x.count_nonzero(0) * fan).sum()) == operations_one_by_one(conv, x)


def test_an_event_reaches_every_output_of_a_linear_layer():
    assert fan_out(Node("fc", "linear", ("input",)), [7, 5], [5], [7]).tolist() == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 6), (2, 3, 4, 5, 6)])
def test_non_zeros_are_counted_whatever_their_order_in_memory(dtype, shape):
    x_seq = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = (x_seq != 0).sum((1, 2))
    assert torch.equal(count_events(x_seq), expected)
    assert torch.equal(count_events(x_seq.movedim(2, -1).contiguous().movedim(-1, 2)), expected)
    assert torch.equal(count_events(x_seq[:1].expand(4, *shape[1:])), expected[:1].expand(4, *shape[3:]))


class SmallNet(SpikingNet):
    """A stem and two blocks; the second has stride 2 and a projection."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.sn1 = conv3x3(2, 4), nn.BatchNorm2d(4), MultiStepIFNode()
        self.layer1 = make_stage(lambda *a: BasicBlock(*a, MultiStepIFNode), 4, 4, 4, 1, 1, projection)
        self.layer2 = make_stage(lambda *a: BasicBlock(*a, MultiStepIFNode), 4, 6, 6, 1, 2, projection)
        self.avgpool, self.readout, self.fc = nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Linear(6, 3)
        self.initialise("m")

    def stem(self, x):
        return self.sn1(self.stateless(x, self.conv1, self.bn1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return as_graph(SmallNet().eval())


IMAGES = torch.rand(3, 2, 6, 7, generator=torch.Generator().manual_seed(1)) * 3


def measured(net, *pieces, **options):
    meter = ActivityMeter(net, **options)
    functional.reset_net(net)
    with torch.no_grad(), meter:
        for piece in pieces:
            net.run(piece, meter.watch)
    functional.reset_net(net)
    return meter.activity


def watched(net, x_seq):
    """For each node's path, its inputs and its value."""
    seen = {}
    functional.reset_net(net)
    with torch.no_grad():
        net.run(x_seq, lambda node, inputs, value: seen.update({node.path: (inputs, value)}))
    functional.reset_net(net)
    return seen


def as_module(net, node):
    """A convolution node as PyTorch's module."""
    weight = net.tensors()[node.parameters["weight"]]
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in node.settings.items()}
    return nn.Conv2d(weight.shape[1] * settings["groups"], len(weight), tuple(weight.shape[2:]), **settings)


def layer_inputs(net, x_seq):
    """Each convolution and what it sees, `{path: (conv, [T, N, C, H, W])}`."""
    seen = watched(net, x_seq)
    convs = [node for node in net.graph if node.operation == "conv2d"]
    return {node.path: (as_module(net, node), seen[node.path][0][0]) for node in convs}


def counted_one_by_one(conv, x_seq):
    return [sum(operations_one_by_one(conv, image) for image in step) for step in x_seq]


def test_synaptic_operations_of_a_network_equal_those_counted_one_by_one(net):
    x_seq = IMAGES.expand(4, *IMAGES.shape)
    activity = measured(net, x_seq)
    assert set(activity.operations) == {
        "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0",
    }  # fmt: skip
    for name, (conv, x) in layer_inputs(net, x_seq).items():
        assert activity.dense[name] == operations_one_by_one(conv, torch.ones_like(x[0, 0]))
        if name != "conv1":
            assert activity.operations[name] == counted_one_by_one(conv, x)
            assert sum(activity.operations[name]) > 0
    assert activity.dense["fc"] == 18
    assert activity.synaptic_operations(2) == sum(sum(o[:2]) for o in activity.operations.values()) / 3


def test_events_are_the_non_zero_outputs_of_neurons(net):
    x_seq = IMAGES.expand(4, *IMAGES.shape)
    seen = watched(net, x_seq)
    sent = {name: seen[name][1] for name in ("sn1", "layer1.0.sn1", "layer1.0.sn2", "layer2.0.sn1", "layer2.0.sn2")}
    activity = measured(net, x_seq)
    assert activity.events == {name: [int(step.count_nonzero()) for step in y] for name, y in sent.items()}
    assert activity.neurons == {name: y[0, 0].numel() for name, y in sent.items()}
    rate = sum(y[:3].count_nonzero().item() for y in sent.values()) / sum(y[:3].numel() for y in sent.values())
    assert activity.events_per_neuron_step(3) == pytest.approx(rate)
    assert activity.event_rates()["sn1"][1] == pytest.approx(
        sent["sn1"][1].count_nonzero().item() / sent["sn1"][1].numel()
    )


def test_a_sequence_in_pieces_and_images_in_batches_count_as_the_whole(net):
    whole = measured(net, IMAGES.expand(4, *IMAGES.shape))
    assert measured(net, IMAGES.expand(3, *IMAGES.shape), IMAGES.expand(1, *IMAGES.shape)) == whole
    parts = Activity()
    for image in IMAGES.split(2):
        parts.add(measured(net, image.expand(4, *image.shape)))
    assert parts == whole
    assert Activity(**parts.to_dict()) == whole


def test_the_first_layer_counts_where_the_input_is_events(net):
    events = (IMAGES.expand(2, *IMAGES.shape) > 1.5).float()
    activity = measured(net, events, input_events=True)
    assert activity.operations["conv1"] == counted_one_by_one(*layer_inputs(net, events)["conv1"])
    assert activity.dense_operations(analog_only=True) == 18


def test_a_batch_that_fails_is_not_counted(net):
    meter = ActivityMeter(net)

    def run_and_fail():
        with meter:
            net.run(IMAGES.expand(2, *IMAGES.shape), meter.watch)
            raise MemoryError

    with pytest.raises(MemoryError):
        run_and_fail()
    assert meter.activity == Activity()
    assert measured(net, IMAGES.expand(2, *IMAGES.shape)).images == 3


def test_energy_is_the_operations_times_their_price():
    activity = Activity(
        images=2,
        neurons={"sn1": 10},
        dense={"conv1": 100, "conv2": 1000, "fc": 20},
        events={"sn1": [8, 2]},
        operations={"conv2": [500, 300]},
        sizes={name: [1, 1, 1] for name in ("conv1", "conv2", "fc")},
    )
    assert ann_energy(activity) == pytest.approx(1120 * 4.6e-6)
    assert snn_energy(activity, NetworkFacts(1)) == pytest.approx((120 * 4.6 + 250 * 0.9) * 1e-6)
    assert snn_energy(activity, NetworkFacts(2, event_bits=3)) == pytest.approx((120 * 4.6 + 3 * 400 * 0.9) * 1e-6)


def test_bits_of_an_event_are_those_of_its_size():
    assert [Delta(levels).event_bits for levels in (1, 2, 3, 4, 7, 8)] == [1, 2, 2, 3, 3, 4]
    assert [Differential(levels).event_bits for levels in (1, 2, 4, 5, 8)] == [1, 1, 2, 3, 3]
    assert (Rate().event_bits, Signed().event_bits) == (1, 1)


def test_a_resnet18_has_the_multiply_accumulates_that_are_published():
    """1.81 G with padding counted (torchvision's table); at 224 pixels padding is 7 % of them."""
    net = as_graph(snnzoo.create_model("resnet18", neuron="if").eval())
    total = measured(net, torch.zeros(1, 1, 3, 224, 224)).dense_operations()
    assert 0.92 * 1.814e9 < total < 1.814e9


class Everything(nn.Module):
    """A product, pools, a sum and a join between neurons and layers; a layer called twice, and one without a module."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.shared, self.gate = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Linear(4, 4)
        self.bn, self.joined = nn.BatchNorm2d(4), nn.Conv2d(8, 3, 3, stride=2, padding=1)
        self.weight = nn.Parameter(torch.randn(3, 3, 2, 2))
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        x = torch.relu(self.second(self.first(x)))  # two layers before any neuron
        y = torch.relu(self.bn(self.shared(x)))
        gate = torch.sigmoid(self.gate(y.mean((2, 3))))  # sees means of spikes
        z = torch.relu(self.shared(x + y * gate[:, :, None, None]))  # sees a sum with a product, by the same weights
        z = nn.functional.max_pool2d(torch.cat([z, nn.functional.avg_pool2d(y, 3, 1, 1)], 1), 2)
        z = torch.relu(nn.functional.conv2d(self.joined(z), self.weight))  # no neuron between the two
        return self.fc(z.mean((2, 3)))


@pytest.mark.parametrize("recipe", ["delta", "differential"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int8], ids=str)
def test_whatever_is_between_neurons_and_a_layer_counts_by_its_non_zeros(recipe, dtype):
    torch.manual_seed(0)
    ann = Everything().double().eval()
    net = snnzoo.convert(ann, torch.randn(8, 2, 8, 8).double(), recipe, levels=4, time_steps=4)
    fast = snnzoo.prepare_for_inference(net, dtype=dtype)
    x_seq = torch.randn(2, 2, 8, 8).to(fast.dtype).expand(engine.STEPS_AT_ONCE + 1, 2, 2, 8, 8)  # in two pieces
    meter = ActivityMeter(fast.network)
    with meter:
        fast(x_seq, meter.watch)
    activity = meter.activity

    graph, seen = fast.network.graph, {}

    def keep(node, inputs, value):
        if node.row.weighted:
            seen.setdefault(node.name, []).append(inputs[0].clone())

    fast(x_seq, keep)
    assert set(activity.dense) == {"first", "second", "shared", "gate", "shared@1", "joined", "conv2d", "fc"}
    assert set(activity.operations) == {"shared", "gate", "shared@1", "joined", "conv2d"}
    calls = iter(["shared", "shared@1"])
    for node in graph:
        layer = next(calls) if node.path == "shared" and node.row.weighted else node.path or "conv2d"
        if node.row.weighted and layer in activity.operations:
            x = torch.cat(seen[node.name])
            if node.operation == "linear":
                by_hand = [int(step.count_nonzero()) * 4 for step in x]
            else:
                by_hand = counted_one_by_one(as_module(fast.network, node), x)
            assert activity.operations[layer] == by_hand
            assert sum(by_hand) > 0


def test_the_fast_form_counts_what_the_network_does():
    torch.manual_seed(0)
    net = snnzoo.convert(Everything().double().eval(), torch.randn(8, 2, 8, 8).double(), levels=4, time_steps=4)
    fast = snnzoo.prepare_for_inference(net)
    x_seq = torch.randn(2, 2, 8, 8).double().expand(engine.STEPS_AT_ONCE + 1, 2, 2, 8, 8)
    meter = ActivityMeter(fast.network)
    with meter:
        fast(x_seq, meter.watch)
    expected = measured(net, x_seq)
    assert meter.activity.dense == expected.dense
    assert meter.activity.neurons == expected.neurons
    assert meter.activity.events == expected.events


def test_neurons_of_the_fast_form_count_only_while_a_meter_is_entered():
    torch.manual_seed(0)
    net = snnzoo.convert(Everything().double().eval(), torch.randn(8, 2, 8, 8).double(), levels=4, time_steps=2)
    fast = snnzoo.prepare_for_inference(net)
    x_seq, neuron = torch.randn(2, 2, 8, 8).double().expand(2, 2, 2, 8, 8), fast.network.neuron(net.sites[0].path)
    meter = ActivityMeter(fast.network)
    with meter:
        fast(x_seq, meter.watch)
        assert neuron.events is not None
    fast(x_seq)
    assert neuron.events is None
