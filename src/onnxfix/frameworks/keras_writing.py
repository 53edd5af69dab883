"""Keras files written again: only what an edit changed of the weights and the configuration differs."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.errors import ExportError
from onnxfix.frameworks.keras_files import config_of, copy_zip
from onnxfix.frameworks.keras_graph import functional
from onnxfix.frameworks.sniff import Content, sniff

if TYPE_CHECKING:
    from onnxfix.model import Model

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_WIRING = frozenset({"class_name", "inbound_nodes", "input_layers", "output_layers"})
_ABSENT: Any = object()


def save_file(model: Model, changed: Any, path: Path) -> None:
    """Write ``changed``, an edited copy of ``model.native``, as ``.keras`` or ``.h5``.

    Into a copy of the original file where that has the same format, so that everything else in it stays as it was.

    Raises:
        ExportError: the suffix is none of Keras's.
    """
    suffix = path.suffix.lower()
    if suffix not in (".keras", ".h5", ".hdf5"):
        raise ExportError(f"A Keras model is saved as .keras, .h5 or .onnx, not as {suffix or 'a directory'}.")
    functions = [] if suffix == ".keras" else sorted(_functions(functional(changed)))
    if functions:
        raise ExportError(
            f"legacy {suffix} files hold layers only, and the edited model also has the operations "
            f"{', '.join(functions)}: save it as .keras."
        )
    rewrite = None if model.path is None else _REWRITES.get((sniff(model.path), suffix == ".keras"))
    if model.path is None or rewrite is None or not rewrite(model.path, model.native, changed, path):
        changed.save(path)


def _rewrite_zip(original: Path, native: Any, changed: Any, path: Path) -> bool:
    """Write a copy of a ``.keras`` archive with another configuration and weights; False where it is not today's."""
    with zipfile.ZipFile(original) as archive:
        if not {_WEIGHTS, _CONFIG} <= set(archive.namelist()):
            return False
        weights, config = archive.read(_WEIGHTS), archive.read(_CONFIG)
    before, after = _Stored(native), _Stored(changed)
    replaced = {}
    if before.config != after.config:
        merged = with_changes(json.loads(config), before.config, after.config)
        replaced[_CONFIG] = json.dumps(merged).encode()
    if {name: a.shape for name, a in before.arrays.items()} != {name: a.shape for name, a in after.arrays.items()}:
        replaced[_WEIGHTS] = after.weights
    elif before.arrays.keys() and any(not _same(before.arrays[name], a) for name, a in after.arrays.items()):
        content = _with_arrays(weights, before.arrays, after.arrays)
        if content is None:
            return False
        replaced[_WEIGHTS] = content
    copy_zip(original, path, replaced)
    return True


def _functions(graph: Any) -> Iterator[str]:
    """Names of the operations of a graph, and of those inside, that are no layers."""
    for operation in [] if graph is None else graph._operations:
        if hasattr(operation, "weights"):
            yield from _functions(functional(operation))
        else:
            yield operation.name


class _Stored:
    """A model as today's Keras stores it: its configuration and its weights, these also as arrays by dataset."""

    def __init__(self, model: Any) -> None:
        import h5py

        self.arrays: dict[str, np.ndarray] = {}
        with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            with zipfile.ZipFile(path) as archive:
                self.config = _lasting(json.loads(archive.read(_CONFIG)))
                self.weights = archive.read(_WEIGHTS)
        with h5py.File(io.BytesIO(self.weights), "r") as file:
            file.visititems(
                lambda name, item: self.arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )


