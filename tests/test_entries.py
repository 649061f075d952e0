"""Entries and spec strings: every entry is its text, every wrong text or value gets one clear line.

First on toys, then on everything in the catalogue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args, get_origin
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core.broadcast import Broadcast
from laconic.core.compressor import Compressor, Unbiased
from laconic.core.entry import (
    Amount,
    Count,
    Entry,
    Interval,
    OneOf,
    Parameter,
    Range,
    Source,
    Step,
    Stepsize,
    amount,
    parameters,
)
from laconic.core.estimator import Estimator
from laconic.core.problem import Problem
from laconic.core.registry import Catalogue, catalogue
from laconic.core.schedule import Schedule
from laconic.core.spec import example, parse

# ---- toys ------------------------------------------------------------------------------------------------------------


class Toy(Entry):
    kind: ClassVar[str] = "toy"


@dataclass(frozen=True)
class Leaf(Toy):
    name: ClassVar[str] = "leaf"
    aliases: ClassVar[tuple[str, ...]] = ("foil",)
    k: Annotated[int | float, Amount()] = 1
    step: Stepsize = None
    levels: Annotated[int, Count(2)] = 4
    share: Annotated[float, Interval(0.0, 1.0, open="low")] = 0.5
    split: Annotated[str, OneOf(("even", "odd"))] = "even"
    note: str = ""
    shared: bool = False


@dataclass(frozen=True)
class Wrap(Toy):
    name: ClassVar[str] = "wrap"
    inner: Toy
    times: Annotated[int, Count()] = 1


@dataclass(frozen=True)
class Pair(Toy):
    name: ClassVar[str] = "pair"
    first: Toy
    weight: Annotated[float, Interval(low=0.0)]
    second: Toy | None = None
    third: Toy = dataclasses.field(default_factory=Leaf)


@dataclass(frozen=True)
class Joined(Toy):
    """What `|` makes of toys, written as it was."""

    name: ClassVar[str] = "join"
    first: Toy = Leaf()
    second: Toy = Leaf()

    def __or__(self, other: Toy) -> Joined:
        return Joined(self, other)

    def __str__(self) -> str:
        return "join" if self == Joined() else f"{self.first} | {self.second}"


@contextlib.contextmanager
def toys() -> Iterator[None]:
    """Spec strings name the toys only."""
    classes: dict[str, type[Entry]] = {cls.name: cls for cls in (Leaf, Wrap, Pair, Joined)}
    names = {label: cls.name for cls in classes.values() for label in (cls.name, *cls.aliases)}
    with mock.patch("laconic.core.spec.catalogue", lambda: Catalogue(classes, names, ())):
        yield


def words(**extra: Any) -> st.SearchStrategy[Leaf]:
    floats = st.floats(0.0, 1.0, exclude_min=True)
    steps = st.none() | st.floats(0, 1e300, exclude_min=True) | floats.map(lambda x: f"{x}x") | st.integers(1, 10)
    return st.builds(
        Leaf,
        k=st.integers(1, 10**6) | floats,
        step=steps,
        levels=st.integers(2, 99),
        share=floats | st.just(1),
        split=st.sampled_from(["even", "odd"]),
        note=st.text(),
        shared=st.booleans(),
    )


def pairs(inner: st.SearchStrategy[Toy]) -> st.SearchStrategy[Toy]:
    return st.builds(Wrap, inner, times=st.integers(1, 3)) | st.builds(
        Pair, inner, st.floats(0, 1e9), second=st.none() | inner, third=inner
    )


ENTRIES = st.recursive(words(), pairs, max_leaves=6)


def kinds(entry: Entry) -> list[Any]:
    """The parameters' types in depth: 1 equals 1.0 and yet means another thing."""
    values = [getattr(entry, p.name) for p in parameters(type(entry))]
    return [kinds(value) if isinstance(value, Entry) else type(value) for value in values]


