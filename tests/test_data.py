"""Where rows come from and who gets them: LIBSVM files, embedded sets, splits, and what is said about bad input."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from laconic.core.problem import Block
from laconic.problems import _data, _split
from laconic.problems.custom import Custom
from laconic.problems.logistic import Logistic
from laconic.problems.ridge import Ridge

GOOD = b"+1 1:0.5 3:2\n-1 2:1\n+1 1:1 2:-1 3:0.25\n-1\n"
DENSE = np.array([[0.5, 0, 2], [0, 1, 0], [1, -1, 0.25], [0, 0, 0]])


@pytest.fixture
def written(tmp_path: Path):
    """Writes a file of LIBSVM text into a fresh folder."""

    def write(content: bytes, name: str = "rows.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(
    "suffix, pack", [("", bytes), (".xz", lzma.compress), (".bz2", bz2.compress), (".gz", gzip.compress)]
)
def test_files_are_read_by_name_and_by_path_however_packed(written, suffix, pack) -> None:
    path = written(pack(GOOD), "tiny" + suffix)
    for name, folder in (("tiny", path.parent), ("tiny" + suffix, path.parent), (str(path), None)):
        table = _data.load(name, folder)
        assert np.array_equal(table.matrix.toarray(), DENSE) and table.targets.tolist() == [1, -1, 1, -1]


def test_the_folder_is_the_argument_else_the_variable(written, monkeypatch, tmp_path) -> None:
    path = written(GOOD, "tiny")
    monkeypatch.setenv("LACONIC_DATA", str(path.parent))
    assert _data.find("tiny", None) == path.resolve()
    with pytest.raises(ValueError, match="there is no such file"):
        _data.find("tiny", tmp_path / "elsewhere")


def test_features_widen_the_rows_and_no_file_is_read_wider_than_said(written) -> None:
    path = written(GOOD)
    assert _data.load(str(path), features=7).matrix.shape == (4, 7)
    with pytest.raises(ValueError, match=r"rows.txt, line 1 : index 3 is larger than features=2"):
        _data.load(str(path), features=2)


@pytest.mark.parametrize(
    "content, line, said",
    [
        (b"+1 1:1\n\n-1 1:2\n", 2, "the line is empty"),
        (b"+1 1:1\n-1 1:2\n\n", 3, "the line is empty"),
        (b"+1 1:1\nspam 1:2\n", 2, "the label 'spam' is not a finite number"),
        (b"+1 1:1\n-1 1:2 x\n", 2, "'x' is not index:value"),
        (b"+1 1:1\n-1 1:2\n-1 1:two", 3, "'1:two' is not index:value"),
        (b"+1 1:1\n-1 2:1 1:1\n", 2, "indices must ascend"),
        (b"+1 1:1\n-1 2:nan\n", 2, "'2:nan' is not index:value with a finite value"),
        (b"nan 1:1\n-1 2:1\n", 1, "the label 'nan'"),
        (b"+1 1:1\n-1 -3:1\n", 2, "'-3:1' is not index:value"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(written, content, line, said) -> None:
    path = written(content)
    with pytest.raises(ValueError) as caught:
        _data.load(str(path))
    text = str(caught.value)
    assert f"{path}, line {line} : " in text and said in text and "\n" not in text


def test_an_empty_or_damaged_file_says_so(written) -> None:
    with pytest.raises(ValueError, match="the file is empty"):
        _data.load(str(written(b"")))
    with pytest.raises(ValueError, match="cannot be read"):
        _data.load(str(written(b"not xz at all", "broken.xz")))


def test_an_absent_file_says_what_to_do(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("LACONIC_DATA", raising=False)
    for folder in (None, tmp_path):
        with pytest.raises(ValueError) as caught:
            Logistic(data="no_such_set").oracles(Block.whole(10), folder)
        text = str(caught.value)
        assert "no_such_set" in text and "\n" not in text
        assert all(word in text for word in ("--data-dir", "LACONIC_DATA", "breast_cancer", "digits", "diabetes"))


@pytest.mark.parametrize("labels", [(-1, 1), (0, 1), (1, 2)])
def test_two_classes_become_signs(labels) -> None:
    given_labels = np.array(labels, float)[[0, 1, 1, 0]]
    assert _data.signs(given_labels, "x").tolist() == [-1, 1, 1, -1]


@pytest.mark.parametrize("labels, said", [((1, 2, 3), "are 1, 2, 3"), ((0, 2), "are 0, 2"), ((1, 1), "all are 1")])
def test_labels_that_are_not_two_classes_are_refused(written, labels, said) -> None:
    content = "".join(f"{label} 1:1\n" for label in labels).encode()
    with pytest.raises(ValueError, match=f"labels must be two classes.*{said}"):
        Logistic(data=str(written(content)), workers=1).oracles(Block.whole(1))


def test_more_workers_than_rows_are_refused(written) -> None:
    path = str(written(GOOD))
    Logistic(data=path, workers=4).oracles(Block.whole(4))
    for problem in (Logistic(data=path, workers=5), Custom(path=path, workers=5), Ridge(data=path, workers=5)):
        with pytest.raises(ValueError, match=r"workers=5 : there are only 4 rows"):
            problem.oracles(Block.whole(5))


def test_an_unknown_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'contiguous', 'shuffled', 'sorted', 'dirichlet'"):
        Logistic(split="random")
    with pytest.raises(ValueError, match="'contiguous', 'shuffled', 'sorted'"):
        Ridge(split="dirichlet")


def test_a_block_of_another_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="the block is one of 7 workers and the problem has 10"):
        Logistic().oracles(Block.whole(7))


def test_the_embedded_sets_are_scaled_as_documented() -> None:
    cancer, digits, diabetes = (_data.load(name) for name in ("breast_cancer", "digits", "diabetes"))
    assert cancer.matrix.shape == (569, 30) and digits.matrix.shape == (1797, 64) and diabetes.matrix.shape == (442, 10)
    for table in (cancer, diabetes):
        rows = table.matrix.toarray()
        assert np.allclose(rows.mean(axis=0), 0, atol=1e-12) and np.allclose(rows.std(axis=0), 1)
    assert digits.matrix.min() == 0 and digits.matrix.max() == 1
    assert digits.targets.sum() == 896  # rows of the classes 5 to 9


SPLITS = [_split.Contiguous(), _split.Shuffled(), _split.Sorted(), _split.Dirichlet(0.1), _split.Dirichlet(100.0)]


@given(
    split=st.sampled_from(SPLITS),
    rows=st.integers(1, 200),
    workers=st.integers(1, 30),
    seed=st.integers(0, 5),
    share=st.floats(0, 1),
    drop_last=st.booleans(),
)
def test_every_row_is_dealt_once_and_sizes_differ_by_at_most_one(split, rows, workers, seed, share, drop_last) -> None:
    workers = min(workers, rows)
    targets = np.where(np.arange(rows) < share * rows, 1.0, -1.0)
    starts = _split.ends(rows, workers, drop_last)
    order = split.order(targets, starts, seed)
    sizes = np.diff(starts)
    assert np.array_equal(np.sort(order), np.arange(rows))
    assert starts[0] == 0 and sizes.max() - sizes.min() <= (0 if drop_last else 1)
    assert starts[-1] == (rows - rows % workers if drop_last else rows)
    assert np.array_equal(order, split.order(targets, starts, seed))


def _shares(split: _split.Split, seed: int) -> np.ndarray:
    """The share of the upper class in each of 20 workers, of 2000 rows of which 500 are upper."""
    targets = np.where(np.arange(2000) % 4 == 0, 1.0, -1.0)
    starts = _split.ends(2000, 20, drop_last=False)
    order = split.order(targets, starts, seed)
    return np.array([(targets[order[a:b]] > 0).mean() for a, b in zip(starts, starts[1:], strict=False)])


def test_splits_are_as_unlike_as_they_say() -> None:
    spread = {c: _shares(_split.Dirichlet(c), 0).std() for c in (0.1, 1.0, 10.0, 1e6)}
    assert spread[0.1] > spread[1.0] > spread[10.0] > spread[1e6] and spread[1e6] < 0.01
    # Beta(c / 4, 3 c / 4) has variance 3 / 16 / (1 + c)
    pooled = np.concatenate([_shares(_split.Dirichlet(1.0), seed) for seed in range(20)])
    assert pooled.std() == pytest.approx(np.sqrt(3 / 32), rel=0.15)
    assert sorted(_shares(_split.Sorted(), 0)) == [0.0] * 15 + [1.0] * 5
    assert 0 < _shares(_split.Shuffled(), 0).std() < 0.1
    assert not np.array_equal(_shares(_split.Shuffled(), 0), _shares(_split.Shuffled(), 1))


def test_drop_last_takes_the_papers_rows() -> None:
    whole, cut = Logistic(workers=10), Logistic(workers=10, drop_last=True)
    assert whole.dealt().sizes.sum() == 569 and set(whole.dealt().sizes) == {56, 57}
    assert cut.dealt().sizes.tolist() == [56] * 10
    assert np.array_equal(cut.dealt().matrix.toarray(), whole.dealt().matrix.toarray()[:560])
    assert np.array_equal(cut.dealt().labels, _data.signs(_data.load("breast_cancer").targets, "x")[:560])


def test_an_intercept_is_a_last_column_of_ones() -> None:
    with_one, without = Logistic(intercept=True).dealt().matrix.toarray(), Logistic().dealt().matrix.toarray()
    assert np.array_equal(with_one[:, :-1], without) and (with_one[:, -1] == 1).all()


def test_fingerprints_tell_problems_apart_and_equal_content_alike(written) -> None:
    path = written(GOOD, "a")
    other = written(lzma.compress(GOOD), "b.xz")
    changed = written(GOOD.replace(b"0.25", b"0.26"), "c")
    base = Logistic(data=str(path), workers=2)
    assert base.fingerprint() == Logistic(data=str(other), workers=2).fingerprint()
    variants = [
        Logistic(data=str(changed), workers=2),
        Logistic(data=str(path), workers=3),
        Logistic(data=str(path), workers=2, l2=1),
        Logistic(data=str(path), workers=2, nonconvex=0.1),
        Logistic(data=str(path), workers=2, split="sorted"),
        Logistic(data=str(path), workers=2, intercept=True),
        Ridge(data=str(path), workers=2, l2=1e-3),
    ]
    assert len({problem.fingerprint() for problem in [base, *variants]}) == len(variants) + 1


def test_no_global_generator_is_touched(untouched_generators) -> None:
    Logistic(split="dirichlet", workers=5, seed=3).oracles(Block.whole(5))


ROWS = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(rows=ROWS, labels=np.ones(5), workers=2), "6 rows and 5 labels"),
        (dict(rows=ROWS, labels=np.ones(6)), "workers must be an integer >= 1"),
        (dict(rows=ROWS, labels=np.arange(6), workers=2), "labels must be two classes"),
        (dict(rows=[ROWS, ROWS[:, :1]], labels=[np.ones(6), -np.ones(6)]), "all matrices must be equally wide"),
        (dict(rows=[ROWS, ROWS], labels=[np.ones(6)]), "one of each per worker"),
        (dict(rows=[ROWS, ROWS[:0]], labels=[np.ones(6), []]), "there are no rows"),
        (dict(rows=ROWS, labels=np.ones(6), workers=7), "there are only 6 rows"),
        (dict(rows=ROWS, labels=np.ones(6), workers=2, loss="hinge"), "one of 'logistic', 'ridge'"),
        (dict(rows=ROWS, labels=np.ones(6), workers=2, l2=-1.0), "l2 must be a number >= 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, said) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Custom.from_arrays(**arguments)
    assert "\n" not in str(caught.value)


def test_arrays_may_be_dense_sparse_or_per_worker() -> None:
    labels = np.array([1, -1, 1, -1, 1, -1])
    one = Custom.from_arrays(ROWS, labels, workers=2)
    others = [
        Custom.from_arrays(sparse.csc_matrix(ROWS), labels, workers=2),
        Custom.from_arrays([ROWS[:3], ROWS[3:]], [labels[:3], labels[3:]]),
        Custom.from_arrays(ROWS.tolist(), labels.tolist(), workers=2),
    ]
    assert {problem.fingerprint() for problem in others} == {one.fingerprint()}


@pytest.mark.parametrize("name, rows, d", [("a9a", 32561, 123), ("w8a", 49749, 300), ("mushrooms", 8124, 112)])
def test_published_sizes(data_dir: Path, name, rows, d) -> None:
    table = _data.load(name, data_dir)
    assert table.matrix.shape == (rows, d)
    assert _data.load(name, data_dir) is table  # read once
