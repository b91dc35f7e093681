"""Tests of one file, and of one run, are never shared out between processes: what they prepare would be prepared twice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from turns import LONGEST, ROOT, SHARED

CONFTEST = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests" / "fixtures")!r})
from turns import pytest_collection_modifyitems, pytest_configure, pytest_xdist_make_scheduler
"""


def test_every_file_that_has_its_turn_is_there() -> None:
    for name in {*LONGEST, *SHARED, *SHARED.values()}:
        assert (ROOT / name).is_file(), name


def test_no_group_is_parted_and_the_longest_comes_first(tmp_path: Path) -> None:
    tests = "".join(f"def test_{index}(): time.sleep(0.05)\n" for index in range(4))
    for name in (LONGEST[0], *SHARED, "tests/test_one.py", "tests/test_two.py", "tests/test_three.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("import time\n" + tests)
    (tmp_path / "tests" / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\naddopts = --import-mode=importlib\n")
    command = [sys.executable, "-m", "pytest", "-v", "--numprocesses", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    ran = re.findall(r"^\[(gw\d)\].* PASSED (\S+)::", done.stdout, re.MULTILINE)
    assert len(ran) == 4 * (4 + len(SHARED)), done.stdout + done.stderr
    where = {name: {worker for worker, file in ran if SHARED.get(file, file) == name} for _, name in ran}
    assert all(len(workers) == 1 for name, workers in where.items() if name not in SHARED), where
    assert LONGEST[0] in {name for _, name in ran[:2]}