@given(ENTRIES)
def test_an_entry_is_its_text(entry: Toy) -> None:
    with toys():
        again = parse(str(entry))
    assert again == entry and kinds(again) == kinds(entry) and str(again) == str(entry)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("leaf", Leaf()),
        ("leaf()", Leaf()),
        (" foil ( 0.25 ) ", Leaf(k=0.25)),
        ("leaf(1.0)", Leaf(k=1.0)),
        ("leaf(2, '4x', note='a, (b)')", Leaf(k=2, step="4x", note="a, (b)")),
        ("wrap(leaf(k=3), times=2)", Wrap(Leaf(k=3), 2)),
        ("wrap(times=2, inner=leaf)", Wrap(Leaf(), 2)),
        ("pair(leaf, 1e-3, None, wrap(leaf))", Pair(Leaf(), 1e-3, None, Wrap(Leaf()))),
    ],
)
def test_texts_and_what_they_mean(text: str, entry: Toy) -> None:
    with toys():
        assert parse(text) == entry and kinds(parse(text)) == kinds(entry)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (Leaf(), "leaf"),
        (Leaf(k=1.0), "leaf(k=1.0)"),
        (Wrap(Leaf(k=0.01)), "wrap(leaf(k=0.01))"),
        (Wrap(Leaf(), times=2), "wrap(leaf, times=2)"),
        (Pair(Leaf(), 2.0, Leaf(shared=True)), "pair(leaf, weight=2.0, second=leaf(shared=True))"),
    ],
)
def test_the_text_is_short(entry: Toy, text: str) -> None:
    assert str(entry) == text


def test_an_operator_is_what_the_entries_say_it_is() -> None:
    """Python's own precedence and brackets; in any place where a spec may stand."""
    join, leaf = Joined(), Leaf(k=2)
    both = join | leaf
    for text, entry in [
        ("join | leaf(k=2)", both),
        ("join|leaf(k=2)|join", both | join),
        ("join | (join | leaf(k=2))", Joined(join, both)),
        ("wrap(join | leaf(k=2), times=2)", Wrap(both, 2)),
        ("pair(leaf, weight=1.0, second=join | leaf(k=2))", Pair(Leaf(), 1.0, both)),
    ]:
        with toys():
            assert parse(text) == entry
    assert str(Wrap(both, 2)) == "wrap(join | leaf(k=2), times=2)"
    assert str(Pair(Leaf(), 1.0, both)) == "pair(leaf, weight=1.0, second=join | leaf(k=2))"


