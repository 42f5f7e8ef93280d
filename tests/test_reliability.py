"""docs/reliability.md is kept honest: every fault has its row, and every test that is named exists."""

from __future__ import annotations

import re

import pytest

from config import REPOSITORY_ROOT as ROOT

PAGE = ROOT / "docs" / "reliability.md"
NUM_ROWS = 36
CELLS = ("number", "fault", "expected", "test", "runs in", "result", "time to recover")
RESULTS = ("holds", "holds in part", "not run here")


def read_rows() -> list[dict[str, str]]:
    """The big table's rows, by column."""
    found = re.findall(r"^\| (\d+) \|(.+)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [(number, *(cell.strip() for cell in rest.split(" | "))) for number, rest in found]
    return [dict(zip(CELLS, row, strict=True)) for row in cells]


def test_every_fault_has_its_row() -> None:
    """A row for each number, in order, no cell left empty."""
    rows = read_rows()
    numbers = [int(row["number"]) for row in rows]
    assert numbers[:NUM_ROWS] == list(range(1, NUM_ROWS + 1))
    assert numbers == sorted(set(numbers))
    assert not [row["number"] for row in rows if not all(row.values())]


@pytest.mark.parametrize("row", read_rows(), ids=lambda row: row["number"])
def test_a_row_names_tests_that_are_there(row: dict[str, str]) -> None:
    """Each file exists; what runs in check is not marked long as a whole, and what is long says so. A row
    holds, holds in part, or says that it was not run here.
    """
    names = re.findall(r"\btest_\w+", row["test"])
    assert names or "./launch.sh chaos" in row["test"]
    files = [list((ROOT / "tests").rglob(f"{name}.py")) for name in names]
    texts = [path.read_text(encoding="utf-8") for (path,) in files]
    if "check" in row["runs in"]:
        assert any("pytestmark = pytest.mark.long" not in text for text in texts)
    if "long" in row["runs in"]:
        assert any("pytest.mark.long" in text for text in texts)
    assert row["result"].startswith(RESULTS)


def test_every_fault_test_is_in_the_table() -> None:
    """No file of tests/faults is left out."""
    named = set(re.findall(r"\btest_\w+", PAGE.read_text(encoding="utf-8")))
    files = {path.stem for path in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert files <= named
