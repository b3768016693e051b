"""Spiking networks, by name. Importing this package does not import torch."""

from snnzoo.models.factory import create_model
from snnzoo.models.registry import list_models

__all__ = ["create_model", "list_models"]
