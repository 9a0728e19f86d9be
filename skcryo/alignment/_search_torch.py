"""The search over SO(3) x R^2 on a GPU: that of `_search`, its products, maxima and sums done by torch."""


import numpy as np

from .._torch import full_precision, import_torch, to_numpy
from . import _search
from ._search import ExpectedSlices, PoseCandidates

__all__ = ["expected_slices_torch", "search_poses_torch"]

# Bytes of a block of images on the device, at most. Fixed, so that results do not depend on what memory is free.
_MAX_BYTES = 2**30


class _TorchProducts(_search._Products):
    """Log-likelihoods of blocks of images over the whole grid, on a device."""

    def __init__(self, torch, device, *arguments):
        super().__init__(*arguments)
        self.torch, self.device = torch, device
        self.real, self.imag, self.power, self.undo = map(self.put, (self.real, self.imag, self.power, self.undo))
        # of an image: both products and the log-likelihoods, the mask of those dropped; its shifted copies
        each = self.n_shifts * (10 * self.n_rotations + 16 * self.n_points)
        self.block = max(1, _MAX_BYTES // each)

    def put(self, array):
        return self.torch.as_tensor(array, device=self.device)

    def blocks(self):
        """Go through all images, a block at a time.

        Yields
        ------
        log : tensor of shape (n, n_shifts, 1 or 2, n_pairs)
            Log-likelihoods: of the rotations of the grid, with half a turn of those half a turn away.
        power : tensor of shape (n, n_pairs)
            Of the filtered slices.
        values : tensor of shape (n, n_shifts, n_points), complex64
            Filtered images, shifts undone.
        squares : tensor of shape (n, n_points)
            Squared filters.
        """
        for start in range(0, len(self.images), self.block):
            filters, filtered = self.filtered(slice(start, start + self.block))
            n = len(filtered)
            values = self.put(filtered)[:, None] * self.undo
            squares = self.put(np.square(filters)).expand(n, self.n_points)
            even, odd = (
                (part.reshape(n * self.n_shifts, self.n_points) @ slices).view(n, self.n_shifts, -1)
                for part, slices in ((values.real, self.real), (values.imag, self.imag))
            )
            power = squares @ self.power
            log = even.new_empty((n, self.n_shifts, *self.pairs.shape))
            for half, combine in enumerate((self.torch.add, self.torch.sub)[: len(self.pairs)]):
                combine(even, odd, out=log[:, :, half])
            del even, odd
            log.mul_(2).sub_(power[:, None, None])
            yield log, power, values, squares


def search_poses_torch(
    images, projector, rotations, shifts, *, band, n_best=1, contrast=None, contrast_std=None, n_jobs=None, device
):
    """As :func:`skcryo.alignment.search_poses`, by torch.

    Parameters
    ----------
    images, projector, rotations, shifts, band, n_best, contrast, contrast_std, n_jobs
        As there; threads make the slices, on the CPU.
    device : torch.device

    Returns
    -------
    PoseCandidates
    """
    torch = import_torch("search_poses")
    if contrast_std is not None:
        contrast = None
    found = []
    with full_precision(torch, device):
        products = _TorchProducts(torch, device, images, projector, rotations, shifts, band, contrast, n_jobs)
        n_best = min(n_best, products.n_rotations)
        order = products.put(np.argsort(products.pairs, axis=None))
        for log, power, _, _ in products.blocks():
            best, shift = log.max(dim=1)
            del log
            if contrast_std is not None:  # see there
                tight = 0.5 / contrast_std**2
                cross, power = (best + power[:, None]) / 2, power[:, None] + tight
                best = (cross + tight).clamp(min=0).square() / power - tight
            best, shift = (part.flatten(1)[:, order] for part in (best, shift))
            chosen, rotation = best.topk(n_best, dim=1)
            chosen, rotation, shift = map(to_numpy, (chosen, rotation, shift.gather(1, rotation)))
            rank = np.lexsort((rotation, -chosen), axis=1)
            found.append([np.take_along_axis(part, rank, axis=1) for part in (rotation, shift, chosen)])
    nothing = np.empty((0, n_best))
    rotation, shift, log_likelihood = (np.concatenate(column) for column in zip([nothing] * 3, *found))
    return PoseCandidates(rotation.astype(np.int64), shift.astype(np.int64), log_likelihood.astype(np.float64))


def expected_slices_torch(
    images, projector, rotations, shifts, *, band, temperature=1.0, contrast=None, n_jobs=None, device
):
    """As :func:`skcryo.alignment.expected_slices`, by torch.

    Parameters
    ----------
    images, projector, rotations, shifts, band, temperature, contrast, n_jobs
        As there; threads make the slices, on the CPU.
    device : torch.device

    Returns
    -------
    ExpectedSlices

    Notes
    -----
    The sums are products of matrices, most of whose weights are zero: more work than the CPU's lists of what is not,
    done sooner, and in the same order each time.
    """
    torch = import_torch("expected_slices")
    found = []
    with full_precision(torch, device):
        products = _TorchProducts(torch, device, images, projector, rotations, shifts, band, contrast, n_jobs)
        n_points, n_rotations, n_shifts = products.n_points, products.n_rotations, products.n_shifts
        numerator = torch.zeros((n_rotations, 2 * n_points), device=device)
        denominator = torch.zeros((n_rotations, n_points), device=device)
        for log, _, values, squares in products.blocks():
            n = len(log)
            weight = log.view(n, n_shifts * n_rotations)
            highest, top = weight.max(dim=1)
            weight.sub_(highest[:, None]).div_(temperature)
            weight.masked_fill_(weight <= float(np.log(_search._NEGLIGIBLE)), -torch.inf).exp_()
            total = weight.sum(dim=1, dtype=torch.float64)
            weight.div_(total[:, None])
            weight = weight.view(n, n_shifts, n_rotations)
            points = torch.view_as_real(values).view(n * n_shifts, 2 * n_points)
            numerator.addmm_(weight.view(n * n_shifts, n_rotations).T, points)
            denominator.addmm_(weight.sum(dim=1).T, squares)
            found.append([to_numpy(part) for part in (highest, top, total)])
        # from pairs to the grid
        order = products.put(np.argsort(products.pairs, axis=None))
        numerator, denominator = to_numpy(numerator[order]), to_numpy(denominator[order])
    nothing = np.empty(0)
    highest, top, total = (np.concatenate(column) for column in zip([nothing] * 3, *found))
    shift, place = np.divmod(top.astype(np.int64), n_rotations)
    evidence = highest + temperature * np.log(total / (n_rotations * n_shifts))
    return ExpectedSlices(
        numerator.view(np.complex64), denominator, products.pairs.ravel()[place], shift, evidence
    )