def test_deep_nesting() -> None:
    entry: Toy = Leaf()
    for _ in range(60):
        entry = Wrap(entry)
    with toys():
        assert parse(str(entry)) == entry
        with pytest.raises(ValueError, match="cannot read"):
            parse("wrap(" * 5000 + "leaf" + ")" * 5000)
        with pytest.raises(ValueError, match="cannot read"):
            parse("join" + " | leaf" * 5000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lef", "there is no entry called 'lef'; did you mean 'leaf'?"),
        ("wrap(foils)", "there is no entry called 'foils'; did you mean 'foil'?"),
        ("zzzzzz", "there is no entry called 'zzzzzz'; see `laconic list`"),
        ("wrap", "wrap needs a value for inner, as in `wrap`"),
        ("pair(second=leaf)", "pair needs a value for first, weight, as in `pair`"),
        ("wrap(leaf, time=2)", "wrap(time=...) : wrap has no parameter 'time'; its parameters are inner, times"),
        ("wrap(leaf, inner=leaf)", "wrap(inner=...) : 'inner' is given twice in 'wrap(leaf, inner=leaf)'"),
        ("wrap(leaf, 1, 2)", "wrap takes at most 2 values and was given 3 in 'wrap(leaf, 1, 2)'; its parameters are"),
        ("wrap(*leaf)", "cannot read the spec 'wrap(*leaf)': * and ** have no meaning here"),
        ("wrap(**leaf)", "cannot read the spec 'wrap(**leaf)': * and ** have no meaning here"),
        ("wrap(leaf", "cannot read the spec 'wrap(leaf': it must be a name"),
        ("", "cannot read the spec '': it must be a name"),
        ("3", "cannot read the spec '3': it must be a name"),
        ("leaf.k", "cannot read 'leaf.k' in the spec 'leaf.k'"),
        ("leaf; leaf", "cannot read the spec"),
        ("leaf | leaf", "cannot read 'leaf | leaf' in the spec 'leaf | leaf': | stands between two compressors"),
        ("wrap(1 | leaf)", "cannot read '1 | leaf' in the spec 'wrap(1 | leaf)': | stands between two compressors"),
        ("wrap(join | 2)", "cannot read 'join | 2' in the spec 'wrap(join | 2)': | stands between two compressors"),
        ("leaf |", "cannot read the spec 'leaf |': it must be a name, or name(value, key=value, ...), or two of these"),
        ("leaf(k=1 + leaf)", "cannot read '1 + leaf' in the spec"),
        ("leaf(note=__import__('os').name)", "cannot read \"__import__('os').name\" in the spec"),
        ("wrap(leaf, times=1, times=2)", "wrap(times=...) : 'times' is given twice in 'wrap(leaf, times=1, times=2)'"),
        ("leaf(note='\0')", "cannot read the spec"),
        ("wrap(3)", "Wrap(inner=3) : inner must be a toy"),
        ("wrap(leaf(k=0))", "Leaf(k=0) : k must be a fraction in (0, 1] or a count >= 1"),
        ("leaf(levels=1)", "Leaf(levels=1) : levels must be an integer >= 2"),
        ("leaf(share=0.0)", "Leaf(share=0.0) : share must be a number in (0, 1]"),
        ("leaf(split='all')", "Leaf(split='all') : split must be one of 'even', 'odd'"),
        ("leaf(step='fast')", "Leaf(step='fast') : step must be a number > 0, a multiple of the theorem's step such"),
        ("leaf(note=3)", "Leaf(note=3) : note must be text"),
        ("leaf(shared=1)", "Leaf(shared=1) : shared must be True or False"),
        ("pair(leaf, weight=True)", "Pair(weight=True) : weight must be a number >= 0"),
        ("pair(leaf, 1.0, second='leaf')", "Pair(second='leaf') : second must be a toy or None"),
    ],
)
def test_wrong_texts_get_one_clear_line(text: str, message: str) -> None:
    with toys(), pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# ---- ranges ----------------------------------------------------------------------------------------------------------

RANGES = [
    Amount(),
    Count(),
    Count(0),
    Interval(),
    Interval(0.0, 1.0),
    Interval(0.0, 1.0, open="low"),
    Interval(-1.0, 1.0, open="both"),
    Interval(0.0, open="low"),
    Interval(high=2.0, open="high"),
    OneOf(("a", "b")),
    Step(),
]


