"""The code blocks of the README and the documentation run as shown."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(page, block, id=f"{page.name}-{index}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for index, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("page, block", BLOCKS)
def test_block(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(page), "exec"), {"__name__": page.stem})
