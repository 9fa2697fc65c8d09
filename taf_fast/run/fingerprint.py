"""All that the result of a run depends on, by which a saved state is known to be its own."""

import zlib
from collections.abc import Mapping
from pathlib import Path

from taf_fast.data import Manifest
from taf_fast.errors import RunError
from taf_fast.plain import say
from taf_fast.run.config import FinetuneConfig, absolute, names_of
from taf_fast.run.values import FREE_ON_RESUME, Scope, quoted

# The ends of the names of the checksums of a split.
_LABELS, _SIZES = "clips or labels", "sizes of files"


def fingerprint(config: FinetuneConfig, manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """The values of a run as text, by the names of the configuration; and the clips, labels and sizes of its
    data, as checksums. ``manifests`` are those of the splits by name."""
    free = names_of(*FREE_ON_RESUME) | ({"epochs"} if config.epochs_may_grow else set())
    fixed = sorted(names_of(*Scope) - free)
    return {name: quoted(absolute(getattr(config, name))) for name in fixed} | _checksums(manifests)


def data_lines(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """The data of each split in words, with the checksums of :func:`fingerprint`."""
    checksums = _checksums(manifests)
    return {
        f"{split} data": f"{len(manifest.clips)} clips, labels {checksums[f'{split} {_LABELS}']}, "
        f"sizes {checksums[f'{split} {_SIZES}']}"
        for split, manifest in manifests.items()
    }


def require_same(now: Mapping[str, str], there: Mapping[str, str], path: Path) -> None:
    """Raise RunError if the state in ``path``, with fingerprint ``there``, is that of other values or data
    than those of ``now``; say where the data set was, if it was elsewhere."""
    moved = now["data"] != there.get("data")
    changed = [name for name in now if now[name] != there.get(name)]
    # In the place where they were, data may be mended: other sizes are a sign of other data elsewhere.
    if changed := [name for name in changed if not (name == "data" if moved else name.endswith(_SIZES))]:
        raise RunError(f"{path} is the state of another run, which differs in {', '.join(changed)}")
    if moved:
        say(f"the data set was in {there['data']}, now it is in {now['data']}")


def _checksums(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    found = {}
    for split, manifest in manifests.items():
        content = repr((manifest.classes, [(clip.id, clip.label) for clip in manifest.clips]))
        found[f"{split} {_LABELS}"] = _crc(content)
        found[f"{split} {_SIZES}"] = _crc(repr([clip.bytes for clip in manifest.clips]))
    return found


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"
