"""The page of a report in a real browser, on windows of all sizes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def browse():
    """Inspect a page in a browser; skip if there is none."""
    program = "import PyQt6.QtWebEngineWidgets"
    probe = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no browser here: {probe.stderr.strip().splitlines()[-1]}")

    def run(page: Path, scheme: str, width: int) -> dict:
        program = Path(__file__).with_name("browser.py")
        arguments = [sys.executable, str(program), str(page), scheme, str(width)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 360), ("dark", 360), ("light", 768), ("light", 1280)]
)
def test_in_a_browser(browse, real_page, scheme, width):
    seen = browse(real_page, scheme, width)
    assert seen["loaded"] and seen["dark"] == (scheme == "dark") and seen["inner_width"] == width
    assert seen["scroll_width"] == width, "the page scrolls sideways"
    assert seen["blocked"] == [] and seen["console"] == []
    assert seen["smallest_text"] >= 14 and seen["least_contrast"] >= 4.5
    assert seen["lost"] == [] and seen["overlapping"] == []
    assert len(seen["images"]) == 4
    for image in seen["images"]:
        assert image["natural"] > 0 and image["alt"]
        # Legible on a phone, too: what is wider scrolls.
        assert image["shown"] == image["wanted"]
    assert seen["unmarked"] == [] and (seen["scrolling"] > 8 or width > 360)


def test_the_browser_notices(browse, tmp_path):
    """The checks above rely on this."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<!DOCTYPE html><html lang="en"><head><title>bad</title></head><body>'
        '<main><p style="width: 700px; color: #888; font-size: 9px; white-space: nowrap">'
        f'{"wide " * 200}</p><p style="margin-top: -60px">over</p>'
        '<img src="http://example.com/a.png" alt="a"><script>console.error("oh"); fetch("https://example.org")'
        "</script></main></body></html>"
    )
    seen = browse(page, "light", 360)
    assert seen["scroll_width"] > 360 and seen["smallest_text"] == 9 and seen["lost"]
    assert math.isclose(seen["least_contrast"], 3.54, abs_tol=0.01)
    assert "http://example.com/a.png" in seen["blocked"] and "https://example.org/" in seen["blocked"]
    assert seen["images"][0]["natural"] == 0 and "oh" in seen["console"] and seen["overlapping"]
