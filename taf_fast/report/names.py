"""Short names of runs and files in tables and pictures."""

from pathlib import Path


def short_names(paths: list[Path]) -> list[str]:
    """Each path's last parts, just enough of them to tell different paths apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]
