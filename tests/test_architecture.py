"""Who may import whom, no import circles, and what must not stand anywhere in the source.

The checks read text, and are themselves shown to catch what is planted.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "laconic"
Sources = Mapping[str, str]  # module name -> text; a package goes by the name of the package

FOUNDATION = frozenset({"core", "wire", "kernels"})
MAY_IMPORT = {  # a part of the house -> the other parts it may import
    "kernels": frozenset(),
    "wire": frozenset({"kernels"}),
    "core": frozenset({"wire", "kernels"}),
    "compressors": FOUNDATION,
    "estimators": FOUNDATION,
    "regularisers": FOUNDATION,
    "schedules": FOUNDATION,
    "problems": FOUNDATION | {"regularisers"},
    "mechanisms": FOUNDATION | {"compressors"},
    "broadcasts": FOUNDATION | {"compressors", "mechanisms"},
    "methods": FOUNDATION | {"broadcasts", "compressors", "estimators", "mechanisms", "schedules"},
    "runtime": frozenset({"core"}),
    "training": frozenset({"core", "runtime", "netlab"}),
    "lab": frozenset({"core", "runtime"}),
    "checks": frozenset({"core", "runtime"}),
    "netlab": frozenset(),
    "recipes": FOUNDATION | {"compressors", "lab", "mechanisms", "problems", "runtime"},
    "cli": frozenset({"core", "lab", "checks", "training", "netlab"}),
    "__main__": frozenset({"cli"}),
    "": frozenset({"core", "runtime", "lab", "training"}),  # laconic itself: what `import laconic` offers
}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def part(module: str) -> str:
    """The part of the house that a module is in: laconic.core.keys -> core."""
    return module.split(".")[1] if "." in module else ""


@functools.cache
def statements(text: str) -> list[tuple[int, ast.Import | ast.ImportFrom | str]]:
    """What a text imports, with the lines: statements, and names that `import_module` is given."""
    found: list[tuple[int, ast.Import | ast.ImportFrom | str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append((node.lineno, node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                found.append((node.lineno, target.value))
    return found


def imports(module: str, sources: Sources) -> Iterator[tuple[int, str]]:
    """The modules of laconic that a module imports, with their lines; those inside functions count as well."""
    is_package = any(other.startswith(module + ".") for other in sources)
    for line, node in statements(sources[module]):
        if isinstance(node, str):
            names = [node]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [member if member in sources else base for member in members]
        for name in dict.fromkeys(names):
            if name == "laconic" or name.startswith("laconic."):
                yield line, name


def forbidden_imports(sources: Sources) -> list[str]:
    """Imports that the house's rules forbid."""
    found = []
    for module in sources:
        here = part(module)
        if here not in MAY_IMPORT:
            found.append(f"{module}: {here!r} is no part of the house; MAY_IMPORT must say what it may import")
            continue
        for line, target in imports(module, sources):
            there = part(target)
            if there != here and there not in MAY_IMPORT[here]:
                found.append(f"{module}:{line}: {here or 'laconic'} must not import {target}")
    return found


def circle(sources: Sources) -> list[str]:
    """The modules of one import circle, first and last the same, or nothing."""
    edges = {module: {target for _, target in imports(module, sources)} & sources.keys() for module in sources}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for target in sorted(edges[module]):
                if found := visit(target, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := visit(module, []))), [])


def test_every_part_imports_only_what_it_may(sources: dict[str, str]) -> None:
    assert len(sources) > 15  # the package was really found
    assert forbidden_imports(sources) == []


def test_there_are_no_import_circles(sources: dict[str, str]) -> None:
    assert circle(sources) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("laconic.core.planted", "from laconic.compressors.topk import TopK"),
        ("laconic.core.planted", "import laconic.runtime.local"),
        ("laconic.core.planted", "from ..methods import gd"),
        ("laconic.core.planted", "def lazy():\n    from laconic.lab import run"),
        ("laconic.core.planted", "import importlib\nimportlib.import_module('laconic.mechanisms.ef21')"),
        ("laconic.wire.planted", "from laconic.core import keys"),
        ("laconic.kernels.planted", "from laconic import wire"),
        ("laconic.compressors.planted", "from laconic.mechanisms import ef21"),
        ("laconic.mechanisms.planted", "from laconic.methods.gd import GD"),
        ("laconic.methods.planted", "from laconic.problems import logistic"),
        ("laconic.runtime.planted", "from laconic.mechanisms.ef21 import EF21"),
        ("laconic.training.planted", "from laconic.mechanisms.powersgd import PowerSGD"),
        ("laconic.lab.planted", "from laconic.methods.gd import GD"),
        ("laconic.lab.planted", "from laconic import compressors"),
        ("laconic.lab.planted", "import laconic"),
        ("laconic.checks.planted", "from laconic.compressors.topk import TopK"),
        ("laconic.checks.planted", "from laconic import lab"),
        ("laconic.cli", "from laconic.runtime import local"),
        ("laconic.extra", "import math"),
    ],
)
def test_a_planted_forbidden_import_is_caught(sources: dict[str, str], module: str, text: str) -> None:
    assert len(found_in(module, {**sources, module: text})) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("laconic.core.planted", "from laconic.wire import bits\nfrom laconic.kernels.philox import word"),
        ("laconic.core.planted", "from . import keys\nfrom .keys import Keys"),
        ("laconic.methods.planted", "from laconic.mechanisms.ef21 import EF21\nfrom laconic.estimators import full"),
        ("laconic.training.planted", "from laconic.runtime import process_group"),
    ],
)
def test_an_allowed_import_passes(sources: dict[str, str], module: str, text: str) -> None:
    assert found_in(module, {**sources, module: text}) == []


