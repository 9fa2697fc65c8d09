"""mypy on a ratchet: fails if the package has more errors than mypy_errors.txt says, or a file of the list
``clean`` of ``[tool.taf_fast.types]`` in pyproject.toml has any."""

import re
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # mypy requires it there

ROOT = Path(__file__).parents[1]
LIMIT = Path(__file__).with_name("mypy_errors.txt")


def verdict(errors: list[str], limit: int, clean: list[str]) -> tuple[list[str], str]:
    """The errors to show, none if the check passes, and a sentence.

    ``errors`` are mypy's lines, ``clean`` paths of files and, with a slash at the end, of folders.
    """
    forbidden = [line for line in errors if line.startswith(tuple(clean))]
    if forbidden:
        return forbidden, f"mypy: {len(forbidden)} errors in files that must have none"
    if len(errors) > limit:
        return errors, f"mypy: {len(errors)} errors, {LIMIT.name} allows {limit}"
    if len(errors) < limit:
        return [], f"mypy: {len(errors)} errors; lower the {limit} in {LIMIT.name} to {len(errors)}"
    return [], f"mypy: {limit} errors, as {LIMIT.name} says"


def main() -> int:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not re.search(r"^(Found|Success)", done.stdout, re.MULTILINE):
        print(done.stdout + done.stderr)
        return 2
    errors = re.findall(r"^\S+:\d+: error: .*$", done.stdout, re.MULTILINE)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    clean = settings["tool"]["taf_fast"]["types"]["clean"]
    missing = [path for path in clean if not (ROOT / path).exists()]
    if missing:
        print(f"pyproject.toml: tool.taf_fast.types.clean names what does not exist: {', '.join(missing)}")
        return 2
    shown, sentence = verdict(errors, int(LIMIT.read_text()), clean)
    print(*shown, sentence, sep="\n")
    return 1 if shown else 0


if __name__ == "__main__":
    sys.exit(main())
