"""The command line, thin: `laconic list | show | run | tune | report | check | train | advise | netlab | ...`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from laconic.checks import Verdict, compressor_of, entries_of
from laconic.checks import check as check_entry
from laconic.core.spec import parse
from laconic.lab import bench as measurements
from laconic.lab import describe, drawings
from laconic.lab.asynchronous import asynchronous
from laconic.lab.contest import Choice
from laconic.lab.grid import grid_of
from laconic.lab.plan import DEFAULT_ROUNDS, Network, read_file
from laconic.lab.recipe import Bench, Recipe
from laconic.lab.recipe import record as record_of
from laconic.lab.recipe import write as write_recipe
from laconic.lab.run import NetworkFailure, Runs
from laconic.lab.run import run as run_methods
from laconic.lab.series import accuracy, measure_of
from laconic.lab.store import RunDirectory
from laconic.lab.tables import Steps, cells, headings, summarise
from laconic.lab.tune import Tuned
from laconic.lab.tune import tune as tune_methods
from laconic.netlab.command import netlab
from laconic.training.advice.command import advise
from laconic.training.recipes.command import train

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Communication-efficient distributed optimization: compare methods by rounds, bytes and seconds, and train.",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def main() -> None:
    """Runs the command line. What a user can put right is said in one line on standard error, with exit code 2."""
    try:
        app()
    except ValueError as error:
        _complain(error)
        sys.exit(2)
    except NetworkFailure as error:
        print(f"laconic: {error}; what is recorded is kept, and --resume goes on from it", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("laconic: interrupted; a run with --out goes on with --resume", file=sys.stderr)
        sys.exit(130)


def _complain(error: ValueError) -> None:
    """One line; of several processes on one machine, which all see the same mistake, only the first one speaks."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        line = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]laconic: {escape(line)}[/red]")


