"""Work in several processes: all of it in order, and nothing goes on when the process that wanted it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive

pytest.importorskip("monai", reason="training needs the `train` extra")

ROOT = Path(__file__).resolve().parent.parent
WORK = """
import os, time
from pathlib import Path
from training.parallel import each

def work(item):
    folder, seconds, number = item
    Path(folder, f"{number}.part").write_text(str(os.getpid()))
    os.rename(Path(folder, f"{number}.part"), Path(folder, str(number)))
    time.sleep(seconds)
    return number * number

if __name__ == "__main__":
    import sys
    print(list(each(work, [(sys.argv[1], float(sys.argv[2]), number) for number in range(3)], 2)))
"""


def started(folder: Path, seconds: float) -> subprocess.Popen:
    (folder / "work.py").write_text(WORK)
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "MSTKDSegment")))
    command = [sys.executable, str(folder / "work.py"), str(folder), str(seconds)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def test_results_come_in_order(tmp_path):
    process = started(tmp_path, 0)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "[0, 1, 4]\n")


@pytest.mark.skipif(sys.platform == "win32", reason="asks for processes as POSIX does")
def test_workers_end_with_the_process_that_was_killed(tmp_path):
    process = started(tmp_path, 600)
    until = time.monotonic() + 120
    while not ((tmp_path / "0").is_file() and (tmp_path / "1").is_file()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = [int((tmp_path / name).read_text()) for name in ("0", "1")]
    process.kill()
    process.communicate()
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < until, "the workers go on"
        time.sleep(0.05)
