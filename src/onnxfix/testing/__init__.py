"""For tests: assert that two models agree, plant conversion faults, hide names."""

from __future__ import annotations

from onnxfix.testing.assertions import assert_equivalent
from onnxfix.testing.faults import Site
from onnxfix.testing.injector import Injection, InjectionError, inject, operators
from onnxfix.testing.opaque import Opaque, make_names_opaque

__all__ = [
    "Injection",
    "InjectionError",
    "Opaque",
    "Site",
    "assert_equivalent",
    "inject",
    "make_names_opaque",
    "operators",
]
