"""The commands: what they are called, what they take, and what ``--help`` says."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click

import torchkeep
from torchkeep.cli.checking import InputSpec, check
from torchkeep.cli.converting import convert
from torchkeep.cli.diffing import diff
from torchkeep.cli.endings import Answer, finish
from torchkeep.cli.showing import show
from torchkeep.cli.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_CODES = """\b
Exit codes:
  0   done
  1   the answer is "no": the selector matches nothing; diff: different; verify: damaged;
      check: the layer does not behave
  2   usage: no such option, or the selector can't be read
  3   the source can't be used: missing, damaged, no such format, or a store in use
  70  a bug in torchkeep       74  the output can't be written
  130 interrupted              141 the reader of the output has gone
"""
_EXAMPLES = """\b
Examples:
  torchkeep show model.safetensors
  torchkeep show model.safetensors 'encoder.**.weight'
  torchkeep show model.safetensors '[numel>1e6] & [dtype=float32]' --json
  torchkeep show runs/digits@1200 '**.bias' --stats
"""
_CHECK_EXAMPLES = """\b
Examples:
  torchkeep check my.layers:Attention --input 2,20,64
  torchkeep check my.layers:make_embedding --input 2,20:int64:1000 --input mask=2,20:bool
"""


def run(arguments: list[str]) -> int:
    """Understand the arguments, carry out the command and write its answer.

    Returns:
        The exit code.
    """
    try:
        # Click only parses: a command returns what is to be done, so that click never sees the errors of doing it.
        command: Callable[[], str | Answer] | int = _commands.main(
            arguments, prog_name="torchkeep", standalone_mode=False
        )
    except click.ClickException as error:
        with suppress(OSError):  # nobody is left to tell
            error.show()
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except SystemExit:  # what click makes of a closed pipe while it prints its help
        raise BrokenPipeError from None
    if isinstance(command, int):
        return command
    answer = command()
    return finish(Answer(answer) if isinstance(answer, str) else answer)


@click.group("torchkeep", epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(torchkeep.__version__, message="torchkeep %(version)s")
def _commands() -> None:
    """Look after a PyTorch model's parameters."""