def found_in(module: str, sources: Sources) -> list[str]:
    return [line for line in forbidden_imports(sources) if line.startswith(f"{module}:")]


def test_a_planted_circle_is_caught(sources: dict[str, str]) -> None:
    short = {"laconic.core.one": "from laconic.core import two", "laconic.core.two": "from .one import f"}
    assert circle({**sources, **short}) == ["laconic.core.one", "laconic.core.two", "laconic.core.one"]
    lazy = {"laconic.a": "import laconic.b", "laconic.b": "from laconic import c"}
    lazy["laconic.c"] = "def f():\n    import laconic.a"
    assert circle(lazy) == ["laconic.a", "laconic.b", "laconic.c", "laconic.a"]
    diamond = {"laconic.a": "import laconic.b, laconic.c", "laconic.b": "import laconic.c", "laconic.c": ""}
    assert circle(diamond) == []


# ---- what must not stand anywhere ------------------------------------------------------------------------------------

UNPICKLING = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})
DRAWS = frozenset(  # of torch, all of which use the global generator unless they are handed one
    "rand randn randint randperm bernoulli multinomial normal poisson rand_like randn_like randint_like dropout".split()
)
DRAWS_IN_PLACE = frozenset("uniform_ normal_ random_ bernoulli_ exponential_ cauchy_ geometric_ log_normal_".split())
WATCHES = "laconic.checks.generators"  # compares the global generators' states before and after; it draws nothing
LOOKS = ("import random", "np.random.get_state(", "random.getstate(", "torch.random.get_rng_state(")
PUTS_BACK = "laconic.training.closures"  # of torch's, for a closure to be called again with the same draws
PUT_BACK = ("torch.random.fork_rng(devices=[])", "torch.set_rng_state(random)")
SEEDS = frozenset({"manual_seed", "manual_seed_all", "seed", "set_rng_state", "fork_rng", "initial_seed"})


def offences(module: str, text: str) -> list[str]:
    """Unpickling and uses of global random generators in a module's text."""
    found = []
    if module == WATCHES:
        for look in LOOKS:
            text = text.replace(look, look.replace("import random", "import io").replace("random.", "looked."))
    if module == PUTS_BACK:
        for put in PUT_BACK:
            text = text.replace(put, "contextlib.nullcontext()")
    for node in ast.walk(ast.parse(text)):
        for reason in _offences_of(node):
            found.append(f"{module}:{getattr(node, 'lineno', 0)}: {reason}")
    return found


def _offences_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        base = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in (*base, *(alias.name for alias in node.names)):
            if name.split(".")[0] in UNPICKLING and (base == [] or name == base[0]):
                yield f"{name}: bytes from elsewhere must not be unpickled"
            if name == "random" and (base == [] or base == ["random"] or base[0] in ("numpy", "torch")):
                yield "random: numbers come from core.keys"
            if name == "numpy.random":
                yield "numpy.random: numbers come from core.keys"
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ("np.random", "numpy.random"):
        yield "np.random: numbers come from core.keys"
    if isinstance(node, ast.Call):
        yield from _offences_of_call(node)


def _offences_of_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    owner, _, name = called.rpartition(".")
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load unpickles unless weights_only=True"
    if given.get("allow_pickle", "False") != "False":
        yield f"{called} unpickles with allow_pickle"
    of_torch = owner == "torch" or owner.startswith("torch.")
    if (of_torch and name in DRAWS or name in DRAWS_IN_PLACE) and "generator" not in given:
        yield f"{called} uses the global generator"
    if of_torch and name in SEEDS:
        yield f"{called} touches the global generator"


def test_nothing_unpickles_and_no_global_generator_is_used(sources: dict[str, str]) -> None:
    assert [line for module, text in sources.items() for line in offences(module, text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as safe",
        "def f(p):\n    return torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "import random",
        "from random import shuffle",
        "from numpy import random",
        "import numpy.random",
        "np.random.seed(0)",
        "x = np.random.default_rng()",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed_all(0)",
        "torch.randn(3)",
        "x.normal_()",
        "torch.nn.functional.dropout(x)",
    ],
)
def test_planted_offences_are_caught(text: str) -> None:
    assert len(offences("planted", text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(p, weights_only=True)",
        "np.load(p, allow_pickle=False)",
        "from laconic.core.keys import Keys\nkeys.normal(3)\nkeys.permutations(4)",
        "torch.randn(3, generator=g)",
        "torch.random.get_rng_state()",
        "'import pickle and call np.random.seed'",
    ],
)
def test_innocent_text_passes(text: str) -> None:
    assert offences("planted", text) == []


def test_what_watches_the_generators_may_look_and_not_draw() -> None:
    looks = "import random\nimport numpy as np\nrandom.getstate(), np.random.get_state(), torch.random.get_rng_state()"
    assert offences(WATCHES, looks) == [] and len(offences("laconic.checks.other", looks)) == 2
    for draws in ("np.random.seed(1)", "from random import choice", "torch.rand(3)", "import numpy.random"):
        assert len(offences(WATCHES, draws)) == 1


def test_every_module_says_what_it_is_in_its_first_line(sources: dict[str, str]) -> None:
    silent = [module for module, text in sources.items() if not (ast.get_docstring(ast.parse(text)) or "").strip()]
    late = [module for module, text in sources.items() if not text.startswith(('"""', 'r"""'))]
    assert silent == [] and late == []
