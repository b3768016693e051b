"""ANN-to-SNN conversion: recipes, the file, and what the Python interface takes."""

import copy
import json

import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import nn

import snnzoo
from helpers import RECIPES, assert_converted_patterns_agree, neuron_sites, shake_batch_norm
from snnzoo import codings, functional
from snnzoo.conversion import calibration, capture_ann, convert_ann, load_with_ann, moments, recipes
from snnzoo.conversion.recipes import make_recipe
from snnzoo.data import digits
from snnzoo.errors import CheckpointError, SnnzooError, UsageError
from snnzoo.graph.shapes import value_shapes
from snnzoo.models.factory import build_ann


def converted(source, images, recipe, **arguments):
    """By one of RECIPES; data-free without the images."""
    kind, options = RECIPES[recipe]
    return snnzoo.convert(source, None if recipe == "data-free" else images, kind, **options, **arguments)


@pytest.fixture(scope="module")
def ann():
    """A ResNet with four classes whose activations are alive, in float64."""
    torch.manual_seed(0)
    return shake_batch_norm(torchvision.models.resnet18(num_classes=4)).double().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# Each family of models with some recipes, and the first with all.
FAMILIES = {
    "resnet20": ({}, RECIPES),
    "resnet18": ({}, ["delta, K=3"]),
    "resnext50_32x4d": ({}, ["rate, max"]),
    "vgg11": ({"hidden_features": 48}, ["delta, K=3", "rate, max"]),
    "vgg11_bn": ({"hidden_features": 48}, ["delta, K=3", "differential", "rate, max", "signed"]),
}


@pytest.mark.parametrize(("name", "recipe"), [
    pytest.param(name, recipe, marks=[] if name in ("resnet20", "resnet18") else pytest.mark.slow)
    for name, (_, recipes) in FAMILIES.items() for recipe in recipes
])  # fmt: skip
def test_a_converted_networks_two_patterns_agree_for_static_and_changing_input(name, recipe, images):
    torch.manual_seed(0)
    ann = snnzoo.create_model(name, neuron=nn.ReLU, step_mode="s", num_classes=4, **FAMILIES[name][0])
    net = converted(shake_batch_norm(ann).double(), images, recipe, time_steps=4)
    few = images[:2]
    for x_seq in (few.expand(5, *few.shape), torch.randn(5, 2, 3, 32, 32, dtype=torch.float64)):
        assert_converted_patterns_agree(net, x_seq)


@pytest.mark.parametrize(("recipe", "time_steps", "tolerance"), [
    pytest.param("rate, max", 512, 0.15, marks=pytest.mark.slow),
    ("delta, K=3", 16, 0.10),
    ("delta, K=7", 16, 0.02),
])  # fmt: skip
def test_the_logits_approach_the_anns_as_time_goes_on(ann, images, recipe, time_steps, tolerance):
    net = converted(ann, images, recipe, time_steps=16)
    images = images[:2]
    with torch.inference_mode():
        expected = ann(images)
        early = net(images.expand(1, *images.shape))[-1]
        for _ in range(time_steps // 16):
            late = net(images.expand(16, *images.shape))[-1]
    scale = expected.std()
    assert (late - expected).abs().mean() < tolerance * scale
    assert (late - expected).abs().mean() < (early - expected).abs().mean() / 2


def test_every_neuron_is_replaced_and_no_ann_tensor_changes(ann, images):
    net = snnzoo.convert(ann, images)
    state = net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in ann.state_dict().items())
    names = neuron_sites(net)
    assert len(names) == 17
    assert names[:4] == ["relu", "layer1.0.relu", "layer1.0.relu_1", "layer1.1.relu"]
    assert all(isinstance(net.get_submodule(name).coding, codings.Delta) for name in names)
    extra = {key for key in state if key not in ann.state_dict()}
    assert extra == {f"{site}.{name}" for site in names for name in ("v_threshold", "bias")}


