"""Events, synaptic operations and energy against counts made one by one."""

import itertools

import pytest
import torch
from torch import nn

import snnzoo
from snnzoo import functional
from snnzoo.codings import Delta, Differential, Rate, Signed
from snnzoo.evaluation.activity import Activity, ActivityMeter, fan_out
from snnzoo.evaluation.energy import ann_energy, snn_energy
from snnzoo.models.base import SpikingNet
from snnzoo.models.resnet import BasicBlock, conv3x3, make_stage, projection
from snnzoo.neuron import MultiStepIFNode


def operations_one_by_one(conv, x):
    """Walk over every output and every weight that it uses, and count the weights that meet an event: x [C, H, W]."""
    height, width = conv(x[None]).shape[2:]
    in_group, out_group = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    (pad_y, pad_x) = (
        conv.padding
        if isinstance(conv.padding, tuple)
        else [
            d * (k - 1) // 2 if conv.padding == "same" else 0
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
        nn.Conv2d(4, 2, 3, stride=2, padding="valid"),
    ],
    ids=str,
)
def test_each_event_counts_as_often_as_the_convolution_uses_it(conv):
    x = (torch.rand(4, 7, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    fan = fan_out(conv, x.shape, conv(x[None]).shape[1:])
    assert int((x.count_nonzero(0) * fan).sum()) == operations_one_by_one(conv, x)


def test_an_event_reaches_every_output_of_a_linear_layer():
    assert fan_out(nn.Linear(5, 7), [5], [7]).tolist() == [7]


class SmallNet(SpikingNet):
    """A stem and two blocks; the second has stride 2 and a projection."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.sn1 = conv3x3(2, 4), nn.BatchNorm2d(4), MultiStepIFNode()
        self.layer1 = make_stage(lambda *a: BasicBlock(*a, MultiStepIFNode), 4, 4, 4, 1, 1)
        self.layer2 = make_stage(lambda *a: BasicBlock(*a, MultiStepIFNode), 4, 6, 6, 1, 2, projection)
        self.avgpool, self.readout, self.fc = nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Linear(6, 3)
        self.initialise("m")

    def stem(self, x):
        return self.sn1(self.stateless(x, self.conv1, self.bn1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SmallNet().eval()


IMAGES = torch.rand(3, 2, 6, 7, generator=torch.Generator().manual_seed(1)) * 3


def measured(net, *pieces, **options):
    meter = ActivityMeter(net, **options)
    functional.reset_net(net)
    with torch.no_grad(), meter:
        for piece in pieces:
            net(piece)
    functional.reset_net(net)
    return meter.activity


def layer_inputs(net, x_seq):
    """What each convolution sees, `{name: [T * N, C, H, W]}`."""
    seen = {}
    convs = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    handles = [
        conv.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        for name, conv in convs.items()
    ]
    functional.reset_net(net)
    with torch.no_grad():
        net(x_seq)
    for handle in handles:
        handle.remove()
    return {name: (convs[name], seen[name]) for name in convs}


def test_synaptic_operations_of_a_network_equal_those_counted_one_by_one(net):
    x_seq = IMAGES.expand(4, *IMAGES.shape)
    activity = measured(net, x_seq)
    assert set(activity.operations) == {
        "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0",
    }  # fmt: skip
    for name, (conv, x) in layer_inputs(net, x_seq).items():
        assert activity.dense[name] == operations_one_by_one(conv, torch.ones_like(x[0]))
        if name != "conv1":
            by_hand = [sum(operations_one_by_one(conv, image) for image in step) for step in x.unflatten(0, (4, 3))]
            assert activity.operations[name] == by_hand
            assert sum(by_hand) > 0
    assert activity.dense["fc"] == 18
    assert activity.synaptic_operations(2) == sum(sum(o[:2]) for o in activity.operations.values()) / 3


def test_events_are_the_non_zero_outputs_of_neurons(net):
    x_seq = IMAGES.expand(4, *IMAGES.shape)
    sent = {}
    for name in ("sn1", "layer1.0.sn1", "layer1.0.sn2", "layer2.0.sn1", "layer2.0.sn2"):
        net.get_submodule(name).register_forward_hook(lambda _m, _i, y, name=name: sent.update({name: y}))
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
    conv, x = layer_inputs(net, events)["conv1"]
    by_hand = [sum(operations_one_by_one(conv, image) for image in step) for step in x.unflatten(0, (2, 3))]
    assert activity.operations["conv1"] == by_hand
    assert activity.dense_operations(analog_only=True) == 18


def test_a_batch_that_fails_is_not_counted(net):
    meter = ActivityMeter(net)
    with pytest.raises(ValueError, match="needs an input"), meter:
        net(IMAGES)
    assert meter.activity == Activity()


def test_energy_is_the_operations_times_their_price():
    activity = Activity(
        images=2,
        neurons={"sn1": 10},
        dense={"conv1": 100, "conv2": 1000, "fc": 20},
        events={"sn1": [8, 2]},
        operations={"conv2": [500, 300]},
    )
    assert ann_energy(activity) == pytest.approx(1120 * 4.6e-6)
    assert snn_energy(activity, 1) == pytest.approx((120 * 4.6 + 250 * 0.9) * 1e-6)
    assert snn_energy(activity, 2, event_bits=3) == pytest.approx((120 * 4.6 + 3 * 400 * 0.9) * 1e-6)


def test_bits_of_an_event_are_those_of_its_size():
    assert [Delta(levels).event_bits for levels in (1, 2, 3, 4, 7, 8)] == [1, 2, 2, 3, 3, 4]
    assert [Differential(levels).event_bits for levels in (1, 2, 4, 5, 8)] == [1, 1, 2, 3, 3]
    assert (Rate().event_bits, Signed().event_bits) == (1, 1)


def test_a_resnet18_has_the_multiply_accumulates_that_are_published():
    """1.81 G with padding counted (torchvision's table); at 224 pixels padding is 7 % of them."""
    net = snnzoo.create_model("resnet18", neuron=nn.ReLU).eval()
    total = measured(net, torch.zeros(1, 1, 3, 224, 224)).dense_operations()
    assert 0.92 * 1.814e9 < total < 1.814e9
