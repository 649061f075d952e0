"""The command line: what it prints, what it refuses, and one run directory from one process or several."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import laconic
import worlds
from laconic import cli
from laconic.checks import Failure, Verdict
from laconic.core.entry import Source
from laconic.core.registry import Broken, Catalogue, catalogue
from laconic.lab import describe
from laconic.lab.plan import KEYS

ROOT = Path(__file__).resolve().parent.parent
QUADRATIC = "quadratic(d=13, workers=5, noise=0.5, mu=0.05)"
SAME = ("method", "seed", "status", "rounds", "uplink_bytes", "downlink_bytes", "gap", "x_sha256")


@pytest.fixture(scope="module", autouse=True)
def commands_made_once() -> Iterator[None]:
    """typer reads the signatures of all commands again for every line, which takes longer than most lines."""
    command = typer.main.get_command(cli.app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", lambda _: command)
        yield


def call(*arguments: str) -> str:
    """Standard output of a command that succeeds."""
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def fails(capsys, monkeypatch, *arguments: str) -> str:
    """The single line on standard error of a command that is refused."""
    monkeypatch.setattr(sys, "argv", ["laconic", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "Traceback" not in said.err
    return said.err


def shell(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110)


# ---- list and show -----------------------------------------------------------------------------------------


def test_list_names_every_entry_of_a_kind():
    everything = json.loads(call("list", "--json"))["entries"]
    assert {entry["name"] for entry in everything} == set(catalogue().entries)
    methods = json.loads(call("list", "methods", "--json"))["entries"]
    assert {entry["kind"] for entry in methods} == {"method"} and {"gd", "proxskip"} <= {m["name"] for m in methods}
    assert all(entry["summary"] for entry in everything)
    text = call("list")
    assert all(name in text for name in catalogue().entries)


def test_broken_entries_are_listed_with_their_reason(monkeypatch):
    whole = catalogue()
    sick = Catalogue(
        whole.entries, whole.names, (Broken("laconic_sick.topl", "ImportError: no module\nnamed [sparse]"),)
    )
    monkeypatch.setattr(describe, "catalogue", lambda: sick)
    assert "broken  laconic_sick.topl: ImportError: no module named [sparse]" in call("list")
    assert json.loads(call("list", "--json"))["broken"][0]["module"] == "laconic_sick.topl"


@pytest.mark.parametrize("name", sorted(catalogue().entries))
def test_show_works_for_every_entry(name):
    entry = catalogue().entries[name]
    found = json.loads(call("show", name, "--json"))
    assert found["name"] == name and found["kind"] == entry.kind
    assert laconic.parse(found["example"]).name == name
    text = call("show", name)
    assert inspect.getdoc(entry).split("\n")[0] in text
    if entry.kind == "compressor":
        assert found["layout"] and found["claim"]["promise"]
    if entry.kind in ("method", "mechanism"):
        promise = found["guarantee"]
        assert promise.get("none") or (promise["source"] and promise["settled"])
    if entry.source is not None:
        assert str(entry.source) in text
        assert call("show", name, "--bibtex").startswith("@article{")


def test_show_takes_a_spec_and_an_alias():
    found = json.loads(call("show", "topk(k=0.25)", "--json"))
    assert "0.25" in found["claim"]["promise"] and found["example"] == "topk(k=0.25)"
    assert json.loads(call("show", "dcgd", "--json"))["name"] == "direct"


def test_bibtex_is_what_a_bibliography_takes():
    text = call("show", "ef21", "--bibtex")
    assert isinstance(catalogue().find("ef21").source, Source)
    assert "arXiv:2106.05203" in text and text.count("{") == text.count("}")


@pytest.mark.parametrize("kind", describe.KINDS)
def test_list_takes_a_kind_in_the_singular_and_the_plural(kind):
    assert call("list", kind, "--json") == call("list", f"{kind}s", "--json")


def test_list_compressors_says_what_each_takes_claims_and_sends():
    found = {entry["name"]: entry for entry in json.loads(call("list", "compressors", "--json"))["entries"]}
    assert set(found) == {cls.name for cls in catalogue().of_kind("compressor")}
    for entry in found.values():
        assert {"name", "aliases", "kind", "example", "parameters", "claim", "layout", "source"} <= set(entry)
        assert entry["layout"] and entry["claim"]["promise"] and entry["claim"]["d"] == 1000
        assert all(one["allowed"] for one in entry["parameters"])
    (k,) = found["topk"]["parameters"]
    assert k == {"name": "k", "allowed": "a fraction in (0, 1] or a count >= 1", "default": None}
    assert "0.05" in found["topk"]["claim"]["promise"] and found["topk"]["aliases"] == ["top"]


# ---- check -------------------------------------------------------------------------------------------------


def test_check_prints_a_line_for_each():
    lines = call("check", "topk(k=0.25)", "identity").splitlines()
    assert len(lines) == 2 and lines[0].startswith("topk(k=0.25)   alpha 0.25 claimed, 0.25 worst measured   ok (")
    assert lines[1].split()[:3] == ["identity", "omega", "0"]
    document = json.loads(call("check", "identity", "--json"))
    assert [(one["kind"], one["entry"]) for one in document] == [("compressor", "identity")] and document[0]["passed"]
    assert document[0]["constants"][0]["measured"] == 0.0 and document[0]["failures"] == []


def test_check_without_a_spec_takes_all_and_fails_with_the_lines(monkeypatch):
    asked = []

    def refuses(spec, quick):
        asked.append((spec, quick))
        failures = (Failure("sizes", "[7] bytes"),) if spec == "natural" else ()
        return Verdict(spec, (), failures, ("sizes",), 0.1)

    monkeypatch.setattr(cli, "check_entry", refuses)
    result = CliRunner().invoke(cli.app, ["check", "--whole"])
    assert result.exit_code == 1
    assert len(asked) == len(catalogue().entries) and not any(quick for _, quick in asked)
    assert "    sizes: [7] bytes" in result.stdout.splitlines()
    assert CliRunner().invoke(cli.app, ["check", "identity"]).exit_code == 0


# ---- run ---------------------------------------------------------------------------------------------------


def test_the_options_of_run_are_those_promised():
    promised = {
        "problem", "method", "rounds", "iterations", "until", "budget", "every", "seed", "seeds", "network", "topology",
        "wire", "delays", "out", "resume", "data_dir",
    }  # fmt: skip
    assert set(inspect.signature(cli.run).parameters) - {"file", "as_json"} == promised == set(KEYS)


def test_run_prints_a_table_and_leaves_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = call("run", "--problem", QUADRATIC, "--method", "gd", "--method", "ef21(topk(k=2))", "--rounds", "9")
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["method", "rounds"]
    assert lines[1].split()[:2] == ["gd", "9"] and "(theorem)" in lines[1] and lines[1].rstrip().endswith("done")
    (run,) = (tmp_path / "runs").iterdir()
    assert str(run.relative_to(tmp_path)) in text
    assert call("report", str(run)).splitlines()[0] == f"{run}/report.html"


def test_run_as_json_prints_run_json_and_nothing_else(tmp_path):
    out = tmp_path / "r"
    text = call(
        "run", "--problem", QUADRATIC, "--method", "gd", "--rounds", "3", "--seeds", "2", "--out", str(out), "--json"
    )
    document = json.loads(text)
    assert [result["seed"] for result in document["results"]] == [0, 1]
    on_disk = json.loads((out / "run.json").read_text())
    assert document["results"] == on_disk["results"] and document["path"] == str(out)


def test_the_default_limit_is_said(tmp_path):
    arguments = ["run", "--problem", QUADRATIC, "--method", "gd", "--every", "500", "--out", str(tmp_path / "r")]
    result = CliRunner().invoke(cli.app, arguments)
    assert "ends after 1000 rounds" in result.stderr
    assert result.stdout.splitlines()[1].split()[:2] == ["gd", "1000"]


def test_every_option_from_a_file_and_the_command_line_wins(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        f'problem = "{QUADRATIC}"\nmethod = ["gd", {{spec = "gd(step=0.1)", label = "slow"}}]\nrounds = 5\nseed = 3\n'
        'every = 2\nnetwork = ["1mbit,1ms", "1gbit,1ms"]\nwire = "encoded"\ntopology = "star"\n'
        f'out = "{tmp_path / "r"}"\n'
    )
    document = json.loads(call("run", str(file), "--rounds", "4", "--seeds", "1,2", "--json"))
    identity = document["identity"]
    assert identity["limits"]["rounds"] == 4 and identity["seeds"] == [1, 2] and identity["every"] == 2
    assert (identity["wire"], identity["topology"]) == ("encoded", "star")
    assert [one["name"] for one in identity["networks"]] == ["1mbit,1ms", "1gbit,1ms"]
    assert [method["method"] for method in document["methods"]] == ["gd", "slow"]


def test_resume_needs_nothing_but_the_directory(tmp_path):
    out = tmp_path / "r"
    first = json.loads(
        call("run", "--problem", QUADRATIC, "--method", "gd", "--rounds", "3", "--out", str(out), "--json")
    )
    again = json.loads(call("run", "--resume", "--out", str(out), "--json"))
    assert again["results"] == first["results"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "thing"], "no kind called 'thing'"),
        (["show", "topkk"], "did you mean 'topk'"),
        (["check", "topkk"], "did you mean 'topk'"),
        (["check", "topk(k=0)"], "k must be a fraction in (0, 1] or a count >= 1"),
        (["check", "mechanism", "ef211(topk(k=1))"], "did you mean 'ef21'"),
        (["bench", "compressors", "--size-of", "ef21(topk(k=1))"], "is a mechanism, not a compressor"),
        (["run"], "give --problem"),
        (["run", "--problem", QUADRATIC], "give --method"),
        (["run", "--problem", "logistik", "--method", "gd"], "did you mean 'logistic'"),
        (
            ["run", "--problem", QUADRATIC, "--method", "ef21(topk(k=0))"],
            "k must be a fraction in (0, 1] or a count >= 1",
        ),
        (["run", "--problem", QUADRATIC, "--method", "direct(topk(k=1))"], "explicit step"),
        (["run", "--problem", "logistic(workers=5000)", "--method", "gd"], "5000"),
        (["run", "--problem", "logistic(data='no_such')", "--method", "gd"], "no_such"),
        (["run", "--problem", QUADRATIC, "--method", "gd", "--seeds", "x"], "--seeds x"),
        (["run", "--problem", QUADRATIC, "--method", "gd", "--seeds", "2", "--seed", "1"], "not both"),
        (["run", "--problem", QUADRATIC, "--method", "gd", "--network", "fast"], "a network is"),
        (["run", "absent.toml"], "cannot read 'absent.toml'"),
        (["report", "absent"], "holds no run"),
        (["run", "--resume", "--out", "absent"], "holds no run"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LACONIC_DATA", raising=False)
    line = fails(capsys, monkeypatch, *arguments)
    assert said in line and line.startswith("laconic: ")
    assert not list(tmp_path.iterdir()), "a refused command wrote something"


def test_a_file_with_an_unknown_option_suggests_the_nearest(capsys, monkeypatch, tmp_path):
    (tmp_path / "run.toml").write_text("round = 5\n")
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'rounds'" in fails(capsys, monkeypatch, "run", "run.toml")


def test_a_run_directory_is_never_overwritten(capsys, monkeypatch, tmp_path):
    arguments = ["run", "--problem", QUADRATIC, "--method", "gd", "--rounds", "3", "--out", str(tmp_path / "r")]
    call(*arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    assert "already holds a run" in fails(capsys, monkeypatch, *arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before


# ---- processes ---------------------------------------------------------------------------------------------


def torchrun(count: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return shell(*launcher, "-m", "laconic", *arguments, cwd=cwd)


def test_the_same_line_under_torchrun_leaves_one_run_with_the_same_bits(tmp_path):
    methods = ["ef21(topk(k=2))", "diana(natural)", "marina(permk)", "proxskip"]
    line = ["run", "--problem", QUADRATIC, "--rounds", "15", "--every", "5", "--out", "r", "--json"]
    line += [part for method in methods for part in ("--method", method)]
    several = torchrun(3, *line, cwd=tmp_path)
    assert several.returncode == 0, several.stderr
    document = json.loads(several.stdout)  # one process printed, and JSON alone
    assert document["machine"]["processes"] == 3
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["run.json", "trace.parquet"]
    alone = laconic.run(QUADRATIC, methods, rounds=15, every=5)
    pick = lambda results: [{key: result[key] for key in SAME} for result in results]  # noqa: E731
    assert pick(document["results"]) == pick(alone.results)
    assert len(laconic.Runs.load(tmp_path / "r").trace) == len(alone.trace)
    # what one process finished, several leave as it is
    line = ["run", "--resume", "--out", str(tmp_path / "r"), "--json"]
    first, other = worlds.pool().results("command", 2, arguments=line)
    assert json.loads(first)["results"] == document["results"] and other == ""


def test_a_mistake_under_torchrun_is_said_once(tmp_path):
    line = ["run", "--problem", QUADRATIC, "--method", "gdd", "--out", "r"]
    result = torchrun(2, *line, cwd=tmp_path)
    assert result.returncode != 0
    assert result.stderr.count("did you mean 'gd'") == 1
    assert not (tmp_path / "r").exists()
