"""Codings: how neurons send activations. One file a coding: its settings, its facts, its equation."""

from snnzoo.codings.activations import ACTIVATIONS, RELU, Activation, activation_from_dict
from snnzoo.codings.base import CODINGS, Coding, Step, coding_from_dict, register
from snnzoo.codings.delta import Delta
from snnzoo.codings.differential import Differential
from snnzoo.codings.integrate_and_fire import IF, LIF, Rate
from snnzoo.codings.plain import Plain
from snnzoo.codings.signed import Signed

__all__ = [
    "ACTIVATIONS",
    "CODINGS",
    "IF",
    "LIF",
    "RELU",
    "Activation",
    "Coding",
    "Delta",
    "Differential",
    "Plain",
    "Rate",
    "Signed",
    "Step",
    "activation_from_dict",
    "coding_from_dict",
    "register",
]
