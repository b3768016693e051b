"""Evaluation against counts made by hand."""

import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

import snnzoo
from helpers import firing
from snnzoo import functional
from snnzoo.data.datasets import calibration_images, drawn, labelled_data, limited
from snnzoo.data.digits import Digits
from snnzoo.data.loading import LeftOut
from snnzoo.data.preprocess import PRESETS, Preprocess
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.evaluation import evaluate
from snnzoo.inference import prepare_for_inference


def test_rates_equal_those_counted_by_hand(networks, data):
    net, ann = networks
    images, labels = data.tensors
    result = evaluate(net, ann, data, [4, 1, 2], batch_size=4)
    with torch.inference_mode():
        expected = ann(images)
        fast = prepare_for_inference(net)  # in the same batches: in float32 a spike may hang on the last bit
        logits = torch.cat([fast(x.expand(4, *x.shape)) for x in images.split(4)], 1)
    assert result.images == 10
    assert result.ann["top1"] == (expected.argmax(1) == labels).double().mean().item()
    assert [row.time_steps for row in result.results] == [1, 2, 4]
    for row in result.results:
        read_out = logits[row.time_steps - 1]
        assert row.top1 == (read_out.argmax(1) == labels).double().mean().item()
        top5 = read_out.topk(5).indices
        assert row.top5 == (top5 == labels[:, None]).any(1).double().mean().item()
        assert row.agreement == (read_out.argmax(1) == expected.argmax(1)).double().mean().item()
        assert row.images_per_second > 0


def test_results_do_not_depend_on_the_batch_size(networks, data):
    rows = []
    for batch_size in (1, 3, 10):
        result = evaluate(*networks, data, [1, 3], batch_size=batch_size)
        rows.append([(r.top1, r.top5, r.agreement) for r in result.results])
        rows[-1].append(round(result.results[1].events_per_neuron_step, 4))
    assert rows[0] == rows[1] == rows[2]


def test_a_long_run_in_pieces_reads_out_as_one_in_one_piece(networks, data):
    net, ann = networks
    images = data.tensors[0]
    result = evaluate(net, ann, data, [8, 11], batch_size=10)
    with torch.inference_mode():
        functional.reset_net(net)
        logits = net(images.expand(11, *images.shape))
    agreement = (logits[10].argmax(1) == ann(images).argmax(1)).double().mean().item()
    assert result.results[1].agreement == agreement


def test_events_equal_those_counted_event_by_event(networks, data):
    net, ann = networks
    images = data.tensors[0][:2]
    outputs = {}

    def keep(node, _inputs, value):
        if node in net.graph.neurons:
            outputs[node.path] = value

    with torch.inference_mode():
        functional.reset_net(net)
        net.run(images.expand(3, *images.shape), keep)
        functional.reset_net(net)
    neurons = sum(y[0, 0].numel() for y in outputs.values())
    events = sum(y.count_nonzero().item() for y in outputs.values())
    subset = torch.utils.data.TensorDataset(images, torch.zeros(2, dtype=torch.long))
    row = evaluate(net, ann, subset, [3], batch_size=2).results[0]
    assert row.events_per_neuron_step == pytest.approx(events / (neurons * 3 * 2))


def test_progress_counts_images(networks, data):
    calls = []
    evaluate(*networks, data, [1], batch_size=4, progress=lambda *call: calls.append(call[:2]))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_time_steps_below_one_and_empty_data_are_errors(networks, data):
    with pytest.raises(UsageError, match="at least 1"):
        evaluate(*networks, data, [0, 4])
    with pytest.raises(SnnzooError, match="no images"):
        evaluate(*networks, torch.utils.data.Subset(data, []), [1])


@pytest.mark.parametrize("model", ["resnet20", "sew_resnet18"])
def test_a_trained_network_is_read_out_by_the_mean_of_its_logits_and_has_no_ann(model, data):
    torch.manual_seed(0)
    net = firing(snnzoo.create_model(model, neuron="plif", num_classes=7))
    images, labels = data.tensors
    result = evaluate(net, None, data, [1, 3], batch_size=4, error_images=2, dtype=torch.float64)
    with torch.inference_mode():
        logits = net(images.double().expand(3, *images.shape))
    functional.reset_net(net)
    assert result.ann == {}
    assert result.classes == 7
    for row in result.results:
        read_out = logits[: row.time_steps].mean(0)
        assert row.top1 == (read_out.argmax(1) == labels).double().mean().item()
        assert row.agreement is None
        assert row.events_per_neuron_step > 0
        assert row.energy_uj > 0
    assert all(layer.errors == [] for layer in result.layers)


def test_a_converted_network_may_be_evaluated_alone(networks, data):
    beside, alone = (evaluate(networks[0], ann, data, [2], batch_size=10) for ann in (networks[1], None))
    assert alone.ann == {}
    assert alone.results[0].top1 == beside.results[0].top1
    assert alone.results[0].synaptic_operations == beside.results[0].synaptic_operations


