"""One graph a network: captured by torch.export, kept as JSON, and walked by all that converts, runs or measures it."""

from snnzoo.graph.capture import capture
from snnzoo.graph.graph import Graph, Node

__all__ = ["Graph", "Node", "capture"]
