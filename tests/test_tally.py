"""Counts that add up, and what they say."""

import json
from collections import Counter

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from snnzoo.errors import UsageError
from snnzoo.evaluation import evaluate
from snnzoo.evaluation.tally import Tally


def test_confusion_counts_classes_by_prediction(networks, data):
    net, ann = networks
    result = evaluate(net, ann, data, [2, 3], batch_size=4)
    with torch.inference_mode():
        predictions = net(data.tensors[0].expand(3, *data.tensors[0].shape))[2].argmax(1)
    assert result.classes == 7
    assert result.confusion == Counter(zip(data.tensors[1].tolist(), predictions.tolist(), strict=True))
    assert sum(result.confusion.get((i, i), 0) for i in range(7)) / 10 == result.results[-1].top1


def test_layers_and_energy_are_part_of_the_json(networks, data):
    net, ann = networks
    result = evaluate(net, ann, data, [1, 4], batch_size=5, error_images=2)
    values = json.loads(json.dumps(result.to_dict()))
    assert set(values) == {"images", "ann", "results", "layers", "left_out", "fit", "energy"}
    assert [len(layer["event_rates"]) for layer in values["layers"]] == [4] * 17
    assert all(len(layer["errors"]) == 2 for layer in values["layers"])
    rates = torch.tensor([layer["event_rates"] for layer in values["layers"]], dtype=torch.double)
    neurons = torch.tensor([layer["neurons"] for layer in values["layers"]], dtype=torch.double)
    mean = (rates.mean(1) * neurons).sum() / neurons.sum()
    row = values["results"][-1]
    assert row["events_per_neuron_step"] == pytest.approx(mean.item())
    bits = net.conversion.coding.event_bits
    analog = sum(module.weight.numel() for module in (ann.fc,)) * 4.6
    assert row["energy_uj"] > (row["synaptic_operations"] * 0.9 * bits + analog) * 1e-6
    assert values["ann"]["energy_uj"] == pytest.approx(values["ann"]["multiply_accumulates"] * 4.6e-6)


def test_layer_errors_are_left_out_unless_asked_for(networks, data):
    result = evaluate(*networks, Subset(data, [0, 1]), [1])
    assert all(layer.errors == [] for layer in result.layers)


def test_tallies_of_parts_add_up_to_that_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (20,), generator=generator)
    expected = torch.randn(20, 6, generator=generator)
    logits = torch.randn(3, 20, 6, generator=generator)
    whole, parts = Tally.empty([1, 3], 6), Tally.empty([1, 3], 6)
    whole.count(labels, expected, logits)
    for some in (slice(0, 7), slice(7, 8), slice(8, 20)):
        part = Tally.empty([1, 3], 6)
        part.count(labels[some], expected[some], logits[:, some])
        parts = parts.plus(part)
    for name in ("ann_hits", "hits"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
    assert parts.confusion == whole.confusion
    assert whole.images == parts.images == 20
    assert whole.hits[1, 2] == (logits[2].argmax(1) == expected.argmax(1)).sum()


def test_a_label_beyond_the_networks_classes_is_an_error(networks, data):
    wrong = TensorDataset(data.tensors[0][:2], torch.tensor([3, 7]))
    with pytest.raises(UsageError, match=r"label 7.*7 classes"):
        evaluate(*networks, wrong, [1])


def test_confusions_of_ten_thousand_classes_take_no_more_than_their_images():
    classes = 10_000
    whole = Tally.empty([1], classes)
    for i in range(300):
        part = Tally.empty([1], classes)
        logits = torch.zeros(2, classes)
        logits[0, i] = logits[1, 2 * i] = 1
        part.count(torch.tensor([i, i]), logits, logits[None])
        whole = whole.plus(part)
    assert whole.images == 600
    assert len(json.dumps(whole.to_dict())) < 20_000
    assert Tally.from_dict(json.loads(json.dumps(whole.to_dict()))).confusion == whole.confusion