@pytest.mark.parametrize("declared", RANGES, ids=repr)
def test_examples_outside_a_range_are_outside(declared: Range) -> None:
    examples = declared.examples_outside()
    assert len(examples) >= 2 and not any(declared.holds(value) for value in examples)


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(), st.just(10**400)))
def test_ranges_hold_what_they_say(value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    small = number and abs(value) <= sys.float_info.max  # nan compares false
    whole = number and isinstance(value, int)
    assert Amount().holds(value) == ((whole and value >= 1) or (number and not whole and 0 < value <= 1))
    assert Count(3).holds(value) == (whole and value >= 3)
    assert Interval(0.0, 1.0).holds(value) == (small and 0 <= value <= 1)
    assert Interval(0.0, 1.0, open="low").holds(value) == (small and 0 < value <= 1)
    assert Interval(0.0, 1.0, open="high").holds(value) == (small and 0 <= value < 1)
    assert Interval(0.0, 1.0, open="both").holds(value) == (small and 0 < value < 1)
    assert Interval(low=0.0).holds(value) == (small and value >= 0)
    assert not OneOf(("yes, in all its length",)).holds(value)


@given(st.floats(0, 1e300, exclude_min=True))
def test_steps(value: float) -> None:
    assert all(Step().holds(step) for step in (value, f"{value}x", 4, "4x"))
    assert not any(Step().holds(step) for step in (-value, f"-{value}x", str(value), f"{value} x y", True))


@pytest.mark.parametrize(
    ("k", "d", "count"),
    [(1, 10, 1), (1.0, 10, 10), (0.01, 10, 1), (0.25, 10, 3), (0.3, 10, 3), (99, 10, 10), (1, 0, 0)],
)
def test_an_amount_is_a_count(k: int | float, d: int, count: int) -> None:
    assert amount(k, d) == count


@given(count=st.integers(1, 10**6), d=st.integers(1, 10**6))
def test_a_fraction_made_of_a_count_is_that_count(count: int, d: int) -> None:
    assert amount(min(count, d) / d, d) == min(count, d)
    assert 1 <= amount(count, d) <= d


def test_sources_as_text_and_bibtex() -> None:
    source = Source("Ada Lovelace and Charles Babbage", 1843, "Notes on the engine", "0001.00001", "Note G")
    assert str(source) == "Ada Lovelace and Charles Babbage (1843). Notes on the engine, arXiv:0001.00001, Note G"
    assert source.bibtex().startswith("@article{lovelace1843notes,") and source.bibtex().endswith("\n}")


# ---- the catalogue ---------------------------------------------------------------------------------------------------

ENTRIES = [cls for _, cls in sorted(catalogue().entries.items())]
CATALOGUE = [pytest.param(cls, id=cls.name) for cls in ENTRIES]
EXPECTED = {
    "basis": "standard_basis data_basis psd_basis",
    "broadcast": "exact ef21_p mcm dore",
    "compressor": "identity topk randk permk natural",
    "delay": "fixed_delay exponential_delay speeds",
    "domain": "simplex cube",
    "estimator": "full sgd shuffled lsvrg saga page mvr",
    "mechanism": "direct direct_all_reduce bi_qgd ef14 ef14_inside double_squeeze ef0 ef1 ef2 delayed ef21 ef21_sgdm "
    "ef21_sgd2m ef21_bc ef21_plus partial scam scam_reset scam_21 diana ef_bv econtrol ec_diana marina vr_marina dasha "
    "dasha_sync_mvr lag lag_wk clag threepc_v1 threepc_v2 threepc_v3 threepc_v4 threepc_v5 adacgd artemis "
    "artemis_memory majority_vote ssdm powersgd alternating_powersgd",
    "method": "gd heavy_ball nesterov adam amsgrad adiana local_sgd post_local_sgd fedavg fedprox scaffold scaffold_i "
    "proxskip gradskip gradskip_plus diloco diloco_sgd mirror_descent dane inexact_dane dane_ls dane_hb aide sonata "
    "acc_sonata spag disco diregina diregina_averaged acn sliding sliding_untuned olga ef_olga svrg svrg_last "
    "loopless_svrg katyusha l_katyusha svrp catalyzed_svrp svrs acc_svrs newton n0 newton_star fednl fednl_projected "
    "fednl_ls fednl_cr fednl_pp fednl_bc bl1 bl2 bl3 newton_3pc extragradient optimistic_gradient "
    "extragradient_sliding optimistic_masha three_pillars three_pillars_pp svogs pure_async waiting_async random_async "
    "shuffled_async replayed_async",
    "problem": "quadratic logistic ridge counterexample custom least_squares lasso composite squared_sigmoid "
    "autoencoder network rotated_quadratic saddle robust_regression",
    "recipe": "compression_lecture topk_and_permk importance_and_scam low_rank sign_and_smoothness",
    "reference": "server euclidean quartic",
    "regulariser": "l1 box",
    "schedule": "constant decreasing two_phase inverse_root",
}
SPECS = [
    "logistic(data='a9a', l2=1e-3, workers=20)",
    "logistic(data='w8a', l2=1e-3, workers=142, intercept=True, split='shuffled')",
    "quadratic(d=1000, workers=10, noise=0.8)",
    "ef21(topk(k=0.05))",
    "topk(k=0.01) | natural",
    "ef21_sgdm(topk(k=0.01) | natural)",
    "gd(ef21(topk(k=0.1) | randk(k=0.5) | natural), step='4x')",
    "ef21(per_tensor(topk(k=0.1) | natural, sizes=(784, 10)))",
    "diana(natural)",
    "marina(permk)",
    "proxskip",
    "fednl(topk(k=2408))",
    'gd(ef14(topk(k=0.01)), step="4x")',
    "gd(ef21(topk(k=1)), estimator=sgd(batch=32))",
    "dcgd(topk(k=1))",
    "qgd(natural)",
]


def test_nothing_in_the_catalogue_is_broken() -> None:
    assert catalogue().broken == ()


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_catalogue_holds_what_is_promised(kind: str) -> None:
    assert set(EXPECTED[kind].split()) <= {cls.name for cls in catalogue().of_kind(kind)}


@pytest.mark.parametrize("text", SPECS)
def test_specs_from_the_documentation_round_trip(text: str) -> None:
    entry = parse(text)
    assert parse(str(entry)) == entry and str(parse(str(entry))) == str(entry)


@pytest.mark.parametrize("cls", CATALOGUE)
def test_an_entrys_example_parses_to_it_and_round_trips(cls: type[Entry]) -> None:
    entry = parse(example(cls))
    assert type(entry) is cls
    assert parse(str(entry)) == entry and kinds(parse(str(entry))) == kinds(entry)
    assert cls.kind in EXPECTED


def wrong_values(parameter: Parameter) -> Iterator[Any]:
    """Values that a parameter must refuse, made from what it declares."""
    if parameter.range is not None:
        yield from parameter.range.examples_outside()
        return
    members = get_args(parameter.type) or (parameter.type,)
    if any(inspect.isclass(member) and issubclass(member, Entry) for member in members):
        yield from (3, 0.5, "topk", True, Leaf())
    elif bool in members:
        yield from (3, "yes")
    elif str in members:
        yield from (3.5, True)
    elif int in members or float in members:
        yield from ("many", math.nan) if float in members else ("many", 0.5)


WRONG = [
    pytest.param(cls, parameter, id=f"{cls.name}-{parameter.name}")
    for cls in ENTRIES
    for parameter in parameters(cls)
    if any(True for _ in wrong_values(parameter))
]


@pytest.mark.parametrize(("cls", "parameter"), WRONG)
def test_wrong_values_are_refused_in_call_syntax(cls: type[Entry], parameter: Parameter) -> None:
    entry: Any = parse(example(cls))
    for value in wrong_values(parameter):
        try:
            dataclasses.replace(entry, **{parameter.name: value})
        except ValueError as refusal:
            said = str(refusal)
        else:
            pytest.fail(f"{value!r} is taken")
        assert said.startswith(f"{cls.__name__}({parameter.name}="), value
        assert f" : {parameter.name} must be " in said and "\n" not in said, value


@pytest.mark.parametrize("cls", CATALOGUE)
def test_every_parameter_says_what_it_takes(cls: type[Entry]) -> None:
    """A Range declared inside a union is silently not looked at, and a bare number takes anything."""
    for parameter in parameters(cls):
        members = get_args(parameter.type) or (parameter.type,)
        assert not any(get_origin(member) is Annotated for member in members), f"put Annotated around {parameter}"
        numeric = {int, float} & set(members)
        assert parameter.range is not None or not numeric, f"{cls.name}.{parameter.name} declares no Range"


@pytest.mark.parametrize("cls", CATALOGUE)
def test_every_entry_is_documented(cls: type[Entry]) -> None:
    assert dataclasses.is_dataclass(cls) and vars(cls)["__dataclass_params__"].frozen
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring of its own"
    assert ">>>" in cls.__doc__, f"{cls.__name__}'s docstring has no example that runs"
    assert (sys.modules[cls.__module__].__doc__ or "").strip()
    if cls.source is None:
        assert exact(parse(example(cls))), f"{cls.__name__} names no source, and does something that needs one"
    else:
        assert cls.source.authors and cls.source.title and 1800 < cls.source.year < 2100


def exact(entry: Entry) -> bool:
    """Whether an entry is what there is without it: all values, the true gradient, data of one's own."""
    if isinstance(entry, Compressor):
        return entry.claim(8, 2) == Unbiased(0.0)
    if isinstance(entry, Broadcast):
        return entry == parse("exact")
    if isinstance(entry, Schedule):
        return entry.constant
    return entry.exact if isinstance(entry, Estimator) else isinstance(entry, Problem)
