"""``torchkeep verify``: whether files are what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.cli.endings import DONE, NO, UNUSABLE, Answer
from torchkeep.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torchkeep.files.verifying import FileReport, SourceReport


def verify(sources: Sequence[str], *, as_json: bool) -> Answer:
    """Verify files.

    Args:
        sources: paths of files, indexes or folders.
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
    lines = [line for report in reports for file in report.files for line in _lines(file)]
    return Answer("".join(f"{printable(line)}\n" for line in [*lines, *_summary(reports)]), code, errors)


def _lines(file: FileReport) -> Iterator[str]:
    from torchkeep.rows.text import size_text  # noqa: PLC0415 - JSON needs none of it

    tensors = f"{file.tensors} tensor{'' if file.tensors == 1 else 's'}, {size_text(file.nbytes)}"
    if file.damage:
        yield f"{file.path}: DAMAGED"
        for damage in file.damage:
            what = f"tensor {damage.tensor!r}" if damage.tensor else "header"
            yield f"  bytes {damage.start} to {damage.stop}: {what}: {damage.problem}"
    elif file.verified:
        yield f"{file.path}: sound: {tensors}, every byte compared with its digest"
    elif file.checked:
        compared = f"{size_text(file.checked)} compared with their digests, the rest has none"
        yield f"{file.path}: structure only: {tensors}, of which {compared}"
    else:
        yield f"{file.path}: structure only: {tensors}; it holds no digests to compare them with"


def _summary(reports: Sequence[SourceReport]) -> Iterator[str]:
    files = [file for report in reports for file in report.files]
    if len(files) > 1:
        yield ""
        damaged = sum(bool(file.damage) for file in files)
        yield f"{len(files)} files, {damaged or 'none'} damaged"
