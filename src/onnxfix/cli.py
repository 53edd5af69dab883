"""The command line. Every verb is one call in Python; see ``docs/cli.md``."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from onnxfix import __version__
from onnxfix.arguments import Parser, UsageError, data_options, pair_options, verb
from onnxfix.errors import ExportError, LoadError, OnnxFixError
from onnxfix.frameworks import Framework
from onnxfix.inputs import Inputs
from onnxfix.model import Model, load
from onnxfix.report import terminal
from onnxfix.report.files import check_report
from onnxfix.report.rows import model_facts
from onnxfix.shell import Shell, own_streams

if TYPE_CHECKING:
    from onnxfix.repair import Repair
    from onnxfix.surgeon.written import Written

GOOD, DIFFERENT, FAILED = 0, 1, 2
_INTERCHANGEABLE = ({".keras", ".h5", ".hdf5"}, {".pt", ".pth", ".pt2"}, {"", ".pb"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; ``sys.argv`` when None.

    Returns:
        The exit code: 0 good, 1 the models differ (or are not repaired), 2 it could not run.
    """
    try:
        args = _parser().parse_args(arguments)
    except UsageError as error:
        _complain(sys.stderr, str(error))
        return FAILED
    except SystemExit as stop:  # argparse leaves this way after --help and --version
        return int(stop.code or 0)
    with own_streams(loud=args.debug or args.verbose) as (out, err):
        try:
            if args.json not in (None, "-"):
                _parent_checked(Path(args.json))
            with Shell(out, err, quiet=args.quiet, json=args.json) as shell:
                return int(args.run(args, shell))
        except OnnxFixError as error:
            return _failed(err, str(error), args.debug)
        except KeyboardInterrupt:
            return _failed(err, "interrupted.", args.debug)
        except Exception as error:  # a bug of ours or of a library: one sentence for the user, the rest with --debug
            return _failed(err, f"internal error: {type(error).__name__}: {error}; run with --debug.", args.debug)


def inspect(args: argparse.Namespace, shell: Shell) -> int:
    """Print what a model is."""
    model = _load(args.model, "model", shell)
    shell.done()
    terminal.show_model(shell.console, model)
    shell.write_json(model_facts(model))
    return GOOD


def canonicalize(args: argparse.Namespace, shell: Shell) -> int:
    """Write a model's normal form."""
    from onnxfix.canonical import canonicalize as run

    output = _output(args.output, {".onnx"}, (args.model,))
    model = _load(args.model, "model", shell)
    shell.progress("canonicalizing", 0.0)
    canonical = run(model)
    canonical.save(output)
    shell.done()
    after, before = len(canonical.proto.graph.node), len(model.proto.graph.node)
    shell.say(f"wrote {output}: {after} nodes (before: {before})")
    shell.write_json({"output": str(output), "nodes": after, "nodes_before": before})
    return GOOD


def compare(args: argparse.Namespace, shell: Shell) -> int:
    """Say whether two models agree."""
    from onnxfix.compare import compare as run

    data = _data(args, args.data)
    source, target = _load(args.source, "source", shell), _load(args.target, "target", shell)
    result = run(
        source, target, data, args.comparator, rtol=args.rtol, atol=args.atol, progress=shell.progress
    )
    shell.done()
    terminal.show_comparison(shell.console, result)
    shell.write_json(result.to_dict())
    return GOOD if result.equivalent else DIFFERENT


def diagnose(args: argparse.Namespace, shell: Shell) -> int:
    """Say which faults make two models differ."""
    from onnxfix.diagnose import diagnose as run

    data = _data(args, args.data)
    source, target = _load(args.source, "source", shell), _load(args.target, "target", shell)
    result = run(source, target, data, **_tuning(args), progress=shell.progress)
    shell.done()
    terminal.show_diagnosis(shell.console, result)
    shell.write_json(result.to_dict())
    return GOOD if not result.faults and result.comparison.equivalent else DIFFERENT


def repair(args: argparse.Namespace, shell: Shell) -> int:
    """Repair the target, prove it on held-out data, and write it."""
    from onnxfix.repair import repair as run

    output = _output(args.output, _formats(args.target), (args.source,))
    if args.report is not None:
        check_report(_parent_checked(Path(args.report)))
    data = _data(args, args.data)
    holdout = None if args.holdout is None else _data(args, args.holdout)
    source, target = _load(args.source, "source", shell), _load(args.target, "target", shell)
    result = run(source, target, data, holdout, **_tuning(args), progress=shell.progress)
    written, failure = _saved(result, output, shell) if result.success else (None, None)
    shell.done()
    terminal.show_repair(shell.console, result)
    if args.report is not None:
        result.report(args.report)
    told = {"output": str(output), "written": written.to_dict()} if written else {"output": None}
    shell.write_json(result.to_dict() | told)
    if failure is not None:
        raise failure
    if written is None:
        shell.say(f"not repaired: {output} was not written")
        return DIFFERENT
    for sentence in written.sentences():
        shell.say(sentence)
    shell.say(f"wrote {output}")
    return GOOD


