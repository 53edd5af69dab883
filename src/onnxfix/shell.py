"""The terminal around a command: its own streams, progress, and where results go."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from onnxfix.report.files import to_json, write_text


class Shell:
    """Prints results and progress of one command.

    Args:
        out: Where results go.
        err: Where progress bars go, on a terminal.
        quiet: Print no result and no progress.
        json: File for the result as JSON; ``-`` for ``out``, which then holds nothing else.
    """

    def __init__(self, out: TextIO, err: TextIO, *, quiet: bool = False, json: str | None = None) -> None:
        self._out, self._json = out, json
        silent = quiet or json == "-"
        self.console = Console(file=io.StringIO() if silent else out, highlight=False)
        self._bars: Progress | None = None
        self._lines = not silent and not out.isatty()
        if not quiet and err.isatty():
            columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Console(file=err), transient=True)
            self._lines = False
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Shell:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def progress(self, stage: str, fraction: float) -> None:
        """Show that ``stage`` is done to ``fraction`` (0..1): a bar on a terminal, a line when it begins elsewhere."""
        if stage not in self._tasks:
            if self._lines:
                self.say(f"{stage} ...")
            self._tasks[stage] = TaskID(0) if self._bars is None else self._bars.add_task(stage, total=1.0)
        if self._bars is not None:
            self._bars.update(self._tasks[stage], completed=fraction)

    def say(self, line: str) -> None:
        """Print one line, as it is."""
        self.console.print(line, markup=False, soft_wrap=True)

    def done(self) -> None:
        """Take the progress bars away, before results are printed."""
        if self._bars is not None:
            self._bars.stop()

    def write_json(self, data: Any) -> None:
        """Write the result where ``--json`` says, if anywhere."""
        if self._json == "-":
            self._out.write(to_json(data))
            self._out.flush()
        elif self._json is not None:
            write_text(Path(self._json), to_json(data))


@contextmanager
def own_streams(*, loud: bool) -> Iterator[tuple[TextIO, TextIO]]:
    """Standard output and error for this program alone: what the frameworks print meanwhile is dropped.

    They print from native code too, so the descriptors themselves are pointed elsewhere where they are the process's
    own; where something has replaced ``sys.stdout`` (a test, a notebook) only Python's streams are.

    Args:
        loud: Leave everything as it is.
    """
    if loud:
        yield sys.stdout, sys.stderr
        return
    if not (_is_descriptor(sys.stdout, 1) and _is_descriptor(sys.stderr, 2)):
        out, err = sys.stdout, sys.stderr
        with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
            yield out, err
        return
    out, err = _copy(sys.stdout), _copy(sys.stderr)
    saved = {number: os.dup(number) for number in (1, 2)}
    try:
        with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
            for number in saved:
                os.dup2(null.fileno(), number)
            yield out, err
    finally:
        out.flush()
        err.flush()
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (AttributeError, OSError, ValueError):
        return False


def _copy(stream: TextIO) -> TextIO:
    stream.flush()
    return os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace")
