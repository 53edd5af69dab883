"""Writing reports; a file appears only when it is complete."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfix.errors import OnnxFixError
from onnxfix.report.html import page, repair_html
from onnxfix.report.markdown import repair_markdown

if TYPE_CHECKING:
    from onnxfix.repair import Repair

_FORMS: dict[str, Callable[[Repair], str]] = {
    ".html": lambda repair: page("onnxfix repair", repair_html(repair)),
    ".json": lambda repair: to_json(repair.to_dict()),
    ".md": repair_markdown,
}


def write_report(repair: Repair, path: Path) -> None:
    """Write a report of ``repair``; the suffix (``.html``, ``.json``, ``.md``) chooses the form.

    Raises:
        OnnxFixError: another suffix, or the file cannot be written.
    """
    check_report(path)
    write_text(path, _FORMS[path.suffix.lower()](repair))


def check_report(path: Path) -> None:
    """Refuse a report path early.

    Raises:
        OnnxFixError: the suffix is none of those that reports have.
    """
    if path.suffix.lower() not in _FORMS:
        raise OnnxFixError(f"{path} is no report file: give it one of the suffixes {', '.join(_FORMS)}.")


def to_json(data: Any) -> str:
    """Strict JSON (no NaN or Infinity), indented."""
    return json.dumps(_strict(data), indent=2, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is either complete or not there.

    Raises:
        OnnxFixError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OnnxFixError(f"{path} cannot be written: {error.strerror or error}.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return str(value)
