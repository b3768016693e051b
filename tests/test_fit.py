"""What BN statistics tell: preprocessing, other data, another network with the same keys, weights that are none."""

import dataclasses
import json

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

import snnzoo
from snnzoo.cli.main import main
from snnzoo.conversion import capture_ann
from snnzoo.conversion.fitted import fitted
from snnzoo.data.preprocess import NORMALISATIONS, PRESETS, Preprocess
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.evaluation.evaluator import at_chance
from snnzoo.fit import Subject, best_fit, check, check_fit, measure_fit, search
from snnzoo.fit.variants import ROWS, prepared_anew
from snnzoo.graph.network import Ann

pytestmark = pytest.mark.usefixtures("limits")

GENERATOR = torch.Generator().manual_seed(0)
OWN = Preprocess(16, 16, *NORMALISATIONS["CIFAR-10"])
ROW = {row.name: row for row in ROWS}


def colours(images):
    """Smooth random pictures in [0, 1]: red bright and varied, blue dark and even."""
    coarse = torch.rand(images, 3, 4, 4, generator=GENERATOR)
    pictures = F.interpolate(coarse, size=16, mode="bilinear")
    return pictures * torch.tensor([0.8, 0.6, 0.3]).view(3, 1, 1) + torch.tensor([0.2, 0.1, 0.0]).view(3, 1, 1)


