"""The application that the commands belong to, and its end."""

import sys

import typer

from taf_fast.run import ranks

app = typer.Typer(
    help="Temporal Adversarial Fine-tuning of video models.", no_args_is_help=True, add_completion=False
)


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    with ranks.joined():
        try:
            with ranks.together():
                app()
        except ranks.USER_ERRORS as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
