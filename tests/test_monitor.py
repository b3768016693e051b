import pytest
import torch
from torch import nn

from snnzoo import monitor, neuron


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_rates_and_silent_neurons_are_those_of_the_spikes(step_mode):
    net = nn.Sequential(neuron.IFNode(step_mode=step_mode), neuron.IFNode(v_threshold=2.0, step_mode=step_mode))
    watch = monitor.Monitor(net)
    watch.enable()
    x_seq = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]]])  # T = 4, one sample of two inputs
    _ = net(x_seq) if step_mode == "m" else [net(x) for x in x_seq]
    assert watch.get_avg_firing_rate(all=False, module_name="0") == 3 / 8
    assert watch.get_avg_firing_rate(all=False, module_name="1") == 1 / 8
    assert watch.get_avg_firing_rate() == 4 / 16
    assert watch.get_nonfire_ratio() == 0.5
    watch.disable()
    net(x_seq if step_mode == "m" else x_seq[0])
    assert watch.get_avg_firing_rate() == 4 / 16
    watch.reset()
    with pytest.raises(ValueError, match="nothing was counted"):
        watch.get_avg_firing_rate()
    with pytest.raises(ValueError, match=r"'other'.*0, 1"):
        watch.get_avg_firing_rate(all=False, module_name="other")