def test_max_thresholds_are_the_largest_activation_of_each_channel(ann, images):
    net = snnzoo.convert(ann, images, "rate", threshold="max", batch_size=3)
    with torch.inference_mode():
        peak = ann.layer1[0].relu(
            ann.layer1[0].bn1(ann.layer1[0].conv1(ann.maxpool(ann.relu(ann.bn1(ann.conv1(images))))))
        )
    peak, theta = peak.amax((0, 2, 3)), net.neuron("layer1.0.relu").v_threshold
    assert (peak > 0).sum() > 50
    torch.testing.assert_close(theta[peak > 0], peak[peak > 0])


def test_percentile_thresholds_equal_the_quantile(ann, images):
    net = snnzoo.convert(ann, images, "rate", threshold="percentile", percentile=90.0, batch_size=3)
    with torch.inference_mode():
        stem = ann.maxpool(ann.relu(ann.bn1(ann.conv1(images)))).transpose(0, 1).flatten(1)
    exact, peak = torch.quantile(stem, 0.9, dim=1, interpolation="higher"), stem.amax(1)
    known = exact > 0
    assert known.sum() > 40
    torch.testing.assert_close(net.neuron("relu").v_threshold[known], exact[known])
    rare = (exact == 0) & (peak > 0)
    torch.testing.assert_close(net.neuron("relu").v_threshold[rare], peak[rare])


def test_dead_channels_get_a_usable_threshold(ann, images):
    dying = copy.deepcopy(ann)
    dying.layer1[0].bn1.weight.data[5] = 0
    dying.layer1[0].bn1.bias.data[5] = -1
    for recipe in ("delta", "rate"):
        net = snnzoo.convert(dying, images, recipe)
        assert net.neuron("layer1.0.relu").v_threshold[5] > 0
        assert net(images.expand(4, *images.shape)).isfinite().all()


def test_convert_takes_wrapped_modules_and_leaves_them_as_they_are(ann, images):
    expected = snnzoo.convert(ann, images, gamma=0.5)(images.expand(2, *images.shape))
    training = copy.deepcopy(ann)
    training.train()
    training.bn1.eval()
    before = {key: value.clone() for key, value in training.state_dict().items()}
    for module in (nn.DataParallel(ann), training, torch.compile(ann, backend="eager")):
        net = snnzoo.convert(module, images, gamma=0.5)
        torch.testing.assert_close(net(images.expand(2, *images.shape)), expected)
    assert training.training
    assert not training.bn1.training
    assert all(torch.equal(before[key], value) for key, value in training.state_dict().items())


def test_convert_takes_batches_from_a_loader(ann, images):
    labelled = torch.utils.data.TensorDataset(images, torch.zeros(8))
    for batches in (torch.utils.data.DataLoader(labelled, 3), [images[:4], images[4:]]):
        net = snnzoo.convert(ann, batches, gamma=0.5)
        assert torch.equal(
            net.neuron("relu").v_threshold, snnzoo.convert(ann, images, gamma=0.5).neuron("relu").v_threshold
        )


@pytest.mark.parametrize("recipe", ["rate, max", "delta, K=3", "differential", "signed", "data-free"])
def test_a_file_rebuilds_the_network_and_its_ann_exactly(recipe, ann, images, tmp_path):
    net = converted(ann, images, recipe)
    snnzoo.save(net, tmp_path / "net.safetensors")
    loaded, loaded_ann = load_with_ann(tmp_path / "net.safetensors")
    x_seq = images.expand(3, *images.shape)
    assert torch.equal(loaded.double()(x_seq), net(x_seq))
    torch.testing.assert_close(loaded_ann.double()(images), ann(images))
    assert loaded.conversion == net.conversion
    assert not loaded.training