def with_statistics(net, images):
    """The network with the statistics of these images in its BN, in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0.2, 0.3)
    with torch.no_grad():
        for _ in range(3):  # what reaches a BN depends on those before it
            net.train()(images)
    return net.eval()


def trained(name, **options):
    """An ANN of the zoo whose BN has seen `colours` prepared as OWN."""
    torch.manual_seed(0)
    net = snnzoo.create_model(name, neuron=nn.ReLU, step_mode="s", num_classes=10, **options)
    return with_statistics(net, prepared(colours(128)))


def prepared(pixels, mean=OWN.mean, std=OWN.std):
    return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@pytest.fixture(scope="module")
def resnet20():
    return trained("resnet20")


@pytest.fixture(scope="module")
def pixels():
    return colours(64)


@pytest.fixture(scope="module")
def subject(resnet20, pixels):
    ann = capture_ann(resnet20, prepared(pixels))
    return Subject(ann.graph, ann.tensors(), prepared(pixels), OWN)


def divergence(subject, images):
    return measure_fit(subject.graph, subject.tensors, images).mean


# -- The measure -------------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_two_normal_distributions_for_each_channel_of_each_bn():
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double().eval()
    )
    norm = net[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    images = torch.randn(50, 3, 4, 4, dtype=torch.float64)
    reached = net[0](images).detach()
    eps, mean, variance = norm.eps, reached.mean((0, 2, 3)), reached.var((0, 2, 3), correction=0)
    p, q = (
        torch.distributions.Normal(m, (v + eps).sqrt())
        for m, v in ((mean, variance), (norm.running_mean, norm.running_var))
    )
    expected = torch.distributions.kl_divergence(p, q).mean().item()
    ann = capture_ann(net.float(), images.float())
    tensors = {key: value.double() for key, value in ann.tensors().items()}
    assert measure_fit(ann.graph, tensors, images).layers == pytest.approx({"1": expected}, rel=1e-6)


def test_images_in_batches_and_a_network_that_is_cut_give_the_same_figures(subject):
    whole = measure_fit(subject.graph, subject.tensors, subject.images)
    cut = measure_fit(subject.graph, subject.tensors, subject.images, layers=2)
    assert list(cut.layers.items()) == list(whole.layers.items())[:2]
    assert whole.images == 64


@pytest.mark.parametrize("images", [2, 8, 64])
def test_what_chance_gives_is_the_mean_divergence_of_samples(images):
    samples = torch.randn(40_000, images, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, variance = samples.mean(1), samples.var(1, correction=0)
    divergence = 0.5 * (variance + mean.square() - 1 - variance.log())
    assert check.by_chance(images) == pytest.approx(divergence.mean().item(), rel=0.03)


def test_one_image_whose_deepest_maps_are_one_pixel_is_not_refused_for_that(pixels):
    net = trained("resnet18")
    ann = capture_ann(net, prepared(pixels[:1]))
    assert check_fit(ann, prepared(pixels[:1])).mean > check.DOUBTFUL
    with pytest.raises(SnnzooError, match="nats"):
        check_fit(ann, pixels[:1] * 255)


def test_a_network_without_bn_has_no_figures():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    ann = capture_ann(net, torch.randn(2, 3, 4, 4))
    assert check_fit(ann, torch.randn(8, 3, 4, 4)) is None


# -- The verdict -------------------------------------------------------------------------------------------------------

RIGHT = {"as trained": lambda pixels: prepared(pixels), "few images": lambda pixels: prepared(pixels[:8])}
SAID = {
    "mean and std 0.5": lambda pixels: (pixels - 0.5) / 0.5,
    "no normalisation": lambda pixels: pixels,
    "noise": lambda pixels: torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("case", RIGHT)
def test_right_images_pass_without_a_word(resnet20, pixels, case):
    said = []
    images = RIGHT[case](pixels)
    check_fit(capture_ann(resnet20, images), images, notify=said.append)
    assert said == []


@pytest.mark.parametrize("case", SAID)
def test_wrong_images_are_said_with_figures_layers_and_causes(resnet20, pixels, case):
    said = []
    images = SAID[case](pixels)
    check_fit(capture_ann(resnet20, images), images, force=True, notify=said.append)
    (line,) = said
    assert "nats" in line
    assert "likely" in line
    assert "bn" in line


def test_pixels_up_to_255_are_refused_and_forced(resnet20, pixels):
    ann = capture_ann(resnet20, pixels)
    with pytest.raises(SnnzooError, match=r"nats.*normalisation.*--force-fit"):
        check_fit(ann, pixels * 255)
    said = []
    assert check_fit(ann, pixels * 255, force=True, notify=said.append).mean > 100
    assert len(said) == 1


def test_convert_and_evaluate_check_and_keep_the_figures(resnet20, pixels, tmp_path):
    images, labels = prepared(pixels[:16]), torch.zeros(16, dtype=torch.long)
    snn = snnzoo.convert(resnet20, images, time_steps=2, levels=7, gamma=0.5)
    snnzoo.save(snn, tmp_path / "net.safetensors")
    kept = snnzoo.load(tmp_path / "net.safetensors").conversion.fit
    assert kept == snn.conversion.fit
    assert kept["images"] == 16
    assert set(kept["layers"]) == {
        name for name, module in resnet20.named_modules() if isinstance(module, nn.BatchNorm2d)
    }
    assert snnzoo.evaluate(snn, resnet20, (images, labels), [1]).fit["mean"] == pytest.approx(kept["mean"], rel=0.01)
    with pytest.raises(SnnzooError, match="nats"):
        snnzoo.convert(resnet20, pixels * 255)
    with pytest.raises(SnnzooError, match="nats"):
        snnzoo.evaluate(snn, resnet20, (pixels[:16] * 255, labels), [1])
    with pytest.warns(UserWarning, match="nats"):
        snnzoo.convert(resnet20, pixels * 255, time_steps=2, gamma=0.5, check_fit=False)


def test_an_evaluations_figures_are_of_images_of_all_classes(resnet20, pixels):
    assert check.spread(640) == list(range(0, 640, 10))
    assert check.spread(3) == [0, 1, 2]


def test_a_fine_tuned_network_with_frozen_bn_is_said_not_refused(resnet20, pixels):
    tuned = {key: value.clone() for key, value in resnet20.state_dict().items()}
    for value in tuned.values():
        if value.ndim == 4:
            value += 0.3 * value.std() * torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    net = snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s", num_classes=10)
    net.load_state_dict(tuned)
    said = []
    check_fit(capture_ann(net.eval(), prepared(pixels)), prepared(pixels), notify=said.append)
    assert "frozen BN" in said[0]


@pytest.mark.parametrize(
    ("top1", "images", "chance"), [(0.1, 500, True), (0.12, 500, True), (0.2, 500, False), (0.5, 10, False)]
)
def test_chance_is_told_from_little(top1, images, chance):
    assert at_chance(top1, 10, images) is chance


def test_an_ann_at_chance_is_said(resnet20, pixels):
    images, labels = prepared(pixels), torch.arange(64) % 10
    snn = snnzoo.convert(resnet20, images, time_steps=1, gamma=0.5)
    said = []
    snnzoo.evaluate(snn, resnet20, (images, labels), [1], notify=said.append)
    assert "at chance" in said[-1]


# -- Weights that cannot be right --------------------------------------------------------------------------------------


def _spoil(net, key, value):
    net.state_dict()[key].view(-1)[0] = value


SPOILT = {
    "NaN weight": ("conv1.weight", float("nan"), "conv1.weight hold NaN"),
    "infinite weight": ("layer1.0.conv1.weight", float("inf"), "layer1.0.conv1.weight hold NaN or infinite"),
    "NaN variance": ("bn1.running_var", float("nan"), "bn1.running_var hold NaN"),
    "negative variance": ("layer2.0.bn1.running_var", -0.5, "layer2.0.bn1.running_var hold negative"),
}


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("case", SPOILT)
def test_damaged_weights_are_refused_with_and_without_images(case, with_images, pixels):
    key, value, message = SPOILT[case]
    net = trained("resnet20")
    _spoil(net, key, value)
    images = prepared(pixels[:4]) if with_images else None
    with pytest.raises(SnnzooError, match=message):
        snnzoo.convert(net, images, check_fit=False)


def test_bn_that_was_never_trained_is_refused_with_and_without_images_unless_forced():
    net, images = torchvision.models.resnet18(num_classes=4), torch.randn(2, 3, 32, 32)
    with pytest.raises(SnnzooError, match=r"never trained.*calibration images"):
        snnzoo.convert(net, None)
    with pytest.raises(SnnzooError, match=r"never trained.*are these the weights meant.*--force-fit.*check_fit=False"):
        snnzoo.convert(net, images)
    with pytest.warns(UserWarning, match="never trained"):
        snn = snnzoo.convert(net, images, time_steps=1, gamma=0.5, check_fit=False)
    assert snn.conversion.fit is None


# -- What keys leave open ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_the_normalisation_is_found_from_any_other(subject, pixels, name):
    other = dataclasses.replace(OWN, mean=NORMALISATIONS[name][0], std=NORMALISATIONS[name][1])
    start = dataclasses.replace(subject, images=prepared(pixels, other.mean, other.std), preprocess=other)
    found, (decision,) = best_fit(start, [ROW["normalisation"]])
    assert "CIFAR-10" in (decision.taken, *decision.ties)
    assert divergence(found, found.images) < 0.1
    torch.testing.assert_close(
        found.images, prepared(pixels, found.preprocess.mean, found.preprocess.std), rtol=0, atol=1e-3
    )


def test_the_order_of_channels_is_found_and_a_tie_on_grey_images_said(subject, pixels):
    turned = dataclasses.replace(subject, images=subject.images.flip(1))
    found, (decision,) = best_fit(turned, [ROW["channel order"]])
    assert (decision.taken, found.preprocess.order) == ("BGR", "BGR")
    assert best_fit(subject, [ROW["channel order"]])[0] is subject
    grey = dataclasses.replace(
        subject, preprocess=PRESETS["digits"], images=subject.images[:, :1].expand(-1, 3, -1, -1)
    )
    _, (decision,) = best_fit(grey, [ROW["channel order"]])
    assert (decision.taken, decision.ties) == ("RGB", ("BGR",))


def test_what_is_prepared_anew_equals_what_is_read_so():
    image = Image.fromarray(torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8).numpy())
    other = Preprocess(16, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), order="BGR")
    anew = prepared_anew(OWN.transform()(image).unsqueeze(0), OWN, other)
    torch.testing.assert_close(anew[0], other.transform()(image), rtol=1e-5, atol=1e-5)


class Plain(nn.Module):
    """A ResNet of bottlenecks, each thing that keys leave open as an argument."""

    def __init__(self, stride=2, pool=True, first=False, dilated=False, activation=nn.ReLU, averages=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride, 1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1) if pool and not averages else nn.AvgPool2d(2) if pool else nn.Identity()
        self.layer4 = nn.Sequential(*(Block(i, first, dilated, activation, averages) for i in range(2)))
        self.activation, self.fc = activation(), nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(self.activation(self.bn1(self.conv1(x))))
        return self.fc(self.layer4(x).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, index, first, dilated, activation, averages):
        super().__init__()
        channels, stride = (8, 2) if index == 0 else (16, 1)
        self.narrow = stride if first and not dilated else 1
        wide = 1 if first or dilated or averages else stride
        spread = 2 if dilated and index else 1
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 1, self.narrow, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, wide, spread, spread, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.average = nn.AvgPool2d(2) if averages and stride == 2 else nn.Identity()
        self.activation, self.downsample = activation(), nn.Identity()
        if index == 0:
            self.downsample = nn.Sequential(nn.Conv2d(8, 16, 1, 1 if dilated else 2, bias=False), nn.BatchNorm2d(16))

    def forward(self, x):
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.average(self.activation(self.bn2(self.conv2(y))))
        return self.activation(self.bn3(self.conv3(y)) + self.downsample(x))


VARIANTS = {
    "stem: no pool": ("stem", {"pool": False}),
    "stem: stride 1": ("stem", {"stride": 1, "pool": False}),
    "stride in the 1x1": ("stride of bottlenecks", {"first": True}),
    "dilation": ("dilation", {"dilated": True}),
    "averages": ("anti-aliasing", {"averages": True}),
    "leaky": ("activation", {"activation": lambda: nn.LeakyReLU(0.1)}),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_each_rewrite_is_the_network_that_it_stands_for(case):
    """An answer's graph computes what a module written that way computes."""
    row, options = VARIANTS[case]
    torch.manual_seed(0)
    usual, other = Plain(), Plain(**options)
    images = torch.randn(4, 3, 32, 32)
    with_statistics(usual, images)
    other.load_state_dict(usual.state_dict())
    ann = capture_ann(usual, images)
    answers = ROW[row].answers(Subject(ann.graph, ann.tensors(), images))
    outputs = [Ann(answer.graph, answer.tensors, "", [3, 32, 32])(images) for answer in list(answers.values())[1:]]
    expected = other.eval()(images)
    assert any(torch.allclose(output, expected, rtol=1e-4, atol=1e-4) for output in outputs)


