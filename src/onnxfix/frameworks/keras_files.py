"""Keras files: loading them safely, old ones included."""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxfix.errors import ExportError, LoadError
from onnxfix.frameworks.lowering_tf2onnx import first_line
from onnxfix.frameworks.sniff import Content, expect

_POLICIES = frozenset({"Policy", "PolicyV1", "DTypePolicy"})
_BASE_KEYS = frozenset({
    "name", "trainable", "dtype", "autocast", "activity_regularizer", "batch_shape", "batch_input_shape",
    "input_shape", "input_dim", "weights",
})

# What h5py and zipfile raise of files whose parts do not fit together.
_DAMAGE = (OSError, KeyError, ValueError, RuntimeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def load_file(path: Path) -> Any:
    """Load a ``.keras`` or ``.h5`` file without compiling it and without running code that it carries.

    Files that Keras 3 refuses because of configuration keys of older versions are read with those keys dropped.

    Raises:
        LoadError: the file is damaged, holds no model, or needs Python code that is not in it.
    """
    kinds = (Content.HDF5,) if path.suffix.lower() in (".h5", ".hdf5") else (Content.KERAS_ZIP, Content.HDF5)
    kind = expect(path, kinds, "a Keras model file")
    config = config_of(path, kind)
    _refuse_code(config, path)
    # Keras goes by the suffix; .keras files written before Keras 2.12 are HDF5.
    wanted = ".h5" if kind is Content.HDF5 else ".keras"
    if path.suffix.lower() in ((".h5", ".hdf5") if kind is Content.HDF5 else (".keras",)):
        try:
            return _keras_load(path)
        except Exception as error:  # Keras wraps a broken configuration in whatever its constructors raise
            refusal: Exception | None = error
    else:
        refusal = None
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
        mended = Path(folder) / f"model{wanted}"
        try:
            _write_with_config(path, mended, _modern(config), kind)
        except _DAMAGE as error:
            raise LoadError(f"{path} is damaged or cut short: {first_line(error)}.") from error
        try:
            return _keras_load(mended)
        except Exception as error:  # see above
            raise LoadError(_why(path, config, refusal or error)) from error


def copied(model: Any) -> Any:
    """A deep copy of an in-memory model, through Keras's own serialisation.

    Raises:
        ExportError: the model cannot be serialised.
    """
    import keras

    from onnxfix.frameworks.keras_calls import layer_paths

    classes = {type(part) for part in (model, *(layer for _, layer in layer_paths(model)))}
    own = {c.__name__: c for c in classes if c.__module__.split(".")[0] != "keras"}
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
            # The code that a Lambda layer may carry is the caller's own, taken from memory: files never get here.
            return keras.saving.load_model(path, custom_objects=own, compile=False, safe_mode=False)
        except Exception as error:  # a model's own get_config() may raise anything
            raise ExportError(
                f"The Keras model {model.name} cannot be copied: {first_line(error)}; save the repaired model as "
                ".onnx instead."
            ) from error


def _keras_load(path: Path) -> Any:
    import keras

    return keras.saving.load_model(path, compile=False, safe_mode=True)


def config_of(path: Path, kind: Content) -> dict[str, Any]:
    """The model configuration that a file holds.

    Raises:
        LoadError: it holds none, or is damaged.
    """
    import h5py

    try:
        if kind is Content.KERAS_ZIP:
            with zipfile.ZipFile(path) as archive:
                text: Any = archive.read("config.json")
        else:
            with h5py.File(path, "r") as file:
                text = file.attrs.get("model_config")
        if text is None:
            raise LoadError(
                f"{path} holds weights but no model: give the file written by model.save(), or load the model in "
                "Python and pass it."
            )
        config: dict[str, Any] = json.loads(text)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
        raise LoadError(
            f"{path} is a damaged Keras file (it was cut off or overwritten): download or save it again."
        ) from error
    return config


def _refuse_code(config: Any, path: Path) -> None:
    """Lambda layers carry marshalled Python code; it is never run."""
    for node in _objects(config):
        function = node["config"].get("function") if isinstance(node.get("config"), dict) else None
        pickled = isinstance(function, list) or (
            isinstance(function, dict) and function.get("class_name") == "__lambda__"
        )
        if node.get("class_name") == "Lambda" and pickled:
            raise LoadError(
                f"{path} has a Lambda layer that carries Python code, which onnxfix does not run: load the model in "
                "Python with safe_mode=False if you trust it, and pass the keras.Model."
            )


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    if isinstance(config, dict):
        if "class_name" in config:
            yield config
        for value in config.values():
            yield from _objects(value)
    elif isinstance(config, list):
        for value in config:
            yield from _objects(value)


def _modern(config: Any) -> Any:
    """The configuration as Keras 3 takes it: no keys that a layer's constructor does not know."""
    if isinstance(config, list):
        return [_modern(value) for value in config]
    if not isinstance(config, dict):
        return config
    made = {key: _modern(value) for key, value in config.items()}
    inner = made.get("config")
    if not isinstance(inner, dict) or "class_name" not in made:
        return made
    if made["class_name"] in _POLICIES:
        return inner.get("name", "float32")
    if made["class_name"] == "Model":
        made["class_name"] = "Functional"
    accepted = _accepted(made["class_name"])
    if accepted is not None and "layers" not in inner:
        made["config"] = {key: value for key, value in inner.items() if key in accepted}
    return made


def _accepted(class_name: str) -> frozenset[str] | None:
    """Names of the arguments that a Keras layer's constructor takes; None where it is no layer of Keras."""
    import keras

    layer = getattr(keras.layers, class_name, None)
    if not (inspect.isclass(layer) and issubclass(layer, keras.layers.Layer)):
        return None
    names: set[str] = set()
    for base in layer.__mro__:
        if "__init__" not in vars(base):
            continue
        arguments = inspect.signature(vars(base)["__init__"]).parameters
        names.update(arguments)
        if not any(a.kind is inspect.Parameter.VAR_KEYWORD for a in arguments.values()):
            return frozenset(names)
        if base is keras.layers.Layer:
            break
    return frozenset(names | _BASE_KEYS)


def _write_with_config(source: Path, target: Path, config: Any, kind: Content) -> None:
    import h5py

    text = json.dumps(config)
    if kind is Content.KERAS_ZIP:
        copy_zip(source, target, {"config.json": text.encode()})
        return
    shutil.copyfile(source, target)
    target.chmod(0o600)
    with h5py.File(target, "r+") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = text


def copy_zip(source: Path, target: Path, replaced: Mapping[str, bytes]) -> None:
    """Copy an archive, some of its members replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, replaced.get(entry.filename, old.read(entry)))


def _why(path: Path, config: Any, error: Exception) -> str:
    import keras

    known = {*dir(keras.layers), *dir(keras.initializers), *dir(keras.regularizers), *dir(keras.constraints),
             "Functional", "Sequential", "Model", *_POLICIES}
    unknown = sorted({
        node["class_name"] for node in _objects(config)
        if node.get("class_name") not in known and isinstance(node.get("class_name"), str)
        and "module" in node and not str(node["module"]).startswith("keras")
    })
    if unknown:
        return (
            f"{path} uses the custom class {', '.join(unknown)}, which is not in the file: load the model in Python "
            "with custom_objects, and pass the keras.Model."
        )
    return f"Keras cannot load {path}: {first_line(error)}."