def test_the_file_has_the_anns_keys_untouched_and_the_metadata_of_the_format(ann, images, tmp_path):
    net = snnzoo.convert(ann, images, levels=3, time_steps=6)
    snnzoo.save(net, tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        metadata = file.metadata()
        for key, value in ann.state_dict().items():
            assert torch.equal(file.get_tensor(key), value)
        assert file.get_tensor("layer1.0.relu.v_threshold").shape == (64,)
    assert metadata["format"] == "snnzoo/2"
    assert (metadata["model"], metadata["time_steps"]) == ("ResNet", "6")
    assert json.loads(metadata["coding"])["levels"] == 3
    assert json.loads(metadata["recipe"])["calibration"]["images"] == 8
    wanted = {"preprocess", "classes", "source", "snnzoo", "torch", "graph", "input_shape"}
    assert wanted <= set(metadata)


def damaged_files(net, path):
    """(what is wrong, message) after writing a damaged file to `path`, one after the other."""
    from snnzoo.checkpoints.files import read_safetensors, write_safetensors

    snnzoo.save(net, path)
    tensors, metadata = read_safetensors(path)

    def variant(new_tensors=None, **new_metadata):
        write_safetensors(path, new_tensors or tensors, {**metadata, **new_metadata})

    def without(key):
        return {k: v for k, v in tensors.items() if k != key}

    yield variant(format="other/1"), "format 'other/1'"
    yield variant(coding='{"name": "morse"}'), "unknown coding 'morse'"
    yield variant(coding="{"), "metadata: field 'coding' is not valid JSON"
    yield variant(graph="{"), "graph is damaged"
    yield variant(input_shape="[3, 32]"), "do not fit"
    yield variant(time_steps="many"), "metadata: field 'time_steps' must be"
    yield variant(preprocess='{"resize": 0}'), "metadata: field 'preprocess.resize' must be"
    yield variant(without("layer1.0.conv1.weight")), "'layer1.0.conv1.weight' is missing"
    yield variant(without("layer1.0.relu.v_threshold")), "'layer1.0.relu.v_threshold' is missing"
    yield variant({**tensors, "relu.v_threshold": torch.ones(3)}), "do not fit"
    yield path.write_bytes(path.read_bytes()[:1000]), "damaged"
    yield path.write_bytes(b""), "damaged"


def test_a_damaged_file_is_one_line_that_names_it(ann, images, tmp_path):
    path = tmp_path / "net.safetensors"
    for _, message in damaged_files(snnzoo.convert(ann, images, gamma=0.5), path):
        with pytest.raises(CheckpointError, match=message) as error:
            snnzoo.load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_loading_a_plain_checkpoint_says_to_convert(ann, tmp_path):
    from snnzoo.checkpoints.files import write_safetensors

    write_safetensors(tmp_path / "ann.safetensors", ann.state_dict(), {})
    with pytest.raises(CheckpointError, match="snnzoo convert"):
        snnzoo.load(tmp_path / "ann.safetensors")


def test_saving_a_network_that_was_not_converted_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="not converted"):
        snnzoo.save(snnzoo.create_model("resnet20"), tmp_path / "net.safetensors")


@pytest.mark.parametrize(("change", "message"), [
    ({"recipe": "dalta"}, "unknown recipe 'dalta': did you mean delta"),
    ({"colour": 1}, "no option 'colour'"),
    ({"time_steps": 0}, "time_steps must be at least 1"),
    ({"levels": 0}, "levels must be at least 1"),
    ({"gamma": 1.5}, "gamma must be in"),
    ({"recipe": "rate", "threshold": "median"}, "one of max, percentile"),
    ({"recipe": "rate", "percentile": 0}, "percentile must be in"),
    ({"images": []}, "no calibration images"),
    ({"images": torch.zeros(3, 32, 32)}, r"\[N, C, H, W\]"),
])  # fmt: skip
def test_a_wrong_request_is_a_usage_error(ann, images, change, message):
    arguments = {"ann": ann, "images": images, **change}
    with pytest.raises(UsageError, match=message):
        snnzoo.convert(**arguments)


def test_nan_weights_are_reported_with_the_layer(ann, images):
    broken = copy.deepcopy(ann)
    broken.layer2[0].conv1.weight.data[0] = float("nan")
    own = build_ann("resnet18", broken.state_dict(), "ann", num_classes=4).double()
    with pytest.raises(SnnzooError, match=r"layer2\.0\.sn1"):
        convert_ann(own, images, make_recipe("delta", gamma=0.5))