@pytest.mark.parametrize("case", VARIANTS)
def test_the_network_that_a_checkpoint_is_of_is_found_by_its_images(case, monkeypatch):
    monkeypatch.setattr(search, "LEAST_GAIN", 0.001)  # little is at stake in three blocks
    row, options = VARIANTS[case]
    torch.manual_seed(0)
    usual, other = Plain(), Plain(**options)
    images = F.interpolate(prepared(colours(64)), scale_factor=2, mode="bilinear")
    usual.load_state_dict(with_statistics(other, images).state_dict())
    ann = capture_ann(usual, images)
    found, (decision,) = best_fit(Subject(ann.graph, ann.tensors(), images), [ROW[row]])
    assert decision.changed
    torch.testing.assert_close(
        Ann(found.graph, found.tensors, "", [3, 32, 32])(images), other(images), rtol=1e-3, atol=1e-3
    )
    assert decision.divergences[decision.taken] < 0.05


@pytest.mark.parametrize("averaged", [False, True], ids=["left out", "averaged"])
@pytest.mark.parametrize("both", [False, True], ids=["end", "both sides"])
def test_each_shortcut_is_the_network_that_it_stands_for(resnet20, subject, monkeypatch, both, averaged):
    def forward(module, x):
        x = F.avg_pool2d(x, 2) if averaged else x[:, :, ::2, ::2]
        before, total = module.padding if both else 0, 2 * module.padding
        return F.pad(x, (0, 0, 0, 0, before, total - before))

    name = f"zeros {'on both sides' if both else 'at the end'}{', pixels averaged' if averaged else ''}"
    answer = ROW["shortcut"].answers(subject)[name]
    monkeypatch.setattr("snnzoo.models.cifar_resnet.OptionAShortcut.forward", forward)
    actual = Ann(answer.graph, answer.tensors, "", [3, 16, 16])(subject.images)
    torch.testing.assert_close(actual, resnet20(subject.images), rtol=1e-4, atol=1e-4)


