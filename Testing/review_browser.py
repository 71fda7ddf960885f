"""What the browser tests need: a server of `mstkd review` in a process of its own, Chromium, and what a page shows."""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parent.parent
ARTEFACTS = Path(os.environ.get("MSTKD_ARTEFACTS", ROOT / "out" / "artefacts"))
"""Where screenshots are kept."""

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--force-color-profile=srgb"),
)
# A loaded machine may take a minute for what takes seconds.
PATIENCE_S = 150
SIZE = {"width": 1500, "height": 940}


def chromium() -> Optional[str]:
    """A Chromium that is installed; MSTKD_CHROMIUM names another."""
    wanted = os.environ.get("MSTKD_CHROMIUM")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return wanted or next(filter(None, map(shutil.which, names)), None)


def can_draw() -> bool:
    """Whether Slicer's views can be drawn here without a screen."""
    return not sys.platform.startswith("linux") or any(map(ctypes.util.find_library, ("EGL", "OSMesa")))


class Server:
    """`mstkd review` in a process of its own; `url` is what it printed."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        variables = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
        paths = [str(ROOT / "MSTKDSegment"), *filter(None, [variables.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
        command = [sys.executable, "-u", "-m", "MSTKDSegmentLib.cli", "review", *arguments, "--no-browser"]
        with log.open("w") as stream:
            self._process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=variables)
        self.url = self._wait()

    def _wait(self) -> str:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            found = re.search(r"Review: (\S+)", self.said)
            if found:
                return found.group(1)
            assert self._process.poll() is None, self.said
            time.sleep(0.05)
        raise AssertionError(f"the server is not ready after {PATIENCE_S} s: {self.said}")

    @property
    def said(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        """End it as a user does; gives its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(30)
        finally:
            if self._process.poll() is None:
                self.kill()


# In the page: when the last picture came, whether all four have the size that they are shown in, how many pixels of a
# view have a colour (each channel within `near`).
HELPERS = """
new MutationObserver(all => all.forEach(one => {
  if (one.target.tagName === 'IMG' && one.attributeName === 'src') { window.lastPicture = performance.now(); }
})).observe(document, {subtree: true, attributes: true, attributeFilter: ['src']});
window.pictures = () => [...document.querySelectorAll('img.image-display-area')];
window.allThere = () => pictures().length === 4 && pictures().every(one => one.complete && one.naturalWidth > 10
  && Math.abs(one.naturalWidth - one.parentElement.clientWidth * devicePixelRatio) < 2);
window.pixels = (view, colour, near) => {
  const picture = document.querySelector(`[data-view="${view}"]`).parentElement.querySelector('img.image-display-area');
  const canvas = document.createElement('canvas');
  canvas.width = picture.naturalWidth; canvas.height = picture.naturalHeight;
  const context = canvas.getContext('2d');
  context.drawImage(picture, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let found = 0;
  for (let at = 0; at < data.length; at += 4) {
    if ([0, 1, 2].every(n => Math.abs(data[at + n] - colour[n]) <= near)) { found++; }
  }
  return found;
};
"""


def settled(page, quiet_ms: int = 900) -> None:
    """Wait until all four views are there in their size and no picture has come for a while."""
    page.wait_for_function("window.allThere && allThere()", timeout=60_000)
    page.wait_for_function(f"performance.now() - (window.lastPicture || 0) > {quiet_ms}", timeout=60_000)


def after(page, act) -> None:
    """Act, and wait for pictures that are newer than that."""
    since = page.evaluate("performance.now()")
    act()
    page.wait_for_function(f"(window.lastPicture || 0) > {since}", timeout=60_000)
    settled(page)


def pixels(page, view: str, colour, near: int = 6) -> int:
    """How many pixels of a view (Red, Green, Yellow, ThreeD) have an RGB colour, 0 to 1."""
    return page.evaluate(f"pixels('{view}', {[round(255 * one) for one in colour]}, {near})")