def test_progress_reaches_its_total_and_does_not_fall(ann, images):
    for recipe in ("rate, max", "delta, K=3"):
        calls = []
        converted(ann, images, recipe, progress=lambda *call: calls.append(call))  # noqa: B023
        done, totals, _ = zip(*calls, strict=True)
        assert list(done) == sorted(done)
        assert done[-1] == totals[-1]


def test_the_gamma_searched_brings_the_logits_closest(images, monkeypatch):
    monkeypatch.setattr(recipes, "GAMMAS", (0.3, 0.7, 0.5))
    torch.manual_seed(0)
    source = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s")).double().eval()
    few = images[:4]
    nets = {gamma: snnzoo.convert(source, few, levels=1, gamma=gamma) for gamma in (None, *recipes.GAMMAS)}
    with torch.inference_mode():
        expected = source(few)
        errors = {g: (net(few.expand(8, *few.shape))[-1] - expected).square().mean() for g, net in nets.items()}
    assert nets[None].conversion.coding.gamma in recipes.GAMMAS
    assert errors[None] == min(errors.values())
    assert len({error.item() for error in errors.values()}) == 3


def test_the_seed_fixes_the_parameters_and_their_report(ann, images):
    first, again = (snnzoo.convert(ann, images, gamma=0.5, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert first.conversion == again.conversion


def test_calibration_takes_upstream_errors_out_and_reports_every_layer():
    torch.manual_seed(0)
    source = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s")).double()
    images = torch.randn(16, 3, 16, 16, dtype=torch.float64)
    plain = snnzoo.convert(source, images, "rate", 8, threshold="max", bias_correction=False).conversion.layers
    fitted = snnzoo.convert(source, images, "rate", 8).conversion.layers
    assert [layer["site"] for layer in fitted] == neuron_sites(snnzoo.convert(source, images, gamma=0.5))
    assert fitted[-1]["error"] < 0.7 * plain[-1]["error"]
    assert plain[0]["clipped"] == 0
    assert fitted[0]["clipped"] > 0
    assert all(0 < layer["events"] < 1 for layer in fitted)


def test_balanced_thresholds_minimise_clipping_and_quantisation_together():
    activations = torch.rand(4096, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 3 * 2
    site = calibration.Site(
        "sn1", codings.Rate(), codings.RELU, torch.zeros(4, 1, 3), activations, activations.amax(0), activations.amax(0)
    )  # fmt: skip

    def cost(theta):
        clipped = (activations - theta).clamp(min=0).square().mean(0)
        return clipped + (activations <= theta).double().mean(0) * (theta / 4) ** 2 / 12

    theta = recipes.balanced_threshold(site)
    assert (theta < activations.amax(0)).all()
    for factor in (0.9, 1.1):
        assert (cost(theta) < cost(factor * theta)).all()


def test_few_memory_means_fewer_images_not_more_bytes(ann, monkeypatch):
    own = capture_ann(copy.deepcopy(ann).float(), torch.zeros(2, 3, 32, 32))
    first, shapes = own.graph.neurons[0], value_shapes(own.graph, own.tensors(), own.input_shape, "ResNet")
    most = calibration.FEWEST_IMAGES + 1
    monkeypatch.setattr(calibration, "KEPT_BYTES", most * 64 * 8 * 8 * 4 * (1 + 5))  # the pooled stem, then 1 + 4 steps
    fits = calibration.images_that_fit(own.graph, shapes, torch.float32, 40, 4)
    counts = list(fits.values())
    assert counts == sorted(counts)
    assert fits[first.name] in (most - 1, most)
    assert counts[-1] == 40
    assert set(calibration.images_that_fit(own.graph, shapes, torch.float32, 5, 4).values()) == {5}


def test_a_fine_tuned_head_is_kept_whatever_its_layers(ann, images, tmp_path):
    torch.manual_seed(0)
    tuned = copy.deepcopy(ann)
    tuned.fc = nn.Sequential(nn.Linear(512, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    net = snnzoo.convert(nn.DataParallel(tuned), images, levels=7, gamma=0.4, time_steps=8)
    snnzoo.save(net, tmp_path / "net.safetensors")
    loaded, loaded_ann = load_with_ann(tmp_path / "net.safetensors")
    x_seq = images.expand(8, *images.shape)
    with torch.inference_mode():
        assert torch.equal(loaded.double()(x_seq), net(x_seq))
        torch.testing.assert_close(loaded_ann.double()(images), tuned.eval()(images))
        assert (loaded_ann(images) - net(x_seq)[-1]).abs().max() < 0.2 * loaded_ann(images).std()


def test_a_rate_network_trains_on_with_surrogate_gradients(images):
    torch.manual_seed(0)
    source = snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s", num_classes=4)
    x, labels = images.float(), torch.arange(8) % 4
    net = snnzoo.convert(source, x, "rate", time_steps=4)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(14):
        functional.reset_net(net)
        loss = nn.functional.cross_entropy(net(x.expand(4, *x.shape))[-1], labels)
        optimizer.zero_grad()
        loss.backward()
        assert net.conv1.weight.grad.abs().max() > 0
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-3:]) < losses[0] / 2


@pytest.mark.parametrize(("bad", "error", "message"), [
    (torch.zeros(2, 1, 32, 32), UsageError, "1 channels, but ResNet takes 3"),
    (torch.full((2, 3, 32, 32), float("nan")), SnnzooError, "NaN or infinite"),
])  # fmt: skip
def test_images_that_do_not_fit_are_a_clear_error(ann, bad, error, message):
    with pytest.raises(error, match=message):
        snnzoo.convert(ann, bad.double())


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 32, 32), torch.ones(4, 3, 32, 32)])
def test_one_or_constant_images_still_convert(ann, images):
    net = snnzoo.convert(ann, images.double(), gamma=0.5)
    assert net(images.double().expand(4, *images.shape)).isfinite().all()


