"""docs/options.md, made from the declarations: ``python -m taf_fast.cli.options_page > docs/options.md``."""

from taf_fast.cli.train import OPTIONS
from taf_fast.run.config import FIELDS
from taf_fast.run.values import FREE_ON_RESUME, IN_RECIPES, declaration, default_text

_HEAD = """\
# The values of a run

Written by `python -m taf_fast.cli.options_page > docs/options.md` from `taf_fast/run/config.py`; do not edit.

Each value is a key of `config.yaml` in the run folder. It comes from the first of these that sets it: the
option of `taf-fast finetune`, the recipe, the checkpoint (`model`, `num_segments` and `size`), the default.
"recipe" marks values that recipes and sweeps may set; "resume" marks values that may change when a run is
resumed. Numbers may be fractions such as `64/255`, on the command line and in YAML.
"""


def options_page() -> str:
    """The page as Markdown: a table per group of options."""
    panels: dict[str, list[str]] = {}
    for name, field in FIELDS.items():
        declared = declaration(field)
        option = declared.option or f"--{name.replace('_', '-')}"
        cells = (
            f"`{name}`",
            f"`{option}`" if name in OPTIONS else "",
            default_text(field) or "required",
            "recipe" if declared.scope in IN_RECIPES else "",
            "resume" if declared.scope in FREE_ON_RESUME else "",
            declared.help,
        )
        panels.setdefault(declared.panel, []).append(f"| {' | '.join(cells)} |")
    tables = [
        "\n".join(
            [f"## {panel}\n", "| key | option | default | | | meaning |", "|---|---|---|---|---|---|", *rows]
        )
        for panel, rows in panels.items()
    ]
    return "\n\n".join([_HEAD.rstrip(), *tables]) + "\n"


if __name__ == "__main__":
    print(options_page(), end="")
