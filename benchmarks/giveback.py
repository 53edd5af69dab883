"""Every kind of patch in every format: repaired, saved, proved in the format's own runtime.

``make bench-giveback`` runs every cell and writes ``docs/benchmarks/giveback.md``. ``--only`` and ``--row`` run some
cells; results are kept in ``build/giveback`` and the table is made of all that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import tables
from giveback_nets import data, keras_net, torch_net
from photos import ROOT

import onnxfix
from onnxfix.errors import ExportError

FOLDER = ROOT / "build" / "giveback"
ROWS = (
    "weight", "bias", "folded batch-norm weight", "per-channel quantized weight", "scale", "pads", "stride",
    "dilation", "activation bound", "epsilon", "axis", "resize mode", "inserted transpose", "removed op", "added op",
    "replaced region", "preprocessing", "label map", "dynamic batch",
)
COLUMNS = {
    "module": "PyTorch module", "pt2": "`.pt2`", "keras": "`.keras`", "h5": "`.h5`", "savedmodel": "SavedModel",
    "pb": "frozen `.pb`", "tflite": "`.tflite` float", "int8": "`.tflite` int8", "onnx": "`.onnx`",
}
TORCH = ("module", "pt2", "onnx")


def main() -> None:
    """Run the cells that are asked for, and write the table of all that are known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=COLUMNS, help="a column; may be repeated")
    parser.add_argument("--row", action="append", choices=ROWS, help="a row; may be repeated")
    parser.add_argument("--table", action="store_true", help="only write the table")
    args = parser.parse_args()
    if not args.table:
        for column in args.only or COLUMNS:
            for row in args.row or ROWS:
                run(row, column)
    print(f"wrote {written_table()}")


def run(row: str, column: str) -> None:
    """Run one cell and keep its result."""
    began = time.monotonic()
    warnings.simplefilter("ignore")
    folder = FOLDER / column / row.replace(" ", "-").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result: dict[str, Any] = {"row": row, "column": column}
    try:
        result |= cell(row, column, folder)
    except Exception as error:  # a cell that fails is a result
        (folder / "traceback.txt").write_text(traceback.format_exc())
        result |= {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
    result["seconds"] = round(time.monotonic() - began, 1)
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    reason = result.get("reason", "")[:150]
    print(f"{column:11}{row:30}{result['outcome']:12}{result['seconds']:6} s  {reason}", flush=True)


def cell(row: str, column: str, folder: Path) -> dict[str, Any]:
    """Make the faulty target in its format, repair it, save it."""
    family = TORCH if column in TORCH else ()
    inputs = data().transpose(0, 3, 1, 2).copy() if family else data()
    made = MAKERS[column](row, folder)
    if isinstance(made, str):
        return {"outcome": "no such fault", "reason": made}
    target, output = made
    source = _torch_source(row, spelled=column == "pt2") if family else keras_net()
    fix = onnxfix.repair(source if not family else onnxfix.load(source, inputs[:2]), target, {"image": inputs})
    told = {"patches": [patch.describe() for patch in fix.patches], "faults": [f.kind for f in fix.diagnosis.faults]}
    if not fix.patches and row == "dynamic batch" and fix.success:
        return {"outcome": "no such fault", "reason": "a fixed batch is fed one sample at a time", **told}
    if not fix.patches:
        return {"outcome": "no patch", "reason": repr(fix), **told}
    if not fix.success:
        return {"outcome": "not repaired", "reason": "; ".join(u.reason for u in fix.unrepaired) or repr(fix), **told}
    if column == "module" and fix.model.framework == "pytorch":  # lives in memory: the file only proves it
        how = fix.save(output)
        return {"outcome": "in place", "lost": how.lost, "max_rel": how.proof.max_rel, **told}
    try:
        how = fix.save(output)
    except ExportError as error:  # says what the format cannot hold
        return {"outcome": "impossible", "reason": str(error), **told}
    return {"outcome": str(how.how), "reason": how.reason, "tool": how.tool, "lost": how.lost,
            "max_rel": how.proof.max_rel, **told}


def _torch_source(row: str, spelled: bool) -> Any:
    return torch_net("scale, right" if row == "scale" else "", spelled)


def _module(row: str, folder: Path) -> Any:
    import torch

    if row == "dynamic batch":
        return NO_BATCH
    inputs = torch.from_numpy(data().transpose(0, 3, 1, 2).copy())
    return onnxfix.load(torch_net(row), inputs[:2]), folder / "fixed.pt2"


def _pt2(row: str, folder: Path) -> Any:
    import torch

    if row == "dynamic batch":
        return NO_BATCH
    inputs = torch.from_numpy(data().transpose(0, 3, 1, 2).copy())
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(torch_net(row, spelled=True), (inputs[:2],), dynamic_shapes=batch)
    torch.export.save(program, folder / "broken.pt2")
    return folder / "broken.pt2", folder / "fixed.pt2"


def _onnx(row: str, folder: Path) -> Any:
    inputs = data().transpose(0, 3, 1, 2).copy()
    proto = onnxfix.load(torch_net(row), inputs[:2]).proto
    if row == "dynamic batch":  # baked into the Reshape before the last layer
        reshape = next(node for node in reversed(proto.graph.node) if node.op_type == "Reshape")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 64]), "baked"))
        reshape.input[1] = "baked"
    (folder / "broken.onnx").write_bytes(proto.SerializeToString())
    return folder / "broken.onnx", folder / "fixed.onnx"