def test_moments_behind_a_relu_are_those_of_samples():
    mean, deviation = torch.tensor([-1.0, 0.0, 0.5, 3.0]).double(), torch.tensor([1.0, 2.0, 0.5, 1.0]).double()
    samples = (torch.randn(200_000, 4, dtype=torch.float64) * deviation + mean).clamp(min=0)
    expected_mean, expected_deviation = moments.passed_on(codings.RELU, mean, deviation)
    torch.testing.assert_close(samples.mean(0), expected_mean, rtol=0.02, atol=0.01)
    torch.testing.assert_close(samples.std(0), expected_deviation, rtol=0.02, atol=0.01)


@pytest.mark.slow
def test_a_resnet18_fine_tuned_with_a_two_layer_head_loses_at_most_a_point_at_8_steps():
    """The usual fine-tuning: torchvision's resnet18, `fc` replaced, all layers trained on."""
    train, test = (digits.Digits(split) for split in ("train", "test"))
    x, y = torch.stack([image for image, _ in train]), torch.tensor(train.labels)
    held_out, labels = torch.stack([image for image, _ in test]), torch.tensor(test.labels)
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10)
    net.load_state_dict(digits.train_resnet18(epochs=2))
    net.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4)
    for _ in range(3):
        for batch in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    snn = snnzoo.convert(net, x[:256], time_steps=8)
    with torch.inference_mode():
        expected = net.eval()(held_out).argmax(1)
        actual = torch.cat([_last_logits(snn, batch, 8) for batch in held_out.split(100)]).argmax(1)
    ann_top1, snn_top1 = (100 * (found == labels).double().mean().item() for found in (expected, actual))
    assert ann_top1 > 90
    assert ann_top1 - snn_top1 <= 1


def _last_logits(snn, images, time_steps):
    functional.reset_net(snn)
    return snn(images.expand(time_steps, *images.shape))[-1]
