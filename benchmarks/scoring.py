"""A diagnosis and a repair, held against the ground truth of planted faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxfix import FaultKind
from onnxfix.testing import Site

# What a repair must reach: no label differs, and no output by more than this share of its range.
REPAIRED = 1e-4


@dataclass(frozen=True)
class Score:
    """How well one repair did.

    Attributes:
        found: Planted faults that some finding names.
        planted: Planted faults.
        first: The first finding is a planted fault.
        innocent: Nodes that findings name although nothing was planted there.
        labels: Share of photos whose label differs after the repair (repair and held-out data, the worse).
        max_rel: Largest relative difference after the repair (the worse of the two).
        verified: The repair says that it succeeded.
    """

    found: int
    planted: int
    first: bool
    innocent: int
    labels: float
    max_rel: float
    verified: bool

    @property
    def passed(self) -> bool:
        """Found exactly, repaired and verified."""
        located = self.found == self.planted and self.first and self.innocent == 0
        return located and self.verified and self.labels == 0 and self.max_rel <= REPAIRED


def score(repair: Any, sites: tuple[Site, ...]) -> Score:
    """Hold a :class:`onnxfix.Repair` against the ground truth."""
    faults = repair.diagnosis.faults
    guilty = {name for site in sites for name in (site.node, *site.also)}
    nodes = {node.name for node in repair.target.proto.graph.node}
    named = {name for fault in faults for name in fault.target_nodes} & nodes
    results = (repair.after, repair.verified)
    return Score(
        found=sum(any(names(fault, site) for fault in faults) for site in sites),
        planted=len(sites),
        first=bool(faults) and any(names(faults[0], site) for site in sites),
        innocent=len(named - guilty),
        labels=max(result.label_discrepancy or 0.0 for result in results),
        max_rel=max(result.max_rel for result in results),
        verified=repair.success,
    )


def names(fault: Any, site: Site) -> bool:
    """Whether a finding names a planted fault."""
    same_tensor = fault.parameter in (None, site.parameter) or site.parameter is None or not _is_weight(site)
    return same_tensor and not {site.node, *site.also}.isdisjoint(fault.target_nodes)


def _is_weight(site: Site) -> bool:
    """Only then must the parameter be the very one: an attribute's meaning can have several spellings."""
    return site.kind == FaultKind.WEIGHTS