def test_zeros_at_the_end_of_a_shortcut_are_found(resnet20, subject, pixels):
    end = ROW["shortcut"].answers(subject)["zeros at the end"]
    found, (decision,) = best_fit(end, [ROW["shortcut"]])
    assert (decision.assumed, decision.taken) == ("zeros at the end", "zeros on both sides")
    assert found.graph == subject.graph


def test_what_images_cannot_tell_stays_and_is_said(resnet20, pixels):
    said = []
    ann = capture_ann(resnet20, prepared(pixels))
    result = fitted(ann, prepared(pixels), OWN, open_graph=True, open_preprocess=True, notify=said.append)
    assert result.ann is ann
    assert (result.preprocess, result.images.shape) == (OWN, (64, 3, 16, 16))
    assert not any(decision.changed for decision in result.decisions)
    (line,) = said
    assert "not told apart" in line
    assert "eps (1e-05, or 0.001)" in line


# -- Layers known by their order alone ---------------------------------------------------------------------------------


def test_layers_known_by_order_alone_need_images_and_a_fit(resnet20, pixels, tmp_path):
    state = resnet20.state_dict()
    paths = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    numbered = {
        f"{paths.index(key.rpartition('.')[0])}.{key.rpartition('.')[2]}": value for key, value in state.items()
    }
    torch.save(numbered, tmp_path / "numbered.pth")
    net = snnzoo.load_ann("resnet20", checkpoint=tmp_path / "numbered.pth")
    with pytest.raises(SnnzooError, match="order and shapes"):
        snnzoo.convert(net, None)
    with pytest.raises(SnnzooError, match="nats"):
        snnzoo.convert(net, pixels)
    assert snnzoo.convert(net, prepared(pixels[:16]), time_steps=1, gamma=0.5).conversion.fit["mean"] < 0.1


