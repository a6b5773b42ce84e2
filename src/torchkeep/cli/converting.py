"""``torchkeep convert``: any readable source as one safetensors file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torchkeep.names import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN: Final = 20


def convert(
    source: str,
    target: str,
    *,
    select: str | None,
    rename: Sequence[tuple[str, str]],
    dtype: str | None,
    force: bool,
    as_json: bool,
) -> str:
    """Convert a source; see `torchkeep.files.converting.convert`.

    Returns:
        What was written, for people or as a JSON document, with a final newline.
    """
    from torchkeep.files.converting import convert as converted  # noqa: PLC0415 - torch, for this command alone
    from torchkeep.rows.text import size_text  # noqa: PLC0415 - same
    from torchkeep.storage.local import LOCAL  # noqa: PLC0415 - same

    report = converted(LOCAL, source, target, select=select, rename=rename, dtype=dtype, force=force)
    if as_json:
        from torchkeep.cli.documents import convert_document  # noqa: PLC0415 - text needs none of it

        return convert_document(source, report)
    tensors = f"{report.tensors} tensor{'' if report.tensors == 1 else 's'}, {size_text(report.nbytes)}"
    lines = [f"wrote {tensors}, to {report.path}"]
    if dtype is not None:
        lines.append(f"  {report.cast} converted to {dtype}")
    if rename:
        lines.append(f"  {report.renamed} name{'' if report.renamed == 1 else 's'} changed")
    lines.extend(f"  tied: {' = '.join(names)}" for names in report.ties[:_SHOWN])
    if len(report.ties) > _SHOWN:
        lines.append(f"  and {len(report.ties) - _SHOWN} ties more")
    lines.extend(f"  left out: {what}" for what in report.left_out)
    lines.append(f"  blake3 of the header: {report.digest}")
    return "".join(f"{printable(line)}\n" for line in lines)
