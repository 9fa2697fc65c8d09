"""The documentation as a site: it builds without warnings and without a network, and nothing is missing."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import taf_fast

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built in a process that cannot open a connection."""
    folder = tmp_path_factory.mktemp("site")
    program = (
        "import socket, runpy, sys\n"
        "def refused(*_, **__): raise OSError('no network')\n"
        "socket.create_connection = socket.socket.connect = socket.getaddrinfo = refused\n"
        "sys.argv = ['mkdocs', 'build', '--strict', '--site-dir', sys.argv[1]]\n"
        "runpy.run_module('mkdocs', run_name='__main__')\n"
    )
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_every_page_and_public_name_is_there(site):
    assert (site / "index.html").exists() and (site / "search" / "search_index.json").exists()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or (site / page.stem / "index.html").exists(), page
    anchors = set(re.findall(r'id="(taf_fast\.[\w.]+)"', (site / "api" / "index.html").read_text()))
    ops = {f"ops.{name}" for name in taf_fast.ops.__all__}
    names = {*ops, *taf_fast.__all__, "models.build", "models.load", "models.inspect"} - {"models", "ops"}
    assert not {f"taf_fast.{name}" for name in names} - anchors


@pytest.mark.slow
def test_docstrings_are_shown_as_text_and_links(site):
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    for page, text in pages.items():
        shown = html.unescape(re.sub(r"<[^>]+>", "", text))
        assert not re.search(r":(func|class|meth|mod|attr|data):", shown), page
        assert "<autoref" not in text and "::: taf_fast" not in shown, page
        assert "](../" not in shown, page
        # Nothing is loaded from elsewhere.
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', text), page
    api = pages[site / "api" / "index.html"]
    for name in ("taf_fast.add_adversarial_bn", "TAFStep.forward", "taf_fast.ops.cam_gradient"):
        target, shown = re.escape(f"taf_fast.{name.removeprefix('taf_fast.')}"), re.escape(name)
        assert re.search(rf'<a href="#{target}"><code>{shown}</code></a>', api), name


def test_the_page_of_options_has_every_option_of_the_augmentation_and_the_step():
    import inspect

    page = (ROOT / "docs" / "augmentation-options.md").read_text(encoding="utf-8")
    names = [*inspect.signature(taf_fast.TemporalAugment).parameters, "alpha", "composition"]
    for name in names:
        assert re.search(rf"^\| `{name}`", page, re.MULTILINE), name
    for name in inspect.signature(taf_fast.TemporalAugment).parameters.values():
        shown = '"' + name.default + '"' if isinstance(name.default, str) else str(name.default)
        shown = {str(64 / 255): "64/255", str(32 / 255): "32/255"}.get(shown, shown)
        row = re.search(rf"^\| `{name.name}`.*$", page, re.MULTILINE)[0]
        assert shown in row and "(default)" in row, row