@_commands.command(
    "show", short_help="List the tensors of a file or checkpoint.", epilog=_EXAMPLES + "\n" + EXIT_CODES
)
@click.argument("source")
@click.argument("selector", default=None, required=False)
@click.option(
    "--stats", is_flag=True, help="Read the tensors too: mean, std, min, max, norm, zeros, NaN, infinite."
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document, one row a line, nothing folded.")
def _show(source: str, selector: str | None, *, stats: bool, as_json: bool) -> Callable[[], str]:
    """List the tensors in SOURCE: names, shapes, dtypes, sizes, and which are tied.

    SOURCE is a .safetensors, .pt, .pth or .bin file, the index of several (model.safetensors.index.json), a folder
    with an index or one such file, or a checkpoint in a store: STORE@1200, STORE@latest, STORE@best, or the store
    alone for its latest. SELECTOR says which tensors, such as 'encoder.**.weight' (quote it for
    the shell); all of them when it is left out.

    Repeated blocks stand on one line: layers[0:12].attn.weight x12. Such a name is a selector itself. Only the
    header of the file is read; --stats reads the tensors and checks their digests.
    """
    return partial(show, source, selector, stats=stats, as_json=as_json)


def _dtype(_: click.Context, __: click.Parameter, spelling: str | None) -> str | None:
    """Understand --dtype: a floating-point dtype in any of its spellings."""
    if spelling is None:
        return None
    from torchkeep.dtypes import FLOATS, canonical_dtype  # noqa: PLC0415 - for this option alone

    found = canonical_dtype(spelling)
    if found not in FLOATS:
        raise click.BadParameter(
            f"{spelling!r} is none of the dtypes that can be converted to: {', '.join(FLOATS)}"
        )
    return found


def _renames(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> list[tuple[str, str]]:
    """Understand --rename: FROM=TO, each time it is given."""
    pairs = []
    for text in given:
        source, sign, target = text.partition("=")
        if not sign:
            raise click.BadParameter(f"expected FROM=TO, such as 'module.=' or 'h.*.=blocks.*.'; found {text!r}")
        pairs.append((source, target))
    return pairs


@_commands.command("convert", short_help="Write any readable file as safetensors.", epilog=EXIT_CODES)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--select", metavar="SELECTOR", help="Which tensors; all of them when it is left out.")
@click.option(
    "--rename", metavar="FROM=TO", multiple=True, callback=_renames, help="Rename by pattern; the last match wins."
)
@click.option("--dtype", metavar="DTYPE", callback=_dtype, help="Convert floating-point tensors to this dtype.")
@click.option("--force", is_flag=True, help="Replace DST when it exists; it may be SRC.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")
def _convert(source: str, target: str, **options: Any) -> Callable[[], str]:
    """Write the tensors of SRC as one safetensors file DST.

    DST gets digests and keeps ties, and of files that torchkeep wrote also kinds and classes. It is written beside
    its place and renamed into it when it is durable. SRC is verified on the way, and read piece by piece.
    """
    return partial(convert, source, target, **options)


@_commands.command("diff", short_help="Compare the tensors of two files or checkpoints.", epilog=EXIT_CODES)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.argument("selector", default=None, required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON document, one tensor a line, nothing folded."
)
def _diff(first: str, second: str, selector: str | None, *, as_json: bool) -> Callable[[], Answer]:
    """Compare the tensors of A and B by name.

    Told are names that only one of them has, changed shapes, dtypes and kinds, ties that only one of them has, and
    how far apart values are that are not equal bit for bit. SELECTOR says which tensors; all of them when it is
    left out. The files are read piece by piece, so they may be larger than memory; of two checkpoints, what their
    digests say is equal is not read.
    """
    return partial(diff, first, second, selector, as_json=as_json)


@_commands.command("verify", short_help="Read files or a store again and find what is damaged.", epilog=EXIT_CODES)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document, one source a line.")
def _verify(sources: tuple[str, ...], *, as_json: bool) -> Callable[[], Answer]:
    """Read every byte of each SOURCE again and compare it with the digests in it.

    All that is damaged is named: file, tensor and byte range. Files that torchkeep wrote have digests, files of
    torch.save since PyTorch 1.6 have checksums; of other files only the structure is checked, which is said. Of a
    store, every checkpoint is verified, and what they share is read once; STORE@STEP verifies one.
    """
    return partial(verify, sources, as_json=as_json)


@_commands.command("log", short_help="List the checkpoints of a store.", epilog=EXIT_CODES)
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document, one checkpoint a line.")
def _log(store: str, *, as_json: bool) -> Callable[[], str]:
    """List the checkpoints of STORE in the order they were saved: step, time, sizes, metrics.

    Marked are the latest and, where the store was given a rule for it, the best. One that can't be read is listed
    with the reason. Of each checkpoint only the first line of its file is read.
    """
    from torchkeep.cli.logbook import log  # noqa: PLC0415 - files need none of it

    return partial(log, store, as_json=as_json)


def _best(_: click.Context, __: click.Parameter, given: str | None) -> tuple[str, Literal["min", "max"]] | None:
    """Understand --best: METRIC:min or METRIC:max."""
    if given is None:
        return None
    metric, sign, mode = given.rpartition(":")
    if not sign or not metric or mode not in {"min", "max"}:
        raise click.BadParameter(f"expected METRIC:min or METRIC:max, such as loss:min; found {given!r}")
    return metric, "min" if mode == "min" else "max"


@_commands.command("prune", short_help="Remove checkpoints from a store.", epilog=EXIT_CODES)
@click.argument("store")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Keep the latest N.")
@click.option("--every", type=click.IntRange(min=1), metavar="K", help="Keep those whose step is a multiple of K.")
@click.option("--best", metavar="METRIC:min|max", callback=_best, help="Keep the best by this metric.")
@click.option("--dry-run", is_flag=True, help="Tell what would be removed, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")
def _prune(
    store: str,
    *,
    last: int | None,
    every: int | None,
    best: tuple[str, Literal["min", "max"]] | None,
    dry_run: bool,
    as_json: bool,
) -> Callable[[], str]:
    """Remove the checkpoints of STORE that no rule keeps, and the files of tensors that none needs any more.

    A checkpoint that any rule keeps is kept. Always kept are the latest and the newest that is intact, which is
    read to see that. Without --best, the best by the store's own rule is kept, where it has one. While another
    process writes to the store, this waits up to 10 seconds and is refused then.
    """
    if last is None and every is None and best is None:
        raise click.UsageError("say what to keep: --last N, --every K or --best METRIC:min")
    from torchkeep.cli.pruning import prune  # noqa: PLC0415 - files need none of it

    return partial(prune, store, last=last, every=every, best=best, dry_run=dry_run, as_json=as_json)


@_commands.command("check", short_help="Check that a layer behaves.", epilog=_CHECK_EXAMPLES + "\n" + EXIT_CODES)
@click.argument("target", metavar="PKG.MODULE:FACTORY")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]SHAPE[:DTYPE[:BELOW]]",
    help="One per input.",
)
@click.option("--only", multiple=True, metavar="CHECK", help="Run this check, and no other that is not named.")
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave this check out.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")
def _check(
    target: str,
    inputs: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    *,
    as_json: bool,
) -> Callable[[], Answer]:
    """Check that the layer which FACTORY makes behaves.

    FACTORY is a function without arguments, a class, or a layer, in a module that Python can import from the
    current folder; its code is run. Each --input is a shape, such as 2,20, filled with random numbers; a dtype may
    follow, such as 2,20:int64, and for whole numbers what they stay below, such as 2,20:int64:100. NAME=... is a
    keyword input.
    """
    if ":" not in target.strip(":"):
        raise click.BadParameter(f"expected PKG.MODULE:FACTORY, found {target!r}", param_hint="PKG.MODULE:FACTORY")
    try:
        specs = [InputSpec.parse(text) for text in inputs]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--input") from error
    return partial(check, target, specs, only, skip, as_json=as_json)
