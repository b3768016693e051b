"""Spiking networks, by name. Importing this package does not import torch."""

from snnzoo.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
