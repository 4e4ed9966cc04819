"""Takes the pictures of the report's page in docs/images: three widths, on a light and a dark ground.

    python docs/screens.py runs/<a comparison>

It needs Chromium on the path, and the extra `dev`.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

IMAGES = Path(__file__).parent / "images"
SIZES = {"phone": (390, 844), "tablet": (800, 1100), "desktop": (1280, 900)}
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# A browser that asks nobody for anything.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Return where Chromium is, if it and what drives it are there."""
    driven = find_spec("playwright") is not None
    return next((found for name in _NAMES if driven and (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[BrowserContext]:
    """Open a browser without a history, and close it."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    assert path is not None, "Chromium is not on the path"
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        opened = playwright.chromium.launch_persistent_context(
            profile, executable_path=path, headless=True, args=[*_FLAGS]
        )
        try:
            yield opened
        finally:
            opened.close()


def main(arguments: Sequence[str]) -> None:
    """Write the pictures of the report in a folder."""
    report = Path(arguments[0]).resolve() / "report.html"
    with browser() as opened:
        page = opened.new_page()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            for name, (width, height) in SIZES.items():
                page.set_viewport_size({"width": width, "height": height})
                page.goto(report.as_uri())
                path = IMAGES / f"report_{name}_{scheme}.png"
                shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                shot = shot.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
                shot.save(path, optimize=True)
                print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
