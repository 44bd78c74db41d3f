"""The command line: which commands there are, and what becomes of an error."""

from __future__ import annotations

import sys
import warnings

import typer

from autoprune import (
    dashboard,
    evaluate_commands,
    latency_commands,
    run_commands,
    scheme_commands,
    search_commands,
    setup_commands,
    sparsify_commands,
    train_commands,
)
from autoprune.errors import UserError

START = "Start"
SEARCH = "Search"
LOOK = "Look at runs"
HAND_ON = "Hand on"
TRAIN = "Train and sparsify"

app = typer.Typer(
    help="Find how many channels every layer of a trained network keeps, under a budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel=START, context_settings=setup_commands.ANY_OPTION)(setup_commands.init)
app.command(rich_help_panel=START)(setup_commands.doctor)
app.command(rich_help_panel=START)(scheme_commands.groups)

app.command(rich_help_panel=SEARCH)(search_commands.search)
app.command(rich_help_panel=SEARCH)(search_commands.compare)
app.command(rich_help_panel=SEARCH)(search_commands.sensitivity)
app.command(rich_help_panel=SEARCH)(search_commands.proxy_check)
app.command(rich_help_panel=SEARCH)(evaluate_commands.evaluate)
app.add_typer(latency_commands.app, name="latency", rich_help_panel=SEARCH)

app.command(rich_help_panel=LOOK)(run_commands.runs)
app.command(rich_help_panel=LOOK)(run_commands.show)
app.command(rich_help_panel=LOOK)(run_commands.report)
app.command(rich_help_panel=LOOK)(run_commands.diff)
app.command(rich_help_panel=LOOK)(dashboard.dashboard)

app.command(rich_help_panel=HAND_ON)(scheme_commands.apply)
app.command(rich_help_panel=HAND_ON)(scheme_commands.export)

app.command(rich_help_panel=TRAIN)(train_commands.finetune)
app.command(rich_help_panel=TRAIN)(train_commands.train)
app.command(rich_help_panel=TRAIN)(sparsify_commands.sparsify)


def main() -> None:
    """Entry point: one line per error, a traceback only with ``--debug``."""
    debug = "--debug" in sys.argv
    warnings.filterwarnings("ignore", message="TF32 acceleration")  # torch speaks of hardware that nobody asked for
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        line = (str(error).strip().splitlines() or [""])[0]
        print(f"error: {type(error).__name__}: {line} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
