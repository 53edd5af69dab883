"""Give a repaired model back: in place where its format can express the patches, else re-exported; always proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxfix.errors import CanonicalizationError, ExportError, LoadError, MissingDependencyError, OnnxFixError
from onnxfix.frameworks import Feeds, Framework, adapter
from onnxfix.frameworks.agreement import disagreement
from onnxfix.frameworks.converters import Converter, converters, is_written_as, write
from onnxfix.frameworks.onnx_files import keeps_external_data, write_onnx
from onnxfix.frameworks.writing import refusal, sorted_patches
from onnxfix.quantization import is_quantized
from onnxfix.surgeon.apply import replayed
from onnxfix.surgeon.files import staged
from onnxfix.surgeon.proof import Disproved, compared, judge, native_answers, proved
from onnxfix.surgeon.written import How, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx

    from onnxfix.compare import Comparison
    from onnxfix.inputs import Inputs
    from onnxfix.model import Model
    from onnxfix.repair.result import Repair
    from onnxfix.surgeon.patch import Patch

_STATE_DICT = (".pt", ".pth")
_OFFER = "the repaired ONNX is available, save it as .onnx"


def give_back(repair: Repair, path: Path) -> Written:
    """Write a repaired target: in place, re-exported where that is not possible, as ONNX where the suffix says so.

    Args:
        repair: The repair.
        path: ``.onnx``, or a path in one of the formats of the target's framework.

    Returns:
        What was written, and how.

    Raises:
        ExportError: no way leads there, or the file cannot be written, or what was written does not reproduce the
            source; an existing file is then left as it was.
    """
    if path.suffix.lower() == ".onnx":
        return _as_onnx(repair, path)
    framework = repair.target.framework
    if not is_written_as(framework, path):
        raise ExportError(
            f"the target is a {framework} model, which is not written as {path.name}: choose its own suffix, or .onnx "
            f"({_OFFER})."
        )
    try:
        return _in_place(repair, path)
    except ExportError as error:
        if not _worth_another_way(error):
            raise
        return _re_exported(repair, path, error)


def in_framework(
    target: Model, proto: onnx.ModelProto, patches: Sequence[Patch], source: Model, data: Inputs
) -> Model:
    """The target with all patches in its own framework.

    Args:
        target: The target.
        proto: Its lowered graph with the patches.
        patches: The patches.
        source: The source.
        data: Inputs on which more than exchanged parameters is checked.

    Raises:
        ExportError: the framework cannot express a patch in place, or what it made of it is not the patched graph.
    """
    for patch in patches:
        if not patch.lowered:
            raise _beyond(target, patch)
    model = replace(target, proto=proto, native=adapter(target.framework).edited(target, patches))
    if sorted_patches(target, patches)[1] and target.framework != Framework.ONNX:
        feeds = next(iter(data.chunks(source, model))).target
        problem = disagreement(model.run(feeds), model.run_native(feeds))
        if problem and not is_quantized(proto):
            raise ExportError(f"the edited {target.framework} model does not compute what the patches mean: {problem}.")
    return model


def _beyond(target: Model, patch: Patch) -> ExportError:
    return refusal(target, patch, "it is a change of the normal form and has no single place in the lowered graph")


def _worth_another_way(error: ExportError) -> bool:
    """Whether the file is at fault, and not the place that it is written to."""
    return not isinstance(error.__cause__, OSError)


def _in_place(repair: Repair, path: Path) -> Written:
    target = repair.target
    others = sorted_patches(target, repair.patches)[1]
    if others and target.framework == Framework.PYTORCH and path.suffix.lower() in _STATE_DICT:
        raise refusal(target, others[0], f"{path.suffix} holds weights of a module or script that stays as it is")
    if repair.model.framework == target.framework:
        model = repair.model
    else:
        proto = replayed(target.proto, repair.patches)
        model = in_framework(target, proto, repair.patches, repair.source, repair.holdout)
    with staged(path) as file:
        _written_by(target, lambda: adapter(target.framework).write(target, model.native, file), path)
        proof, note = _of_weights(repair, model, file) or proved(repair, model, file)
    return Written(path, How.IN_PLACE, _changes(repair), (), "", "", proof, note)


def _written_by(target: Model, write: Callable[[], None], path: Path) -> None:
    """Let a framework write; whatever its writer stumbles over is an ExportError, a full disk an OSError."""
    try:
        write()
    except (OnnxFixError, OSError):
        raise
    except Exception as error:  # torch, h5py and TensorFlow raise errors of their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ExportError(f"{target.framework} cannot write {path.name}: {first}; {_OFFER}.") from error


def _of_weights(repair: Repair, model: Model, file: Path) -> tuple[Comparison, str] | None:
    """The proof of a ``state_dict``, which is no model by itself: it is loaded into the module that it is for."""
    if model.framework != Framework.PYTORCH or file.suffix.lower() not in _STATE_DICT:
        return None
    from onnxfix.frameworks.torch_files import is_program, with_weights

    if is_program(file):
        return None
    model = replace(model, native=with_weights(model.native, file))
    chunks = list(repair.holdout.chunks(repair.source, model))
    proof = compared(repair, model, chunks, native_answers(model, chunks))
    judge(repair, proof, file)
    return proof, "A state_dict runs only in its module, so it was proved in this process, not in a fresh one."


def _as_onnx(repair: Repair, path: Path) -> Written:
    """The caller's own graph where the patches have places in it, else the repaired normal form."""
    target, model = repair.target, repair.model
    with staged(path) as file:
        write_onnx(model.proto, file, external=keeps_external_data(target.path))
        proof, note = proved(repair, replace(model, framework=Framework.ONNX), file)
    beyond = next((patch for patch in repair.patches if not patch.lowered), None)
    lost: tuple[str, ...] = ()
    reason = ""
    if beyond is not None:
        reason = str(_beyond(target, beyond))
        lost = ("the names and the layout of the graph inside",)
    elif target.framework != Framework.ONNX:
        reason = f"the target is a {target.framework} model."
    how = How.RE_EXPORTED if reason else How.IN_PLACE
    return Written(path, how, _changes(repair), lost, reason, "onnxfix" if reason else "", proof, note)