# -- A user's module, without images -----------------------------------------------------------------------------------


class Normalising(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.full((3, 1, 1), 0.4))

    def forward(self, x):
        return self.network((x - self.mean) / 0.2)


@pytest.mark.parametrize("make", [
    lambda: Plain(pool=False, stride=1),
    lambda: Plain(activation=lambda: nn.LeakyReLU(0.1)),
    lambda: Normalising(Plain()),
], ids=["no pool", "leaky", "wrapper that normalises"])  # fmt: skip
def test_a_module_converted_data_free_computes_what_it_computes(make):
    torch.manual_seed(0)
    images = torch.rand(8, 3, 32, 32)
    net = with_statistics(make(), images)
    snn = snnzoo.convert(net, None, "delta", time_steps=16, levels=7, gamma=0.5)
    with torch.inference_mode():
        expected, actual = net(images), snn(images.expand(16, *images.shape))[-1]
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images_are_refused_not_reinterpreted(resnet20, pixels, dtype):
    images, labels = (pixels * 255).to(dtype), torch.zeros(64, dtype=torch.long)
    with pytest.raises(UsageError, match=str(dtype).removeprefix("torch.")):
        snnzoo.convert(resnet20, images)
    snn = snnzoo.convert(resnet20, prepared(pixels[:8]), time_steps=1, gamma=0.5)
    with pytest.raises(UsageError, match=str(dtype).removeprefix("torch.")):
        snnzoo.evaluate(snn, resnet20, (images, labels), [1])


# -- The command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, pixels):
    for i, image in enumerate(pixels):
        path = tmp_path / "images" / str(i % 10)
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(path / f"{i}.png")
    return tmp_path / "images"


def run(capsys, *arguments):
    """Exit code, JSON and messages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["snnzoo", *map(str, arguments), "--json", "-"])
        with pytest.raises(SystemExit) as end:
            main()
    out, err = capsys.readouterr()
    return end.value.code, json.loads(out) if out else None, err


def test_the_command_line_takes_what_fits_says_so_and_refuses_what_does_not(resnet20, folder, tmp_path, capsys):
    torch.save(resnet20.state_dict(), tmp_path / "mine.pth")
    given = ("convert", "resnet20", "--checkpoint", tmp_path / "mine.pth", "--calib-data", folder, "--input-size", 16)
    quick = ("--recipe", "delta", "-T", 1, "-o", tmp_path / "net.safetensors", "--force")
    code, result, said = run(capsys, *given, *quick)
    assert code in (0, None)
    assert result["fit"]["mean"] < 0.1
    assert {decision["question"] for decision in result["fit"]["decisions"]} >= {"normalisation", "shortcut"}
    assert "not told apart by the images" in said
    wrong = ("--mean", "0,0,0", "--std", "0.004,0.004,0.004")
    code, result, said = run(capsys, *given, *wrong, *quick)
    assert (code, result) == (1, None)
    assert "--preprocess auto would take normalisation: CIFAR-10" in said
    assert "--force-fit" in said
    code, result, said = run(capsys, *given, *wrong, *quick, "--force-fit")
    assert code in (0, None)
    assert result["fit"]["mean"] > 3
    evaluated = ("eval", tmp_path / "net.safetensors", "--data", folder)
    code, result, said = run(capsys, *evaluated)
    assert (code, result) == (1, None)
    code, result, said = run(capsys, *evaluated, "--force-fit")
    assert code in (0, None)
    assert result["fit"]["mean"] > 3
    code, result, said = run(capsys, *given, "--preprocess", "auto", *quick)
    assert result["fit"]["mean"] < 0.1


def test_preprocess_auto_is_for_images(resnet20, folder, tmp_path, capsys):
    torch.save(resnet20.state_dict(), tmp_path / "mine.pth")
    given = ("convert", "resnet20", "--checkpoint", tmp_path / "mine.pth", "--preprocess", "auto")
    assert run(capsys, *given)[0] == 2
    assert run(capsys, *given, "--calib-data", folder, "--mean", "0,0,0")[0] == 2


# -- The real checkpoint -----------------------------------------------------------------------------------------------


def test_the_published_checkpoint_diverges_little_from_itself_and_much_from_other_networks(resnet20_checkpoint):
    """Statistics of its own features of noise are not those of photos."""
    ann = snnzoo.load_ann("resnet20", checkpoint=resnet20_checkpoint)
    said = []
    check_fit(capture_ann(ann, torch.zeros(1, 3, 32, 32)), torch.randn(64, 3, 32, 32), notify=said.append)
    assert "nats" in said[0]
