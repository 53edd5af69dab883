"""Which node and tensor of one graph plays the role of which in the other."""

from onnxfix.align.alignment import Alignment, align
from onnxfix.align.graph import GraphView
from onnxfix.align.regions import Region, regions

__all__ = ["Alignment", "GraphView", "Region", "align", "regions"]