def _re_exported(repair: Repair, path: Path, cause: ExportError) -> Written:
    """The repaired graph, converted to the target's framework by the first converter whose file is proved."""
    target = repair.target
    if path.suffix.lower() in _STATE_DICT:
        raise ExportError(
            f"{path.name} was not written: {cause} Choose .pt2, or take the repaired ONNX: save it as .onnx."
        ) from cause
    failures: list[OnnxFixError] = []
    source = _graph(repair)
    feeds = next(iter(repair.holdout.chunks(repair.source, source))).target
    for converter in converters(source, target.framework):
        try:
            proof, note = _by(converter, repair, source, feeds, path)
        except (CanonicalizationError, ExportError, LoadError, MissingDependencyError) as error:
            if isinstance(error, ExportError) and not _worth_another_way(error):
                raise
            failures.append(error)
            continue
        return Written(path, How.RE_EXPORTED, _changes(repair), tuple(_lost(target)), str(cause), converter.name, proof,
                       note)
    if isinstance(cause, Disproved):
        raise cause
    raise ExportError(
        f"{path.name} was not written: {str(cause).rstrip('.')}, and the repaired graph could not be converted anew "
        f"({str(failures[0]).rstrip('.') if failures else 'there is no converter'}): {_OFFER}."
    ) from cause


def _by(
    converter: Converter, repair: Repair, source: Model, feeds: Feeds, path: Path
) -> tuple[Comparison, str]:
    """Convert, write, read again, prove."""
    from onnxfix.model import load

    framework = repair.target.framework
    made = converter.convert(source, feeds)
    with staged(path) as file:
        _written_by(repair.target, lambda: write(source, framework, made, file), path)
        return proved(repair, load(file), file)


def _graph(repair: Repair) -> Model:
    """The repaired graph as an ONNX model."""
    from onnxfix.model import Model

    proto = repair.model.proto
    return Model(proto, Framework.ONNX, proto)


def _lost(target: Model) -> Iterator[str]:
    """What a file that is made anew does not have of the old one."""
    yield f"the {target.framework} model's own layers, and their names"
    if target.path is not None:
        yield "whatever else the file held (metadata, further signatures, assets)"


def _changes(repair: Repair) -> tuple[str, ...]:
    return tuple(patch.describe() for patch in repair.patches)
