"""The folder is the registry: finds entries in the catalogue's folders and in installed packages, by name."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from laconic.core.entry import Entry

FOLDERS = (
    "broadcasts", "compressors", "estimators", "mechanisms", "methods", "problems", "recipes", "regularisers",
    "schedules",
)  # fmt: skip
GROUP = "laconic.entries"  # the entry-point group of packages that add entries


@dataclass(frozen=True)
class Broken:
    """A module that should hold entries and cannot be imported."""

    module: str
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """All entries by name and alias, and the modules that could not be imported."""

    entries: dict[str, type[Entry]]
    names: dict[str, str]  # name or alias -> name
    broken: tuple[Broken, ...]

    def of_kind(self, kind: str) -> list[type[Entry]]:
        """The entries of a kind ("compressor", "method", ...), by name."""
        return [entry for _, entry in sorted(self.entries.items()) if entry.kind == kind]

    def find(self, name: str) -> type[Entry]:
        """The entry called `name`. Raises ValueError with the nearest name where there is none."""
        if name in self.names:
            return self.entries[self.names[name]]
        near = difflib.get_close_matches(name, self.entries, n=1, cutoff=0.7)  # aliases are shorter, and so nearer
        near = near or difflib.get_close_matches(name, self.names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "see `laconic list`"
        reasons = [f" ({b.module} could not be imported: {b.reason})" for b in self.broken if b.module.endswith(name)]
        raise ValueError(f"there is no entry called {name!r}; {hint}{''.join(reasons)}")


def _entries_in(module: ModuleType) -> list[type[Entry]]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Entry)
        and value.__module__ == module.__name__
        and "name" in vars(value)
    ]


def _modules() -> list[str]:
    """Those that should hold entries: in the catalogue's folders, then as installed packages name them."""
    modules: list[str] = []
    for folder in FOLDERS:
        package = importlib.import_module(f"laconic.{folder}")
        files = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
        modules += [f"{package.__name__}.{file}" for file in files if not file.startswith("_")]
    return modules + [point.value for point in importlib.metadata.entry_points(group=GROUP)]


@functools.lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """Everything that can be named in a spec string. Read once per process; `catalogue.cache_clear()` reads again."""
    found: list[type[Entry]] = []
    broken: list[Broken] = []
    for module in _modules():
        try:
            found += _entries_in(importlib.import_module(module.split(":")[0]))
        except Exception as error:  # a broken third-party file must not take the tool down: it is listed
            broken.append(Broken(module, f"{type(error).__name__}: {error}"))
    entries: dict[str, type[Entry]] = {}
    names: dict[str, str] = {}
    for entry in found:
        taken = [label for label in (entry.name, *entry.aliases) if label in names]
        if taken:
            other = entries[names[taken[0]]]
            reason = f"ValueError: the name {taken[0]!r} is taken by {other.__module__}.{other.__qualname__}"
            broken.append(Broken(f"{entry.__module__}.{entry.__qualname__}", reason))
            continue
        entries[entry.name] = entry
        names.update({label: entry.name for label in (entry.name, *entry.aliases)})
    return Catalogue(entries, names, tuple(broken))
