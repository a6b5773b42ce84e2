"""Every Python block in the READMEs and in docs/ runs, top to bottom, as a reader would run it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(document):
    """Return the blocks of a document as one program whose line numbers are the document's."""
    text = document.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in FENCE.finditer(text):
        first = text.count("\n", 0, block.start(1))
        for offset, line in enumerate(block.group(1).splitlines()):
            lines[first + offset] = line
    return "\n".join(lines)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_in_a_document_runs(document, tmp_path, monkeypatch):
    """A reader who pastes the blocks in order into one session, in an empty folder, meets no error."""
    monkeypatch.chdir(tmp_path)
    session = ModuleType("__main__")  # where classes are looked up that are pickled
    monkeypatch.setitem(sys.modules, "__main__", session)
    exec(compile(code_of(document), document, "exec"), vars(session))  # noqa: S102 - the document is ours


def test_the_translation_shows_the_same_code():
    """Comments may be translated; what runs is the same in both READMEs."""
    english, chinese = (
        re.sub(r" *#.*", "", "\n".join(FENCE.findall(path.read_text("utf-8")))) for path in DOCUMENTS[:2]
    )
    assert english == chinese
