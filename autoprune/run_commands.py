"""``autoprune show``, ``report``, ``diff`` and ``runs``: what was found, without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from autoprune import arguments, completion
from autoprune.errors import UserError
from autoprune.options import OUTPUT, Debug, Json, Root, RunArgument, Source, option


def show(run: RunArgument, as_json: Json = False, debug: Debug = False) -> None:
    """Show what a run found.

    Example: autoprune show my-run
    """
    from rich.console import Console

    from autoprune import report
    from autoprune.run import Run, read_json

    found = Run.open(run)
    if as_json:
        print(json.dumps({"folder": str(found.folder), "config": found.config, "summary": found.summary}))
        return
    console = Console()
    summary = found.summary
    if not summary:
        console.print(f"run {found.name} has not finished: start it again with the same options and --run {found.name}")
        return
    kind = found.config["request"].get("kind")
    if kind == "sensitivity":
        console.print(report.sensitivity(read_json(found.folder / "sensitivity.json")))
        return
    if kind == "proxy-check":
        console.print(report.proxies(read_json(found.folder / "proxy.json")))
        return
    if kind == "comparison":
        from autoprune.compare import Comparison

        console.print(report.searchers(Comparison.open(found.folder).frame()))
        return
    console.print(report.comparison(summary["rows"]))
    console.print(report.narrowed(found.config["groups"], summary["widths"], summary["kept"]))
    if kind == "sparsity":
        return
    if "latency" in summary:
        console.print(report.verdict(summary["latency"]))
    request = found.config["request"]
    if request.get("objectives"):
        console.print(report.front(summary["front"], found.front()))
    console.print(
        f"{found.config['name']} under {request['budget']}: "
        f"{request['searcher']}, {request['criterion']}, {request['recovery']}; "
        f"{report.spent(summary)}, {summary['feasible']} affordable, {summary['failed']} failed, "
        f"{summary['seconds']:.0f} s of measuring; {summary['ended']}"
    )


def report(
    runs: Annotated[
        list[str],
        typer.Argument(help="folders or names of runs; several are compared", autocompletion=completion.runs),
    ],
    out: Annotated[
        Path | None, option(OUTPUT, "file to write", usual="report.html in the run, here for several")
    ] = None,
    pictures: Annotated[
        Path | None, option(OUTPUT, "folder for the page's pictures as files of their own", "--figures")
    ] = None,
    form: Annotated[
        str, option(OUTPUT, "svg, png for these pictures", "--format", complete=completion.of("svg", "png"))
    ] = "svg",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw runs as a page that opens in any browser, without a network.

    Sensitivity analyses, comparisons, proxy checks and sparse networks have their pages too.

    Example: autoprune report my-run other-run --out both.html --figures paper --format png
    """
    from autoprune import page
    from autoprune.page import figures
    from autoprune.run import Run

    found = [Run.open(run) for run in runs]
    path = out or (found[0].folder if len(found) == 1 else Path()) / page.REPORT
    text = page.render(found)
    drawn = [] if pictures is None else figures.write(found, pictures, form)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another file with --out") from None
    if as_json:
        print(json.dumps({"file": str(path), "figures": list(map(str, drawn))}))
    else:
        print(*[path, *drawn], sep="\n")


def diff(
    first: Source,
    second: Annotated[str, typer.Argument(help="another", autocompletion=completion.runs)],
    chart: Annotated[Path | None, option(OUTPUT, "write the comparison as a picture, .svg")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two schemes of one network, group by group.

    Example: autoprune diff my-run other-run --chart both.svg
    """
    from rich.console import Console

    from autoprune import report
    from autoprune.difference import compare_files

    found = compare_files(arguments.scheme_path(first), arguments.scheme_path(second))
    if chart is not None:
        try:
            chart.write_text(found.chart(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{chart} cannot be written ({error.strerror}): choose another file with --chart") from None
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    Console().print(report.difference(found))


def runs(
    root: Root = "runs",
    remove: Annotated[list[str] | None, option(None, "delete this run; repeatable", complete=completion.runs)] = None,
    yes: Annotated[bool, option(None, "do not ask", "--yes", "-y")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the runs with their disk use, or remove some.

    Example: autoprune runs --remove my-run
    """
    from rich.console import Console

    from autoprune import report
    from autoprune import run as folders

    for name in remove or []:
        run = folders.Run.open(Path(root) / name)
        if yes or typer.confirm(f"delete {run.folder} ({report.size(run.size)})?"):
            run.remove()
            print(f"removed {run.folder}", file=sys.stderr if as_json else sys.stdout)
    found = folders.runs(root)
    if as_json:
        records = [{"name": r.name, "folder": str(r.folder), "bytes": r.size, "summary": r.summary} for r in found]
        print(json.dumps(records))
    elif found:
        Console().print(report.runs(found))
    else:
        print(f"no runs in {root}/")