def _console() -> Console:
    # piped output is for programs and files: it is not cut to a terminal's width
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=220)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="A kind: problem, method, mechanism, compressor, estimator, recipe, ...")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be named in a spec, and what cannot be imported, with the reason."""
    found = describe.listing(kind)
    if as_json:
        return _print_json(found)
    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("kind", "name", "aliases", "what it is"):
        table.add_column(title, no_wrap=title != "what it is", overflow="fold")
    for entry in found["entries"]:
        summary = entry["summary"].split(". ")[0].rstrip(".")
        table.add_row(entry["kind"], entry["name"], ", ".join(entry["aliases"]), escape(summary))
    console.print(table)
    for broken in found["broken"]:
        console.print(f"[red]broken[/red]  {escape(broken['module'])}: {escape(broken['reason'])}", soft_wrap=True)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="An entry, a spec such as 'topk(k=0.01)', or a collective: ring, ...")],
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Print the source as BibTeX and nothing else.")] = False,
    as_json: Json = False,
) -> None:
    """Show an entry: definition, parameters, claim, guarantee, wire layout, source, example; or draw a collective."""
    drawing = drawings.named(name)
    if drawing is not None:
        return _print_json(drawing.document()) if as_json else _console().print(drawing)
    found = describe.showing(name)
    if bibtex:
        if found["bibtex"] is None:
            raise ValueError(f"{found['name']} names no source")
        return print(found["bibtex"])
    if as_json:
        return _print_json(found)
    console = _console()
    console.print(f"[bold]{found['name']}[/bold]  ({found['kind']})", soft_wrap=True)
    console.print(escape(found["definition"]), soft_wrap=True)
    console.print()
    for title, text in _facts(found):
        console.print(f"[bold]{title:<11}[/bold]{escape(text)}", soft_wrap=True)


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("aliases", ", ".join(found["aliases"]))] if found["aliases"] else []
    for one in found["parameters"]:
        default = "needed" if one["default"] is None else f"default {one['default']}"
        facts.append(("parameter", f"{one['name']}: {one['allowed']}; {default}"))
    if "claim" in found:
        facts.append(("claim", f"{found['claim']['promise']} (d = {found['claim']['d']}, n = {found['claim']['n']})"))
        facts.append(("wire", found["layout"]))
    if "guarantee" in found:
        facts.append(("guarantee", _guarantee(found["guarantee"])))
    known = found.get("constants", [])
    for one in known if isinstance(known, list) else []:
        facts.append(("constant", f"{one['name']} = {one['value']:.6g}, {one['kind']}: {one['how']}"))
    if isinstance(known, str):
        facts.append(("constants", f"not known: {known}"))
    if found["source"]:
        facts.append(("source", found["source"]))
    return [*facts, ("example", found["example"])]


def _guarantee(promise: dict[str, Any]) -> str:
    if promise["settled"] is None:
        return f"none on {promise['problem']}: {promise['none']}"
    rate = "no rate" if promise["rate"] is None else f"rate {promise['rate']:.8g} per iteration"
    assumes = "; ".join(promise["assumes"])
    return f"{promise['settled']} on {promise['problem']}: {rate}; {promise['source']}" + (
        f"; assumes {assumes}" if assumes else ""
    )


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(help="A TOML file with these options; options given here win.")] = None,
    problem: Annotated[
        str | None, typer.Option(help="What to solve, such as \"logistic(data='a9a', l2=1e-3)\".")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="A method or mechanism; give it once for each.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of communication; 1000 if no limit is given.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations of the method.")] = None,
    until: Annotated[float | None, typer.Option(help="The gap f(x) - f* to reach.")] = None,
    budget: Annotated[float | None, typer.Option(help="Uplink bytes per worker.")] = None,
    every: Annotated[int | None, typer.Option(help="Iterations between two evaluations of f (default 1).")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; several are allowed (default 0).")] = None,
    seeds: Annotated[str | None, typer.Option(help="How many seeds, or a list such as 0,3,7.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Such as 10mbit,20ms[,ring], or a file of links.")] = None,
    topology: Annotated[str | None, typer.Option(help="replicated or star.")] = None,
    wire: Annotated[str | None, typer.Option(help="counted or encoded.")] = None,
    delays: Annotated[
        str | None, typer.Option(help="Of the workers, for virtual time, such as 'fixed_delay((1, 2, 5))'.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory (default runs/<time>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Where LIBSVM files are (else LACONIC_DATA).")] = None,
    as_json: Json = False,
) -> None:
    """Run methods on a problem, and print where each of them ended."""
    options = {
        "problem": problem, "method": method, "rounds": rounds, "iterations": iterations, "until": until,
        "budget": budget, "every": every, "seed": seed, "seeds": None if seeds is None else _seeds(seeds),
        "network": network, "topology": topology, "wire": wire, "delays": delays, "out": out, "resume": resume or None,
        "data_dir": data_dir,
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None and value != []}
    settings = _settings({} if file is None else read_file(file), given)
    leader = os.environ.get("RANK", "0") == "0"
    found = run_methods(**settings, progress=not as_json)
    if not leader:
        return
    if not {"rounds", "iterations", "budget"} & set(settings):
        print(f"laconic: each curve ends after {DEFAULT_ROUNDS} rounds, for no other limit is given", file=sys.stderr)
    if as_json:
        return _print_json({"path": None if found.path is None else str(found.path), **found.document})
    _print_results(found)


def _seeds(text: str, option: str = "--seeds") -> int | list[int]:
    try:
        numbers = [int(piece) for piece in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text} : give how many seeds, or a list such as 0,3,7") from None
    return numbers if "," in text else numbers[0]


def _settings(of_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `laconic.run`: the command line wins over the file, and a resumed run knows what it is."""
    if "seed" in given or "seeds" in given:
        of_file = {key: value for key, value in of_file.items() if key not in ("seed", "seeds")}
    settings = {**of_file, **given}
    if "seed" in settings and "seeds" in settings:
        raise ValueError("give either --seed or --seeds, not both")
    if "seed" in settings:
        one = settings.pop("seed")
        settings["seeds"] = [one] if isinstance(one, int) else one
    if settings.get("resume") and "problem" not in settings and "out" in settings:
        settings = {**_remembered(Path(settings["out"])), **settings}
    if "problem" not in settings:
        raise ValueError("what is to be solved? give --problem, such as --problem 'logistic(l2=1e-3, workers=10)'")
    if "method" not in settings:
        raise ValueError("with which methods? give --method, such as --method 'ef21(topk(k=0.05))'")
    settings["methods"] = settings.pop("method")
    settings.setdefault("out", Path("runs") / time.strftime("%Y-%m-%d-%H%M%S"))
    return settings


