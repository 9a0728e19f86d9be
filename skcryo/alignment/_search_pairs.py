"""Search over SO(3) x R^2 x R^2 for tilt pairs: one rotation and two shifts, all images against all slices."""

import numpy as np

from .._ext._poses import spread as _spread
from ._search import _NEGLIGIBLE, ExpectedSlices, PoseCandidates, _Products, _run

__all__ = ["expected_slices_of_pairs", "search_poses_of_pairs"]


def _pair_products(images, projector, rotations, shifts, band, contrast, n_jobs):
    """Of the first images over the grid, of the second over the grid turned as they are."""
    found = [
        _Products(view, projector, turned, shifts, band, contrast, n_jobs)
        for view, turned, _ in images.views(np.asarray(rotations, dtype=np.float64), np.zeros((1, 4)))
    ]
    block = min(part.block for part in found)
    for part in found:
        part.block = block
    return found


def search_poses_of_pairs(images, projector, rotations, shifts, *, band, n_best, contrast, contrast_std, n_jobs):
    """As :func:`skcryo.alignment.search_poses`, each image of a pair at its best shift for each rotation.

    Returns
    -------
    PoseCandidates
        Whose `shift` is of shape (n_images, n_best, 2).
    """
    if contrast_std is not None:
        contrast = None
    pair = _pair_products(images, projector, rotations, shifts, band, contrast, n_jobs)
    n_best = min(n_best, len(rotations))
    orders = [np.argsort(products.pairs, axis=None) for products in pair]
    tight = None if contrast_std is None else np.float32(0.5 / contrast_std**2)

    def by_rotation(part, order):
        return part.reshape(len(part), -1)[:, order]

    def stripe(where):
        found = []
        for blocks in zip(*(products.blocks(where) for products in pair)):
            best, power, shift = 0, 0, []
            for (_, _, own_power, own_best, own_shift, _, _), order in zip(blocks, orders):
                best = best + by_rotation(own_best, order)
                power = power + by_rotation(np.broadcast_to(own_power[:, None], own_best.shape), order)
                shift.append(by_rotation(own_shift, order))
            if tight is not None:  # both at one contrast, the most probable: as in `search_poses`
                cross, power = (best + power) / 2, power + tight
                best = np.square(np.maximum(cross + tight, 0)) / power - tight
            rotation = np.argpartition(-best, n_best - 1, axis=1)[:, :n_best]
            chosen = np.take_along_axis(best, rotation, axis=1)
            rotation = np.take_along_axis(rotation, np.lexsort((rotation, -chosen), axis=1), axis=1)
            at = [np.take_along_axis(part, rotation, axis=1) for part in shift]
            found.append((rotation, np.stack(at, axis=2), np.take_along_axis(best, rotation, axis=1)))
        return [np.concatenate(column) for column in zip(*found)]

    nothing = np.empty((0, n_best))
    parts = [(nothing, np.empty((0, n_best, 2)), nothing), *_run(stripe, len(images), n_jobs)]
    rotation, shift, log_likelihood = (np.concatenate(column) for column in zip(*parts))
    return PoseCandidates(rotation.astype(np.int64), shift.astype(np.int64), log_likelihood.astype(np.float64))


def _evidence(even, odd, power, best, temperature):
    """Log of the mean likelihood over shifts, (n, 1 or 2, n_pairs)."""
    out = np.empty_like(best)
    for half in range(best.shape[1]):
        log = 2 * (even + odd if half == 0 else even - odd) - power[:, None]
        log -= best[:, half, None]
        np.exp(log / np.float32(temperature), out=log)
        out[:, half] = best[:, half] + np.float32(temperature) * np.log(log.mean(axis=1))
    return out


def expected_slices_of_pairs(images, projector, rotations, shifts, *, band, temperature, contrast, n_jobs):
    """As :func:`skcryo.alignment.expected_slices`, rotations weighted by what both images of a pair say.

    Returns
    -------
    ExpectedSlices
        Whose slices are those of the grid, then those of the grid turned as the second images are; `shift` is of shape
        (n_images, 2).
    """
    pair = _pair_products(images, projector, rotations, shifts, band, contrast, n_jobs)
    n_points, n_rotations = pair[0].n_points, pair[0].n_rotations

    def sums():
        return (
            np.zeros((2, n_rotations, 2 * n_points), dtype=np.float32),
            np.zeros((2, n_rotations, n_points), dtype=np.float32),
        )

    def stripe(where):
        numerator, denominator = sums()
        weight = np.empty(n_rotations * pair[0].n_shifts)
        place = np.empty(len(weight), dtype=np.int64)
        found = []
        for blocks in zip(*(products.blocks(where) for products in pair)):
            told = []
            for products, (even, odd, power, best, _, _, _) in zip(pair, blocks):
                own = np.empty((len(best), n_rotations), dtype=np.float32)
                own[:, products.pairs.ravel()] = _evidence(even, odd, power, best, temperature).reshape(len(best), -1)
                told.append(own)
            for view, (products, block) in enumerate(zip(pair, blocks)):
                even, odd, power, best, shift, values, squares = block
                n, pairs = len(best), products.pairs
                # What the other image says of each rotation goes into the products.
                bias = told[1 - view][:, pairs]
                if len(pairs) == 2:
                    even += ((bias[:, 0] + bias[:, 1]) / 4)[:, None]
                    odd += ((bias[:, 0] - bias[:, 1]) / 4)[:, None]
                else:
                    even += (bias[:, 0] / 2)[:, None]
                best = best + bias
                flat = best.reshape(n, -1)
                top = flat.argmax(axis=1)
                highest, total = flat[np.arange(n), top], np.empty(n)
                _spread(
                    even, odd, power, best, values.view(np.float32), squares, pairs, highest, float(temperature),
                    float(np.log(_NEGLIGIBLE)), weight, place, numerator[view], denominator[view], total,
                )
                if view == 0:
                    evidence = highest + temperature * np.log(total / len(weight))
                    rotation = pairs.ravel()[top]
                    at = [shift.reshape(n, -1)[np.arange(n), top]]
                else:
                    back = np.argsort(pairs, axis=None)
                    at.append(shift.reshape(n, -1)[np.arange(n), back[rotation]])
            found.append((rotation, np.stack(at, axis=1), evidence))
        return numerator, denominator, *(np.concatenate(column) for column in zip(*found))

    numerator, denominator = sums()
    found = [(np.empty(0), np.empty((0, 2)), np.empty(0))]
    for part in _run(stripe, len(images), n_jobs):
        numerator += part[0]
        denominator += part[1]
        found.append(part[2:])
    rotation, shift, evidence = (np.concatenate(column) for column in zip(*found))
    numerator, denominator = (part.reshape(2 * n_rotations, -1) for part in (numerator, denominator))
    return ExpectedSlices(
        numerator.view(np.complex64), denominator, rotation.astype(np.int64), shift.astype(np.int64), evidence
    )
