"""The classic constructors of spiking networks, over the builders of `snnzoo.models`."""
