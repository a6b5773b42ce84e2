"""docs/checks.md says of each check what its docstring says. Run as a script, it writes that part anew."""

from __future__ import annotations

import inspect
from pathlib import Path

from torchkeep.checks.registry import all_checks

MANUAL = Path(__file__).parents[2] / "docs" / "checks.md"
MARK = "<!-- What follows is made from the checks' docstrings: python tests/checks/test_checks_manual.py -->\n"


def described() -> str:
    """Return the part of the manual that describes the checks, family by family."""
    parts = []
    checks = all_checks().values()
    for family in dict.fromkeys(check.family for check in checks):
        parts.append(f"### {family}\n")
        for check in (check for check in checks if check.family == family):
            needs = f"\n\nRests on: {', '.join(check.needs)}." if check.needs else ""
            text = inspect.cleandoc(check.proves).replace("``", "`")
            parts.append(f"**{check.name}**. {text}{needs}\n")
    return "\n".join(parts)


def test_the_manual_says_what_the_docstrings_say():
    """Each check stands in the manual with what it proves, when it does not apply, and how it is decided."""
    _, mark, after = MANUAL.read_text("utf-8").partition(MARK)
    assert mark
    assert after.strip() == described().strip()
    assert all(len(check.proves.split("\n\n")) > 1 for check in all_checks().values())


if __name__ == "__main__":
    MANUAL.write_text(f"{MANUAL.read_text('utf-8').partition(MARK)[0]}{MARK}\n{described()}", "utf-8")