def _lasting(config: Any) -> Any:
    """A configuration without what differs each time that it is written."""
    if isinstance(config, list):
        return [_lasting(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {key: _lasting(value) for key, value in config.items() if key != "shared_object_id"}


def _with_arrays(content: bytes, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> bytes | None:
    """A weights file with other numbers; None where it does not hold the ones before."""
    with _opened(content) as (file, stream):
        for name, value in after.items():
            if _same(before[name], value):
                continue
            if name not in file or not _same(file[name][()], before[name]):
                return None
            file[name][...] = value
    return stream.getvalue()


@contextmanager
def _opened(content: bytes) -> Iterator[tuple[Any, io.BytesIO]]:
    import h5py

    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        yield file, stream


def with_changes(original: Any, before: Any, after: Any) -> Any:
    """What a file says, with the changes between two configurations, and what these do not say left as it is.

    Args:
        original: What the file says, perhaps in the words of another version of Keras.
        before: What today's Keras says of the model in the file.
        after: What it says of the edited model.
    """
    if before == after:
        return original
    if isinstance(original, dict) and isinstance(before, dict) and isinstance(after, dict):
        kept = {
            key: with_changes(value, before.get(key, _ABSENT), after.get(key, _ABSENT))
            for key, value in original.items() if key in after or key not in before
        }
        new = {key: value for key, value in after.items() if key not in kept and before.get(key, _ABSENT) != value}
        return {**kept, **new}
    lists = [value for value in (original, before, after) if isinstance(value, list)]
    if len(lists) == 3:
        return _merged(original, before, after)
    return original if after is _ABSENT else after


def _merged(original: list[Any], before: list[Any], after: list[Any]) -> list[Any]:
    """A list of named things by their names, any other as a whole."""
    names = [_named(value) for value in after]
    old, known = _by_name(original), _by_name(before)
    if None in names or old is None or known is None:
        if len(original) == len(before) == len(after):
            return [with_changes(*triple) for triple in zip(original, before, after, strict=True)]
        return after
    return [
        with_changes(old[name], known[name], value) if name in old and name in known else value
        for name, value in zip(names, after, strict=True)
    ]


def _by_name(values: list[Any]) -> dict[Any, Any] | None:
    names = [_named(value) for value in values]
    return None if None in names or len(set(names)) < len(names) else dict(zip(names, values, strict=True))


def _named(value: Any) -> str | None:
    inner = value.get("config") if isinstance(value, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _rewrite_h5(original: Path, native: Any, changed: Any, path: Path) -> bool:
    """Write a copy of a legacy HDF5 file with other weights and configuration; False where its layout differs."""
    import h5py

    from onnxfix.frameworks.keras import variables

    before, after = variables(native), list(changed.variables)
    # They keep their order through a copy; the beginnings of their paths may change.
    if [(v.shape, v.name) for v in before.values()] != [(v.shape, v.name) for v in after]:
        return False
    values = {
        name: np.asarray(new) for (name, old), new in zip(before.items(), after, strict=True)
        if not _same(np.asarray(old), np.asarray(new))
    }
    config = _changed_config(original, native, changed)
    if config is None:
        return False
    shutil.copyfile(original, path)
    path.chmod(0o600)
    names = {id(v): name for name, v in before.items()}
    with h5py.File(path, "r+") as file:
        datasets: dict[str, Any] = {}
        for variable, dataset in _h5_weights(file["model_weights"], native):
            if _same(dataset[()], np.asarray(variable)):
                datasets[names[id(variable)]] = dataset
        if not values.keys() <= datasets.keys():
            return False
        for name, value in values.items():
            datasets[name][...] = value
        if config:
            file.attrs["model_config"] = config
    return True


def _changed_config(path: Path, native: Any, changed: Any) -> str | None:
    """The file's configuration with the changes; empty where there are none, None where they change its graph."""
    before, after = _Stored(native).config, _Stored(changed).config
    if before == after:
        return ""
    if _layout(before) != _layout(after):
        return None
    return json.dumps(with_changes(config_of(path, Content.HDF5), before, after))


def _layout(config: Any) -> Any:
    """What a configuration says about which layer reads which: older files say it in other words."""
    if isinstance(config, list):
        return [_layout(value) for value in config]
    if not isinstance(config, dict):
        return None
    kept = {key: value for key, value in config.items() if key in _WIRING}
    return [kept, _named(config), *(_layout(value) for key, value in config.items() if key in ("config", "layers"))]


_REWRITES = {(Content.KERAS_ZIP, True): _rewrite_zip, (Content.HDF5, False): _rewrite_h5}


def _h5_weights(group: Any, native: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs of variable and dataset, in the order by which Keras matches them."""
    layers = [(layer, layer.trainable_weights + layer.non_trainable_weights) for layer in native.layers]
    stored = [group[name] for name in _strings(group, "layer_names")]
    with_weights = [part for part in stored if _strings(part, "weight_names")]
    for (_, weights), part in zip([pair for pair in layers if pair[1]], with_weights, strict=False):
        for variable, name in zip(weights, _strings(part, "weight_names"), strict=False):
            yield variable, part[name]


def _strings(group: Any, attribute: str) -> list[str]:
    """A string list attribute; Keras splits long ones into ``layer_names0``, ``layer_names1`` ..."""
    values = list(group.attrs.get(attribute, ()))
    chunk = 0
    while f"{attribute}{chunk}" in group.attrs:
        values.extend(group.attrs[f"{attribute}{chunk}"])
        chunk += 1
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
