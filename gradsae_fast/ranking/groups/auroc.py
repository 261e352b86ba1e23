"""The area under the ROC curve of each latent: how well its score alone tells the documents of two groups apart.

It is the probability that a document of group a, drawn at random, has the larger score than one of group b, ties half:
Mann and Whitney's U over the number of pairs. 0.5 is chance, 0 and 1 tell the groups apart without error.

Letters: S documents, C latents, P samples that are stored, G runs of equal samples of one latent.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import scipy.sparse

from gradsae_fast.records import Array

_PAIRS_AT_ONCE = 1 << 20


def auroc(matrix_SC: scipy.sparse.csc_array, is_a_S: Array, is_b_S: Array) -> Array:
    """Return the area [C], NaN where a latent has a NaN sample.

    Only stored samples are sorted, those of some latents at a time; the absent ones of a latent are ties at 0.

    Args:
        matrix_SC: the samples; absent ones are 0.
        is_a_S, is_b_S: the documents of the two groups, bool; both have some, and none is in both.
    """
    parts = [_areas(matrix_SC[:, start:stop], is_a_S, is_b_S) for start, stop in _runs(matrix_SC.indptr)]
    return np.concatenate([np.zeros(0), *parts])


def _runs(edges: Array) -> Iterator[tuple[int, int]]:
    """Cut the latents into runs that together have few samples (or one latent)."""
    if len(edges) == 1:
        return
    cuts = np.flatnonzero(np.diff(edges[1:] // _PAIRS_AT_ONCE)) + 1
    yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(edges) - 1], strict=True)


def _areas(matrix_SC: scipy.sparse.csc_array, is_a_S: Array, is_b_S: Array) -> Array:
    num_latents = matrix_SC.shape[1]
    edges = matrix_SC.indptr + np.arange(num_latents + 1)  # with one sample more of each latent: 0, where it is absent
    latent = np.repeat(np.arange(num_latents), np.diff(edges))
    is_absent = np.zeros(len(latent), bool)
    is_absent[edges[1:] - 1] = True
    score = np.zeros(len(latent))
    score[~is_absent] = matrix_SC.data
    order = np.concatenate([start + np.argsort(score[start:stop]) for start, stop in itertools.pairwise(edges)])
    score = score[order]
    starts = np.flatnonzero(np.concatenate([[True], (latent[1:] != latent[:-1]) | (score[1:] != score[:-1])]))
    a_G, b_G = (
        np.add.reduceat(_copies(is_group_S, matrix_SC, is_absent)[order], starts) for is_group_S in (is_a_S, is_b_S)
    )
    num_a, num_b = int(is_a_S.sum()), int(is_b_S.sum())
    below_G = np.cumsum(b_G) - b_G - num_b * latent[starts]  # of b, with a smaller score of the same latent
    area = np.bincount(latent[starts], a_G * (below_G + b_G / 2), num_latents) / (num_a * num_b)
    area[latent[np.isnan(score)]] = np.nan
    return area


def _copies(is_group_S: Array, matrix_SC: scipy.sparse.csc_array, is_absent: Array) -> Array:
    """How many documents of a group stand behind each sample, the absent ones last of each latent."""
    copies = np.zeros(len(is_absent), np.int64)
    stored_P = is_group_S[matrix_SC.indices]
    copies[~is_absent] = stored_P
    stored_so_far = np.concatenate([[0], np.cumsum(stored_P)])[matrix_SC.indptr]
    copies[is_absent] = is_group_S.sum() - np.diff(stored_so_far)
    return copies
