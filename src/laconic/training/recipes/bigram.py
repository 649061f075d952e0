"""The bigram model: what the token before alone tells of the next one; a language model must beat its loss."""

from __future__ import annotations

import numpy as np


def bigram_loss(train: np.ndarray, vocabulary: int, before: np.ndarray, after: np.ndarray) -> float:
    """The mean of -log p(w | v), in nats per token, of interpolated Kneser-Ney bigrams on pairs (v, w).

    p(w | v) = max(c(v, w) - D, 0) / c(v) + D N(v, .) / c(v) p(w), where c counts in the training text, N counts
    different bigrams, and p(w) = max(N(., w) - E, 0) / N(., .) + E W / N(., .) / V, W being the number of tokens that
    follow any. After a v that nothing follows, p(w | v) = p(w). Kneser & Ney (1995), "Improved backing-off for m-gram
    language modeling". Discounts: n1 / (n1 + 2 n2) (Ney, Essen, Kneser 1994), for D from the bigrams seen once and
    twice, for E from the tokens with one and two predecessors. Deviation: the share 1 / V, so that no token is
    impossible.

    Parameters
    ----------
    train : the training text, (count,) integers below `vocabulary`, in order.
    vocabulary : V.
    before, after : v and w, integers of one shape.

    Examples
    --------
    >>> text = np.array([0, 1, 0, 1, 0, 2])
    >>> 0.0 < bigram_loss(text, 3, np.array([0]), np.array([1])) < bigram_loss(text, 3, np.array([0]), np.array([2]))
    True
    """
    V = vocabulary
    first, second = train[:-1].astype(np.int64), train[1:].astype(np.int64)
    codes, counts = np.unique(first * V + second, return_counts=True)
    follow = np.bincount(first, minlength=V)  # c(v)
    different = np.bincount(codes // V, minlength=V)  # N(v, .)
    preceding = np.bincount(codes % V, minlength=V)  # N(., w)
    D, E = discount(counts), discount(preceding)
    alone = (np.maximum(preceding - E, 0.0) + E * np.count_nonzero(preceding) / V) / len(codes)  # p(w)

    v, w = before.reshape(-1).astype(np.int64), after.reshape(-1).astype(np.int64)
    asked = v * V + w
    place = np.minimum(np.searchsorted(codes, asked), len(codes) - 1)
    seen = np.where(codes[place] == asked, counts[place] - D, 0.0)
    known = follow[v] > 0
    backing = np.where(known, D * different[v], 1.0)
    p = (seen + backing * alone[w]) / np.maximum(follow[v], 1)
    return float(-np.log(p).mean())


def discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), where n1 and n2 count the ones and the twos among `counts`; 1/2 where either is 0."""
    ones, twos = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return ones / (ones + 2 * twos) if ones and twos else 0.5