def convert(args: argparse.Namespace, shell: Shell) -> int:
    """Convert a model to another framework, check and repair what comes out, and write it."""
    from onnxfix.convert import convert as run

    output = _parent_checked(Path(args.output))
    if output.exists() and Path(args.source).exists() and output.samefile(args.source):
        raise ExportError(f"{output} is the model that is read: choose another output path.")
    result = run(args.source, args.to, output, _data(args, args.data), **_tuning(args), progress=shell.progress)
    shell.done()
    terminal.show_conversion(shell.console, result)
    shell.write_json(result.to_dict())
    shell.say(f"wrote {output}" if result.success else f"not converted: {output} was not written")
    return GOOD if result.success else DIFFERENT


def trace(args: argparse.Namespace, shell: Shell) -> int:
    """Say which hop of a chain of conversions broke the model."""
    from onnxfix.trace import trace as run

    if len(args.models) < 2:
        raise LoadError("a chain has at least two models: give the original first, then what was made of it.")
    result = run(args.models, _data(args, args.data), **_tuning(args), progress=shell.progress)
    shell.done()
    terminal.show_trace(shell.console, result)
    shell.write_json(result.to_dict())
    return GOOD if result.equivalent else DIFFERENT


def _saved(result: Repair, output: Path, shell: Shell) -> tuple[Written | None, OnnxFixError | None]:
    """Write the repaired model; what went wrong is told after the findings, which stand all the same."""
    shell.progress("writing", 0.0)
    try:
        return result.save(output), None
    except OnnxFixError as error:
        return None, error


def _load(path: str, role: str, shell: Shell) -> Model:
    shell.progress(f"loading the {role}", 0.0)
    model = load(path)
    shell.progress(f"loading the {role}", 1.0)
    return model


def _data(args: argparse.Namespace, data: str) -> Inputs:
    return Inputs(
        data,
        preprocess=args.preprocess,
        source_preprocess=args.source_preprocess,
        target_preprocess=args.target_preprocess,
        limit=args.limit,
        batch_size=args.batch_size,
    )


def _tuning(args: argparse.Namespace) -> dict[str, Any]:
    return {"rtol": args.rtol, "atol": args.atol, "batch_size": args.batch_size, "seed": args.seed}


def _formats(target: str) -> set[str]:
    """The suffixes in which a repaired target can be written."""
    path = Path(target)
    if not path.exists():
        raise LoadError(f"{path} does not exist: check the path.")
    own = "" if path.is_dir() else path.suffix.lower()
    family = next((group for group in _INTERCHANGEABLE if own in group), {own})
    return {".onnx"} | family


def _output(name: str, suffixes: set[str], inputs: Sequence[str]) -> Path:
    """Check an output path before the work begins.

    Raises:
        ExportError: its suffix is not one of ``suffixes``, its folder is missing, or it is an input.
    """
    path = Path(name)
    if path.suffix.lower() not in suffixes:
        choices = ", ".join(sorted(suffix or "no suffix (a directory)" for suffix in suffixes))
        raise ExportError(f"{path} has a suffix that cannot be written here: choose one of {choices}.")
    if any(path.exists() and Path(other).exists() and path.samefile(other) for other in inputs):
        raise ExportError(f"{path} is the model that is read: choose another output path.")
    return _parent_checked(path)


def _parent_checked(path: Path) -> Path:
    if not path.parent.is_dir():
        raise ExportError(f"{path} cannot be written: the directory {path.parent} does not exist.")
    return path


def _failed(err: TextIO, sentence: str, debug: bool) -> int:
    if debug:
        traceback.print_exc(file=err)
    _complain(err, sentence)
    return FAILED


def _complain(err: TextIO, sentence: str) -> None:
    err.write(f"onnxfix: {' '.join(sentence.split())}\n")
    err.flush()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="onnxfix", description="Find, repair and prove faults in converted models.")
    parser.add_argument("--version", action="version", version=f"onnxfix {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    verb(verbs, inspect).add_argument("model", metavar="MODEL", help="a model file or SavedModel directory")
    normal = verb(verbs, canonicalize)
    normal.add_argument("model", metavar="MODEL", help="a model file or SavedModel directory")
    normal.add_argument("-o", "--output", metavar="OUT.onnx", required=True, help="where to write the normal form")
    comparing = verb(verbs, compare)
    pair_options(comparing)
    comparing.add_argument(
        "--comparator", choices=("auto", "classification", "regression"), default="auto", help="default: auto"
    )
    pair_options(verb(verbs, diagnose))
    repairing = verb(verbs, repair)
    pair_options(repairing)
    repairing.add_argument("-o", "--output", metavar="FIXED", required=True, help="where to write the repaired target")
    repairing.add_argument("--holdout", metavar="H", help="data to verify on; by default a part of --data is held out")
    repairing.add_argument("--report", metavar="FILE", help="also write a report (.html, .json, .md)")
    converting = verb(verbs, convert)
    converting.add_argument("source", metavar="SOURCE", help="the model to convert")
    data_options(converting, sides=False)
    converting.add_argument("--to", metavar="FRAMEWORK", required=True, choices=list(Framework),
                            help=f"one of {', '.join(Framework)}")
    converting.add_argument("-o", "--output", metavar="OUT", required=True, help="where to write the converted model")
    tracing = verb(verbs, trace)
    tracing.add_argument("models", metavar="MODEL", nargs="+", help="the chain: the original, then each conversion")
    data_options(tracing, sides=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
