"""Conversions that today's converters really get wrong: is the guilty op named first, and the target repaired?

``python benchmarks/converter_bugs.py [case ...]``; the cases lie in ``$ONNXFIX_DATA/converter_bugs``. A silent one is
repaired, one on which the converter crashes is converted by :func:`onnxfix.convert`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import sys
import tempfile
import time
from pathlib import Path

import tables
from shared_cases import Case, cases

import onnxfix

# A repaired target equals its source to float noise: 100 ulp of float32 of the output's range.
NOISE = 1e-5
# What a correct int8 quantization of the attention of that case costs, and a margin of half as much.
QUANTIZED = 0.05
COLUMNS = ["case", "converter", "first finding", "kind", "before", "after", "verified", "time", "result"]
CRASHES = ["case", "converter", "made by", "tried", "max rel", "verified", "time", "result"]
SUFFIXES = {"onnx": ".onnx", "pytorch": ".pt2", "tflite": ".tflite", "keras": ".keras"}
# Case -> what is guilty: parts of names of the target, of which the first finding must name one; none where the graph
# is right and the runtime wrong.
GUILTY: dict[str, tuple[str, ...]] = {
    "k2o_zeropad_maxpool_ort_fusion": (),
    "o2t_pad_value_opset10": ("node_conv2d",),  # zero padding, folded into the convolution
    "o2t_resize_scale_rounding_shape": ("upsample", "Resize"),
    "o2t_squeeze_negative_axes": ("node_squeeze",),
    "onnx2tf_fmod": ("FLOOR_MOD",),
    "onnx2tf_resize_bilinear_down": ("RESIZE_BILINEAR",),
    "onnxoptimizer_pad_maxpool": ("node_max_pool2d",),
    "slim_conv_mul_width": ("/c/Conv_output_0",),
    "t2o_dyn_adaptive_avgpool_dynamic": ("node_avg_pool2d",),
    "t2o_dyn_transformer_padding_fastpath": ("layer_norm",),  # after which the mask is missing
    "t2o_ts_data_dependent_if": ("/a/Gemm",),
    "t2o_ts_index_put_accumulate_duplicates": ("/ScatterND",),
    "t2o_ts_softplus_threshold": ("/s/Softplus",),
    "t2onnx_resize_nearest": ("StatefulPartitionedCall_1:0",),  # the name that the converter gives its Resize
    "tf2onnx_floormod_negative": ("FloorMod", "Div__6", "Mul__7"),
    "tf2onnx_quantize_dequantize_4bit": ("DequantLinearNode__9", "QuantLinearNode__8"),
    "tf2onnx_unsorted_segment_sum_negative_id": ("UnsortedSegmentSum",),
    "tflite_int8_causal_mha": ("SelectV2",),
}
TEXT = """\
Conversions that today's converters get wrong, unmodified. Written by `make bench-bugs`."""
SILENT = """\
Repaired by `onnxfix.repair`. *First finding* is the first node that the first fault names; it must be the guilty one,
or the one behind which something is missing. After the repair, on the data and on data held out, the target must equal
its source to float noise, and a quantized one to what a correct quantization costs. PyTorch sources are modules."""
CRASHING = """\
Converted by `onnxfix.convert`; *tried* says how many converters that took. The file is then compared with the
source."""


def main() -> int:
    wanted = sys.argv[1:]
    chosen = [case for case in cases("converter_bugs") if not wanted or case.name in wanted]
    rows: dict[str, list[list[str]]] = {"silent": [], "crash": []}
    passed = True
    for case in chosen:
        kind = case.facts["kind"]
        row, good = (_repaired if kind == "silent" else _converted)(case)
        rows[kind].append(row)
        passed &= good
        print("  ".join(row), flush=True)
    if not wanted:
        good = sum(row[-1] == "passed" for row in (*rows["silent"], *rows["crash"]))
        text = f"{TEXT}\n\n**{good} of {len(chosen)} pass.**"
        path = tables.write_sections("converter-bugs", "Real converter bugs", text, [
            ("Conversions that answer differently", SILENT, COLUMNS, rows["silent"]),
            ("Conversions that fail", CRASHING, CRASHES, rows["crash"]),
        ])
        print(f"written to {path}")
    return 0 if passed else 1


def _repaired(case: Case) -> tuple[list[str], bool]:
    """Repair one case; its row and whether it came out as it must."""
    guilty = GUILTY[case.name]
    started = time.perf_counter()
    try:
        repair = onnxfix.repair(case.original(), case.target(), case.data)
    except Exception as error:  # whatever it is, it is this case's result
        said, spent = f"{type(error).__name__}: {error}", f"{time.perf_counter() - started:.1f} s"
        return [case.name, case.facts["converter"], said, *["-"] * 4, spent, "FAILED"], False
    seconds = time.perf_counter() - started
    faults, notes = repair.diagnosis.faults, repair.diagnosis.notes
    after = max(repair.after.max_rel, repair.verified.max_rel)
    bound = QUANTIZED if "int8" in case.name else NOISE
    if guilty:
        first = faults[0].target_nodes if faults else ()
        good = any(name in node for name in guilty for node in first) and repair.success and after <= bound
    else:
        good = not faults and not repair.patches and any("onnxruntime" in note for note in notes)
    named = (faults[0].target_nodes[0] + (", ..." if len(faults[0].target_nodes) > 1 else "")) if faults else "no fault"
    if not faults and notes:
        named = "no fault; the note blames onnxruntime"
    return [
        case.name, case.facts["converter"], named, str(faults[0].kind) if faults else "-",
        f"{repair.before.max_rel:.1e}", f"{after:.1e}", "yes" if repair.success else "NO",
        f"{seconds:.1f} s", "passed" if good else "FAILED",
    ], good


def _converted(case: Case) -> tuple[list[str], bool]:
    """Convert what the case's converter fails on."""
    framework = case.facts["target_framework"].replace("torch", "pytorch")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"converted{SUFFIXES[framework]}"
        try:
            done = onnxfix.convert(case.original(), framework, path, case.data)
            comparison = onnxfix.compare(case.original(), path, case.data)  # the file itself, as it lies there
        except Exception as error:  # as above
            said = f"{type(error).__name__}: {error}"
            return [case.name, case.facts["converter"], said, *["-"] * 4, "FAILED"], False
    seconds = time.perf_counter() - started
    good = done.success and comparison.max_rel <= NOISE
    return [
        case.name, case.facts["converter"], done.attempts[-1].converter, str(len(done.attempts)),
        f"{comparison.max_rel:.1e}", "yes" if done.success else "NO", f"{seconds:.1f} s",
        "passed" if good else "FAILED",
    ], good


if __name__ == "__main__":
    raise SystemExit(main())
