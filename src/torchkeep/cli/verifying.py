"""``torchkeep verify``: whether files are what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torchkeep.cli.endings import DONE, NO, UNUSABLE, Answer
from torchkeep.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torchkeep.files.verifying import FileReport, SourceReport, StoreReport

_SHOWN: Final = 20


def verify(sources: Sequence[str], *, as_json: bool) -> Answer:
    """Verify files.

    Args:
        sources: paths of files, indexes, folders or stores, or ``STORE@STEP``.
        as_json: whether to answer with a JSON document instead of text.

    Returns:
        The answer; its code is "no" when anything is damaged, else "unusable" when anything can't be read.
    """
    from torchkeep.files.verifying import verify_source  # noqa: PLC0415 - other commands need none of it
    from torchkeep.storage.local import LOCAL  # noqa: PLC0415 - same

    reports = [verify_source(LOCAL, source) for source in sources]
    found = {report.status for report in reports}
    code = NO if "damaged" in found else UNUSABLE if "unreadable" in found else DONE
    errors = tuple(report.error for report in reports if report.error is not None)
    if as_json:
        from torchkeep.cli.documents import verify_document  # noqa: PLC0415 - text needs none of it

        return Answer(verify_document(reports), code, errors)
    lines = [line for report in reports for line in _report_lines(report)]
    return Answer("".join(f"{printable(line)}\n" for line in [*lines, *_summary(reports)]), code, errors)


def _report_lines(report: SourceReport) -> Iterator[str]:
    for file in report.files:
        yield from _lines(file)
    if report.store is not None:
        yield _store_line(report.source, report.store)


def _store_line(source: str, store: StoreReport) -> str:
    from torchkeep.rows.text import size_text  # noqa: PLC0415 - JSON needs none of it

    count = len(store.checkpoints)
    what = f"{count} checkpoint{'' if count == 1 else 's'}, {size_text(store.nbytes)}"
    damaged = [str(one.step) for one in store.checkpoints if not one.sound]
    if damaged:
        more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
        steps = f"step{'' if len(damaged) == 1 else 's'} {', '.join(damaged[:_SHOWN])}{more}"
        return f"{source}: DAMAGED: {what}, of which {len(damaged)} damaged ({steps})"
    return (
        f"{source}: sound: {what}, every byte compared with its digest" if count else f"{source}: no checkpoints"
    )


def _lines(file: FileReport) -> Iterator[str]:
    from torchkeep.rows.text import size_text  # noqa: PLC0415 - JSON needs none of it

    tensors = f"{file.tensors} tensor{'' if file.tensors == 1 else 's'}, {size_text(file.nbytes)}"
    if file.damage:
        yield f"{file.path}: DAMAGED"
        for damage in file.damage:
            what = f"tensor {damage.tensor!r}" if damage.tensor else "header"
            where = f"bytes {damage.start} to {damage.stop}: {what}: " if damage.stop else ""
            yield f"  {where}{damage.problem}"
    elif file.verified:
        yield f"{file.path}: sound: {tensors}, every byte compared with its digest"
    elif file.checked:
        compared = f"{size_text(file.checked)} compared with their digests, the rest has none"
        yield f"{file.path}: structure only: {tensors}, of which {compared}"
    else:
        yield f"{file.path}: structure only: {tensors}; it holds no digests to compare them with"


def _summary(reports: Sequence[SourceReport]) -> Iterator[str]:
    files = [file for report in reports if report.store is None for file in report.files]
    if len(files) > 1:
        yield ""
        damaged = sum(bool(file.damage) for file in files)
        yield f"{len(files)} files, {damaged or 'none'} damaged"