NO_BATCH = "its layers take a batch of any size, or the model is fed one sample at a time"
_NO_SCALE = "holds no scale or zero-point of an activation"


def _keras(row: str, folder: Path, suffix: str = ".keras") -> Any:
    if row == "scale":
        return f"a {suffix} file {_NO_SCALE}"
    if row == "dynamic batch":
        return NO_BATCH
    keras_net(row).save(folder / f"broken{suffix}")
    return folder / f"broken{suffix}", folder / f"fixed{suffix}"


def _function(row: str) -> Any:
    import keras
    import tensorflow as tf

    net = keras_net("" if row == "scale" else row)
    body = keras.Model(net.inputs, net.get_layer("pool").output)

    @tf.function(input_signature=[tf.TensorSpec([None, *net.inputs[0].shape[1:]], tf.float32, "image")])
    def serve(image: Any) -> Any:
        if row == "dynamic batch":
            last = net.get_layer("logits")
            return {"logits": tf.matmul(tf.reshape(body(image, training=False), [1, -1]), last.kernel) + last.bias}
        answer = net(image, training=False)
        if row == "scale":
            answer = tf.quantization.fake_quant_with_min_max_args(answer, -0.5, 0.5)
        return {"logits": answer}

    return net, serve


def _savedmodel(row: str, folder: Path) -> Any:
    import tensorflow as tf

    net, serve = _function(row)
    root = tf.Module()
    root.net, root.serve = net, serve
    tf.saved_model.save(root, str(folder / "broken"), signatures=serve.get_concrete_function())
    return folder / "broken", folder / "fixed"


def _pb(row: str, folder: Path) -> Any:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    _, serve = _function(row)
    frozen = convert_variables_to_constants_v2(serve.get_concrete_function())
    (folder / "broken.pb").write_bytes(frozen.graph.as_graph_def().SerializeToString())
    return folder / "broken.pb", folder / "fixed.pb"


def _tflite(row: str, folder: Path) -> Any:
    import tensorflow as tf

    if row == "scale":
        return f"a float .tflite file {_NO_SCALE}"
    converter = tf.lite.TFLiteConverter.from_concrete_functions([_function(row)[1].get_concrete_function()])
    (folder / "broken.tflite").write_bytes(converter.convert())
    return folder / "broken.tflite", folder / "fixed.tflite"


def _int8(row: str, folder: Path) -> Any:
    import tensorflow as tf

    function = _function("" if row == "scale" else row)[1]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in data())
    content = converter.convert()
    (folder / "broken.tflite").write_bytes(_rescaled(content) if row == "scale" else content)
    return folder / "broken.tflite", folder / "fixed.tflite"


def _rescaled(content: bytes) -> bytes:
    """A file in which the third convolution's result has twice its right scale."""
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    graph = model.subgraphs[0]
    convolutions = [op for op in graph.operators
                    if model.operatorCodes[op.opcodeIndex].builtinCode == schema.BuiltinOperator.CONV_2D]
    table = graph.tensors[convolutions[2].outputs[0]].quantization
    table.scale = [table.scale[0] / 4]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


MAKERS: dict[str, Callable[[str, Path], Any]] = {
    "module": _module, "pt2": _pt2, "onnx": _onnx, "keras": _keras,
    "h5": lambda row, folder: _keras(row, folder, ".h5"),
    "savedmodel": _savedmodel, "pb": _pb, "tflite": _tflite, "int8": _int8,
}  # fmt: skip


def written_table() -> Path:
    """Write ``docs/benchmarks/giveback.md`` from the kept results."""
    found = {(r["row"], r["column"]): r for r in map(_read, sorted(FOLDER.glob("*/*/result.json")))}
    rows = [[row, *(found.get((row, column), {}).get("outcome", "not run") for column in COLUMNS)] for row in ROWS]
    notes = [_note(row, column, found[row, column]) for row in ROWS for column in COLUMNS if (row, column) in found]
    lines = ["# Give-back: every kind of patch in every format", "", *TEXT, "", tables.measured_on(), ""]
    lines += [_line(["repaired", *COLUMNS.values()]), _line(["---"] * (len(COLUMNS) + 1)), *map(_line, rows), ""]
    lines += ["## Not in place, and why", "", *(note for note in notes if note), ""]
    path = ROOT / "docs" / "benchmarks" / "giveback.md"
    path.write_text("\n".join(lines))
    return path.relative_to(ROOT)


TEXT = (
    "`make bench-giveback`. A small network (`benchmarks/giveback_nets.py`) is written in each format with one fault,",
    "repaired by `onnxfix.repair` beside the whole network, and saved by `Repair.save`, which runs the new file in",
    "its own runtime in a fresh process and compares it with the source on held-out data. *In place*: the patch was",
    "written into the target's own file or object, and everything else in it is as it was. *Re-exported*: the repaired",
    "graph was converted to the framework anew.",
)


def _note(row: str, column: str, result: dict[str, Any]) -> str:
    if result["outcome"] == "in place":
        return ""
    tool = f" ({result['tool']})" if result.get("tool") else ""
    reason = result.get("reason", "").replace(f"{FOLDER}/", "")
    return f"- {row}, {COLUMNS[column]}: {result['outcome']}{tool}. {reason}"


def _read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