def _remembered(out: Path) -> dict[str, Any]:
    """The options of the run in a directory."""
    identity = RunDirectory(out).read()["identity"]
    methods = [{"spec": one["spec"], "label": one["label"]} for one in identity["methods"]]
    limits = {name: value for name, value in identity["limits"].items() if value is not None}
    names = ("problem", "every", "seeds", "topology", "wire", "delays")
    same = {name: identity[name] for name in names if name in identity}
    networks = [Network.of_record(one) for one in identity["networks"]]
    return {**same, **limits, "method": methods, "network": networks}


def _print_results(found: Runs) -> None:
    frame = found.trace
    measure, label = measure_of(frame)
    floor = accuracy(found.document["solution"])
    steps = {one["method"]: Steps(one["step"], one["step_kind"]) for one in found.document["methods"]}
    networks = [one["name"] for one in found.document["identity"]["networks"]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, title in enumerate(headings(label)):
        table.add_column(escape(title), justify="right" if 1 <= place <= 5 else "left", overflow="fold")
    for row in summarise(frame, steps, networks[0] if networks else None, measure, floor):
        table.add_row(*(escape(cell) for cell in cells(row)))
    console = _console()
    console.print(table)
    if networks:
        console.print(f"time: computing here plus the network {networks[0]}", style="dim")
    if found.path is not None:
        console.print(f"written to {found.path}; `laconic report {found.path}` draws it", style="dim", soft_wrap=True)


@app.command()
def serve(
    problem: Annotated[str, typer.Option(help="What to solve, such as \"logistic(data='a9a', l2=1e-3)\".")],
    method: Annotated[str, typer.Option(help="An asynchronous method, such as 'pure_async(step=0.1)'.")],
    steps: Annotated[int, typer.Option(help="Of the server.")],
    seed: Annotated[int, typer.Option(help="Of the method's draws.")] = 0,
    needs: Annotated[
        int | None, typer.Option(help="Living workers to go on with when one dies (default: all of them).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file for the recording, with its replay as a spec.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one gradient may take.")] = 600.0,
    data_dir: Annotated[Path | None, typer.Option(help="Where LIBSVM files are (else LACONIC_DATA).")] = None,
    as_json: Json = False,
) -> None:
    """A real asynchronous run: `torchrun --nproc-per-node 4 -m laconic serve ...` is a server and three workers."""
    try:
        found = asynchronous(
            problem, method, steps, seed=seed, needs=needs, out=out, timeout=timeout, data_dir=data_dir
        )  # fmt: skip
    except (NetworkFailure, FloatingPointError) as error:
        print(f"laconic: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if found is None:
        return
    document = found.document()
    if as_json:
        return _print_json(document)
    uplink = ", ".join(map(str, document["uplink_bytes"]))
    print(f"{document['steps']} steps; uplink bytes of the workers: {uplink}; x is {document['x_sha256'][:12]}")
    if out is not None:
        print(f"{out} holds the recording; its replay, a method, gives the same x in the simulator")


@app.command()
def tune(
    problem: Annotated[str, typer.Option(help="What to solve, such as \"logistic(data='a9a', l2=1e-3)\".")],
    method: Annotated[
        list[str],
        typer.Option(help="A method or mechanism, with sets of values: 'ef21(topk(k={1, 10}))'; once for each."),
    ],
    target: Annotated[
        float | None,
        typer.Option(help="The gap to reach: fewest uplink bytes are best. Without it: mean log gap, last 90%."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each curve; 1000 if no limit is given.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations of each curve.")] = None,
    budget: Annotated[float | None, typer.Option(help="Uplink bytes per worker of each curve.")] = None,
    multipliers: Annotated[
        str | None, typer.Option(help="Of the theorem's step, such as 2^-3..2^8 or 0.5,1,2.")
    ] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Such as 'mechanism.compressor.k={1, 5}'; several.")] = None,
    seeds: Annotated[str, typer.Option(help="Of the tuning: how many, or a list such as 0,3,7.")] = "3",
    test_seeds: Annotated[str | None, typer.Option(help="For the winners alone (default: as many others).")] = None,
    every: Annotated[int | None, typer.Option(help="Iterations between two evaluations (default 200 a curve).")] = None,
    widen: Annotated[int, typer.Option(help="How often the multiples may be widened where the best is at an end.")] = 4,
    jobs: Annotated[int, typer.Option(help="Processes at a time.")] = min(2, os.cpu_count() or 1),
    cache: Annotated[Path | None, typer.Option(help="Finished curves (default tune/ in LACONIC_CACHE).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where LIBSVM files are (else LACONIC_DATA).")] = None,
    as_json: Json = False,
) -> None:
    """Choose stepsizes and parameters; the winner is evaluated on other seeds, and printed last as a spec."""
    found = tune_methods(
        problem, method, target=target, rounds=rounds, iterations=iterations, budget=budget, multipliers=multipliers,
        grid=dict(map(grid_of, grid or ())), seeds=_seeds(seeds),
        test_seeds=None if test_seeds is None else _seeds(test_seeds, "--test-seeds"), every=every, widen=widen,
        jobs=jobs, cache=cache, data_dir=data_dir, progress=not as_json,
    )  # fmt: skip
    if as_json:
        return _print_json(found.document())
    _print_tuned(found)


def _print_tuned(found: Tuned) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, title in enumerate(Choice.headings(found.criterion)):
        table.add_column(escape(title), justify="right" if 2 <= place <= 4 else "left", overflow="fold")
    for choice in found.choices:
        table.add_row(*(escape(cell) for cell in choice.cells()))
    console = _console()
    console.print(table)
    for note in found.notes:
        console.print(escape(note), style="dim", soft_wrap=True)
    print(found.winner)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write (default: the run, or ./report for several).")
    ] = None,
    network: Annotated[str | None, typer.Option(help="The network of the seconds, such as 1gbit,1ms.")] = None,
    measure: Annotated[str | None, typer.Option(help="What is drawn: gap, gap_average or grad_norm2.")] = None,
) -> None:
    """Write report.html, paper figures (PDF, PNG) and tables (CSV, LaTeX)."""
    from laconic.lab.report import report as write_report  # matplotlib takes time, which other commands need not spend

    written = write_report(runs, out, network, measure)
    console = _console()
    console.print(f"{written.page}", soft_wrap=True)
    for file in written.files:
        console.print(f"{file}", style="dim", soft_wrap=True)


@app.command()
def recipe(
    name: Annotated[
        str | None, typer.Argument(help="A recipe, or a spec with its sizes such as 'topk_permk(d=200)'.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="The same in seconds: smaller sizes, the same claims.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write (default: recipes/NAME).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where real data are (default: $LACONIC_DATA).")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that may compute at the same time.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Run a source's experiment: figures, tables and a verdict on each of its claims. Without a name, list them."""
    if name is None:
        return list_("recipe", as_json)
    chosen = _recipe_of(name)
    done = chosen.small() if small else chosen
    outcome = done.run(Bench(data_dir, jobs, progress=sys.stderr.isatty()))
    page = write_recipe(done, outcome, out or Path("recipes") / chosen.name)
    if as_json:
        return _print_json(record_of(done, outcome))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("claim", "verdict", "because"):
        table.add_column(column, overflow="fold")
    for verdict in outcome.verdicts:
        table.add_row(verdict.claim, verdict.ruling.value, escape(verdict.because))
    _console().print(table)
    _console().print(f"\nwritten: {page}", soft_wrap=True)


def _recipe_of(spec: str) -> Recipe:
    found = parse(spec)
    if not isinstance(found, Recipe):
        raise ValueError(f"{spec!r} is a {found.kind}, not a recipe; see `laconic recipe`")
    return found


@app.command()
def check(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SPEC]...", help="Specs, names or kinds (default: every entry, by its example)."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick/--whole", help="About a second for each, or several.")] = True,
    as_json: Json = False,
) -> None:
    """Check entries of any kind: what each must keep, tried on it. Exit code 1 where one fails."""
    chosen = entries_of(specs or [])  # a wrong one is said before anything is checked
    console = _console()
    verdicts = []
    for spec in chosen:
        verdicts.append(verdict := check_entry(spec, quick))
        if not as_json:
            _print_verdict(console, verdict, max(map(len, chosen)))
    if as_json:
        _print_json([verdict.record() for verdict in verdicts])
    if not all(verdict.passed for verdict in verdicts):
        raise typer.Exit(1)


def _print_verdict(console: Console, verdict: Verdict, width: int) -> None:
    """As soon as it is known: the whole list takes minutes."""
    colour = "green" if verdict.passed else "red"
    start = escape(f"{verdict.entry.ljust(width)}   {verdict.measured()}")
    console.print(f"{start}   [{colour}]{verdict.outcome()}[/{colour}]", soft_wrap=True)
    for failure in verdict.failures:
        console.print(f"    [red]{escape(str(failure))}[/red]", soft_wrap=True)


bench = typer.Typer(help="How fast things are, beside plain torch in the same run.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("compressors")
def bench_compressors(
    d: Annotated[int, typer.Option(min=1, help="Coordinates (float32) of the vector that is timed.")] = (
        measurements.RESNET50
    ),
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions; medians are reported.")] = 9,
    specs: Annotated[
        list[str] | None, typer.Option("--size-of", metavar="SPEC", help="Compressors to size (default: all).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Speeds in copies of the vector and beside plain torch; sizes of messages beside claims."""
    chosen = specs or [entry["example"] for entry in describe.listing("compressor")["entries"]]
    for spec in chosen:
        compressor_of(spec)
    speeds = list(measurements.speeds(d, repeats))
    memory = measurements.peak_memory(d)
    sizes = [measurements.size_of(spec) for spec in chosen]
    if as_json:
        print(measurements.as_json(speeds, sizes, memory, d))
        return
    console = _console()
    table = Table("what", "ms", "copies", "times plain torch's speed", "plain torch", "first call, s", box=None)
    for line in speeds:
        gain = f"{line.gain:.1f}" if line.torch else ""
        table.add_row(
            escape(line.what), f"{1e3 * line.seconds:.1f}", f"{line.copies:.1f}", gain, escape(line.torch),
            f"{line.first:.2f}",
        )  # fmt: skip
    console.print(f"Speed: d = {d:,} float32, {measurements.machine()['threads']} threads, {repeats} repetitions")
    console.print(table)
    console.print(f"Memory: topk 1% takes {memory:.2f} times the vector beyond its warm inputs")
    table = Table("compressor", "claim", "1 + omega or 1 / alpha", "beta", "bits each", "ms there", "ms back", box=None)
    for size in sizes:
        needed = "" if size.needed != size.needed else f"{size.needed:.4g}"
        table.add_row(
            escape(size.spec), size.claim, needed, f"{size.saving:.1f}", f"{size.bits:.3f}",
            f"{1e3 * size.compress:.1f}", f"{1e3 * size.decode:.1f}",
        )  # fmt: skip
    console.print(f"\nSize: a Gaussian vector of {measurements.SIZES:,} float32 (a square matrix), 10 workers;")
    console.print("beta = bytes of the vector / bytes of the message")
    console.print(table)


# after the others, so that they are listed after them
app.command("train")(train)
app.command("advise")(advise)
app.command("netlab", context_settings={"allow_interspersed_args": False})(netlab)
