"""The public surface: names, signatures, and what importing the package costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import onnxfix
import onnxfix.testing

PUBLIC = {
    "Comparison", "Conversion", "Diagnosis", "Fault", "FaultKind", "Inputs", "Model", "OnnxFixError", "Repair", "Trace",
    "assert_equivalent", "canonicalize", "compare", "convert", "diagnose", "export", "fingerprint", "is_isomorphic",
    "load", "repair", "trace",
}
TESTING = {
    "Injection", "InjectionError", "Opaque", "Site", "assert_equivalent", "inject", "make_names_opaque", "operators",
}
PARAMETERS = {
    "load": ["obj", "inputs", "verify"],
    "export": ["model", "to", "path", "inputs"],
    "canonicalize": ["model"],
    "fingerprint": ["model", "weights"],
    "is_isomorphic": ["a", "b", "weights", "rtol", "atol"],
    "compare": ["source", "target", "data", "comparator"],
    "diagnose": ["source", "target", "data"],
    "repair": ["source", "target", "data", "holdout"],
    "convert": ["source", "to", "path", "data"],
    "trace": ["models", "data"],
    "assert_equivalent": ["source", "target", "data"],
}
RESULTS = {
    "Model": {"proto", "canonical", "framework", "native", "inputs", "outputs", "run", "run_native", "activations", "save"},
    "Comparison": {
        "equivalent", "label_discrepancy", "max_abs", "max_rel", "rank_correlation", "per_output", "worst", "count",
        "to_dict", "_repr_html_",
    },
    "Diagnosis": {"faults", "aligned", "comparison", "to_dict", "_repr_html_"},
    "Fault": {
        "kind", "target_nodes", "source_nodes", "parameter", "expected", "actual", "local_error", "message", "to_dict",
    },
    "Trace": {"names", "hops", "first_broken", "diagnosis", "equivalent", "to_dict", "_repr_html_"},
    "Conversion": {
        "model", "path", "attempts", "repair", "verified", "success", "to_dict", "_repr_html_",
    },
    "Repair": {
        "model", "patches", "before", "after", "verified", "unrepaired", "save", "report", "to_dict", "_repr_html_",
    },
}
FAULT_KINDS = {
    "preprocessing", "input_dimensions", "tensor_layout", "weights", "hyperparameters", "graph", "precision", "output",
    "mode", "conversion",
}
FRAMEWORKS = ("torch", "torchvision", "tensorflow", "keras", "tf2onnx", "onnx2torch", "onnxscript", "ai_edge_litert",
              "litert_torch", "jax")
BASE = "import numpy, onnx, onnxruntime"


def test_the_public_names():
    assert set(onnxfix.__all__) == PUBLIC
    assert set(onnxfix.testing.__all__) == TESTING
    for module in (onnxfix, onnxfix.testing):
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_first_parameters_of_each_function(name):
    parameters = list(inspect.signature(getattr(onnxfix, name)).parameters)
    assert parameters[: len(PARAMETERS[name])] == PARAMETERS[name]


@pytest.mark.parametrize("name", RESULTS)
def test_what_each_result_has(name):
    cls = getattr(onnxfix, name)
    assert RESULTS[name] <= set(dir(cls)) | set(cls.__dataclass_fields__)


def test_the_fault_kinds():
    assert {str(kind) for kind in onnxfix.FaultKind} == FAULT_KINDS


def test_every_public_thing_is_documented():
    for name in onnxfix.__all__:
        assert inspect.getdoc(getattr(onnxfix, name)), name


def test_importing_loads_no_framework():
    code = f"import sys, onnxfix; print([name for name in {FRAMEWORKS} if name in sys.modules])"
    assert python(code).strip() == "[]"


def test_importing_costs_under_half_a_second_beyond_numpy_onnx_and_onnxruntime():
    # Processor time, the least of three: a busy machine delays a process but does not make it work more.
    ours, base = (min(processor_seconds(code) for _ in range(3)) for code in (f"{BASE}, onnxfix", BASE))
    assert ours - base < 0.5


def processor_seconds(imports: str) -> float:
    code = f"import os; {imports}; t = os.times(); print(t.user + t.system)"
    return float(python(code))


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
