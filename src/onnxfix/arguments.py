"""The options of the command line, shared between verbs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from onnxfix.inputs.images import PREPROCESSING


class UsageError(Exception):
    """The command line was not understood."""


class Parser(argparse.ArgumentParser):
    """Complains in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the program."""
        raise UsageError(f"{message}; see {self.prog} --help.")


def verb(verbs: Any, run: Callable[..., int]) -> argparse.ArgumentParser:
    """A verb's own parser: ``run`` gives its name and, by its docstring, its summary."""
    summary = (run.__doc__ or "").strip().splitlines()[0]
    parser: argparse.ArgumentParser = verbs.add_parser(run.__name__, help=summary, description=summary)
    parser.set_defaults(run=run)
    common = parser.add_argument_group("output")
    common.add_argument("--json", metavar="FILE", help="also write the result as JSON; - for standard output alone")
    common.add_argument("-v", "--verbose", action="store_true", help="let the frameworks' own messages through")
    common.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    common.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser


def pair_options(parser: argparse.ArgumentParser) -> None:
    """Two models, data for them, and how to judge."""
    parser.add_argument("source", metavar="SOURCE", help="the original model")
    parser.add_argument("target", metavar="TARGET", help="the converted model")
    data_options(parser, sides=True)


def data_options(parser: argparse.ArgumentParser, *, sides: bool) -> None:
    """Data and how to judge; ``sides`` for preprocessing that differs between source and target."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="D", required=True, help="an .npz or .npy file or a directory of images")
    data.add_argument("--limit", metavar="N", type=_count, help="use only the first N samples")
    data.add_argument("--batch-size", metavar="N", type=_count, default=32, help="samples per run (default: 32)")
    choices = ", ".join(PREPROCESSING)
    data.add_argument("--preprocess", metavar="NAME", help=f"how pictures are scaled: {choices} (default: unit)")
    if sides:
        data.add_argument("--source-preprocess", metavar="NAME", help="the same for the source only")
        data.add_argument("--target-preprocess", metavar="NAME", help="the same for the target only")
    else:
        parser.set_defaults(source_preprocess=None, target_preprocess=None)
    judging = parser.add_argument_group("judging")
    for name, default, what in (("--rtol", 1e-3, "relative"), ("--atol", 0.0, "absolute")):
        note = f"{what} tolerance (default: {default:g})"
        judging.add_argument(name, metavar="X", type=_tolerance, default=default, help=note)
    judging.add_argument("--seed", metavar="N", type=int, default=0, help="seed of all random choices (default: 0)")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return value


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 0")
    return value