def test_what_is_no_spiking_network_is_a_usage_error_in_words(networks, data):
    with pytest.raises(UsageError, match="ResNet is neither a converted network nor one of the zoo"):
        evaluate(torchvision.models.resnet18(num_classes=7), None, data, [1])
    with pytest.raises(UsageError, match="is neither a converted network"):
        evaluate(networks[1], networks[1], data, [1])
    with pytest.raises(UsageError, match="was not converted, so that no ANN computes the same: give None"):
        evaluate(snnzoo.create_model("resnet20", num_classes=7).eval(), networks[1], data, [1])


def test_folders_are_matched_by_class_name_where_names_are_known(image_folder):
    preprocess = PRESETS["digits"]
    plain = labelled_data(str(image_folder), preprocess, None, 10)
    assert sorted(set(plain.labels)) == list(range(10))
    classes = [f"other{i}" for i in range(5)] + [str(i) for i in range(10)]
    named = labelled_data(str(image_folder), preprocess, classes, 15)
    assert named.labels == [label + 5 for label in plain.labels]


def test_a_folder_with_another_number_of_classes_is_an_error(image_folder):
    with pytest.raises(UsageError, match=r"10 class folders.*1000 classes"):
        labelled_data(str(image_folder), PRESETS["imagenet"], None, 1000)


def test_images_equal_those_of_torchvisions_image_folder(image_folder):
    preprocess = Preprocess(20, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic")
    ours = labelled_data(str(image_folder), preprocess, None, 10)
    theirs = torchvision.datasets.ImageFolder(image_folder, preprocess.transform())
    assert len(ours) == len(theirs) == 30
    for i in (0, 7, 29):
        assert torch.equal(ours[i][0], theirs[i][0])
        assert ours[i][1] == theirs[i][1]


def test_presets_equal_torchvisions_transforms():
    image = Image.effect_noise((300, 260), 80).convert("RGB")
    for name, weights in (
        ("imagenet", "ResNet50_Weights.IMAGENET1K_V1"),
        ("imagenet_v2", "ResNet50_Weights.IMAGENET1K_V2"),
    ):
        expected = torchvision.models.get_weight(weights).transforms()(image)
        torch.testing.assert_close(PRESETS[name].transform()(image), expected)


@pytest.mark.parametrize("size", [(300, 260), (47, 99), (64, 64), (33, 32)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [32, (40, 52)])
def test_preprocessing_is_that_of_torchvision_bit_for_bit(resize, interpolation, size):
    image = Image.merge("RGB", [Image.effect_noise(size, 80) for _ in "RGB"])
    for grey in (False, True):
        for order in ("RGB",) if grey else ("RGB", "BGR"):
            mean, std = ((0.4,), (0.2,)) if grey else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            ours = Preprocess(resize, (29, 32), mean, std, interpolation, order)
            theirs = transforms.Compose(
                [
                    *([transforms.Grayscale()] if grey else []),
                    transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
                    transforms.CenterCrop((29, 32)),
                    transforms.ToTensor(),
                    transforms.Lambda(lambda x, order=order: x.flip(0) if order == "BGR" else x),
                    transforms.Normalize(mean, std),
                ]
            )
            assert torch.equal(ours.transform()(image), theirs(image))


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(SnnzooError, match=r"broken\.png: cannot read"):
        calibration_images(str(tmp_path), PRESETS["digits"], 4)


def test_an_unreadable_calibration_image_is_left_out_named_and_another_drawn_in_its_place(tmp_path, monkeypatch):
    for i in range(8):
        image = Image.new("RGB", (32, 32), (20 * i, 0, 0))
        image.save(tmp_path / f"{i}.png")
    before = calibration_images(str(tmp_path), PRESETS["cifar10"], 5, seed=3)
    order = drawn(8, 5, 3)
    (tmp_path / f"{order[1]}.png").write_bytes(b"not a picture")
    told = []
    left_out = LeftOut(told.append)
    after = calibration_images(str(tmp_path), PRESETS["cifar10"], 5, seed=3, leave_out=left_out)
    assert len(after) == 5
    assert torch.equal(after[:4], before[[0, 2, 3, 4]])
    assert left_out.names == [told[0].removeprefix("left out: ")]
    assert f"{order[1]}.png: cannot read this image" in told[0]
    few = calibration_images(str(tmp_path), PRESETS["cifar10"], 8, leave_out=LeftOut(told.append))
    assert len(few) == 7
    for path in tmp_path.iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(SnnzooError, match="none of 8 images can be read; the first one is "):
        calibration_images(str(tmp_path), PRESETS["cifar10"], 5, leave_out=LeftOut(told.append))
    monkeypatch.setattr("snnzoo.data.loading.MAX_LEFT_OUT", 3)
    with pytest.raises(SnnzooError, match="more than 3 images cannot be read; the last one is "):
        calibration_images(str(tmp_path), PRESETS["cifar10"], 5, leave_out=LeftOut(told.append))


def test_the_same_seed_draws_the_same_images():
    first, again, other = (calibration_images("digits", PRESETS["digits"], 6, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_held_out_digits_are_not_among_the_training_digits():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1297, 500)
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in test.images) == 0
    assert len(limited(test, 20)) == 20
