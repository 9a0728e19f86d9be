"""Discrete states: a mixture on the coordinates of principal volumes, and a volume for each class."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from ..alignment import FourierImages, refine_poses
from ..projection import VolumeProjector
from ._ab_initio_refine import add_images
from ._ab_initio_start import signal_power
from ._accumulator import FourierAccumulator

__all__ = ["LatentMixture", "class_volumes", "classify", "refine_classes", "stream_class_volumes"]

# Power of a class's difference from the consensus over that of the molecule, in its prior
_SHARE = 0.3
_CHUNK = 1000


@dataclass
class LatentMixture:
    """Gaussian mixture of the coordinates of images, their errors taken out.

    Attributes
    ----------
    weights : ndarray of shape (n_classes,)
        Shares, falling.
    means : ndarray of shape (n_classes, q)
    covariance : ndarray of shape (q, q)
        Of every class, without the errors of the coordinates.
    log_likelihood : float
        Mean over images.
    n_iter : int
    converged : bool
    """

    weights: np.ndarray
    means: np.ndarray
    covariance: np.ndarray
    log_likelihood: float
    n_iter: int
    converged: bool

    def predict_proba(self, coordinates, covariance):
        """Responsibilities of the classes for images, from :func:`coordinates`.

        Parameters
        ----------
        coordinates : ndarray of shape (n, q)
        covariance : ndarray of shape (n, q, q)

        Returns
        -------
        ndarray of shape (n, n_classes)
        """
        slope, precision = _evidence(coordinates, covariance)
        return _expect(slope, precision, self.weights, self.means, self.covariance)[0]


def classify(coordinates, covariance, n_classes, *, n_init=10, random_state=None, max_iter=500, tol=1e-5):
    """Divide images by their coordinates on principal volumes.

    Parameters
    ----------
    coordinates : ndarray of shape (n, q)
        Posterior means under the prior N(0, 1).
    covariance : ndarray of shape (n, q, q)
        Of the posterior: an image that shows little of what varies says little.
    n_classes : int
    n_init : int, default=10
        Starts; the one of the highest likelihood is kept.
    random_state : int, RandomState instance or None, default=None
    max_iter : int, default=500
    tol : float, default=1e-5
        Ends when the mean log-likelihood of an image rose by less.

    Returns
    -------
    labels : ndarray of shape (n,), int64
        By falling share.
    responsibilities : ndarray of shape (n, n_classes), float64
    mixture : LatentMixture

    Notes
    -----
    Each image's likelihood is a Gaussian in z, which is what is left of its posterior without the prior. The mixture
    is that of the true coordinates, with one covariance for all classes; its EM deconvolves them.

    References
    ----------
    Bovy, Hogg, Roweis, "Extreme deconvolution", Ann. Appl. Stat. 5 (2011).

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.reconstruction._volume_classes import classify
    >>> z = np.array([[-1.0], [0.9], [1.1], [1.0], [-1.2], [0.8]])
    >>> classify(z, np.full((6, 1, 1), 0.05), 2, random_state=0)[0].tolist()
    [1, 0, 0, 0, 1, 0]
    """
    n, q = coordinates.shape
    if not 1 <= n_classes <= n:
        raise ValueError(f"n_classes is {n_classes}; 1 to {n}, the number of images, is wanted")
    slope, precision = _evidence(coordinates, covariance)
    random = check_random_state(random_state)
    total = np.cov(coordinates.T, ddof=0).reshape(q, q)
    # Errors of the posterior mean about the prior's shrinkage
    floor = 1e-3 * np.trace(total) / q * np.eye(q) + 1e-12 * np.eye(q)
    best = None
    for _ in range(n_init if n_classes > 1 else 1):
        means = _spread_means(coordinates, n_classes, random)
        mixture = _run(slope, precision, means, total / n_classes, floor, max_iter, tol)
        if best is None or mixture.log_likelihood > best.log_likelihood + 1e-9:
            best = mixture
    order = np.argsort(-best.weights, kind="stable")
    best.weights, best.means = best.weights[order], best.means[order]
    if not best.converged:
        warnings.warn(
            f"classify did not converge in max_iter={max_iter} iterations", ConvergenceWarning, stacklevel=2
        )
    responsibilities = _expect(slope, precision, best.weights, best.means, best.covariance)[0]
    return responsibilities.argmax(axis=1), responsibilities, best


def _evidence(coordinates, covariance):
    """Each image's log-likelihood ``slope . z - z . precision z / 2``, its prior taken out."""
    inverse = np.linalg.inv(covariance)
    slope = (inverse @ coordinates[:, :, None])[..., 0]
    return slope, inverse - np.eye(coordinates.shape[1])


def _spread_means(coordinates, n_classes, random):
    """First means: images of which each next one is drawn by squared distance from those before (k-means++)."""
    chosen = [coordinates[random.randint(len(coordinates))]]
    while len(chosen) < n_classes:
        distance = np.min([np.square(coordinates - c).sum(axis=1) for c in chosen], axis=0)
        total = distance.sum()
        share = distance / total if total > 0 else None
        chosen.append(coordinates[random.choice(len(coordinates), p=share)])
    return np.array(chosen)


def _expect(slope, precision, weights, means, covariance):
    """Responsibilities, posterior moments of z within each class, log-likelihood of each image."""
    n, q = slope.shape
    prior = np.linalg.inv(covariance)
    hessian = precision + prior
    inverse = np.linalg.inv(hessian)
    constant = 0.5 * (np.linalg.slogdet(prior)[1] - np.linalg.slogdet(hessian)[1])
    pull = means @ prior
    raised = slope[:, None] + pull[None]  # (n, K, q)
    inner = np.einsum("nij,nkj->nki", inverse, raised)
    with np.errstate(divide="ignore"):
        log = np.log(weights)[None] + constant[:, None]
    log = log + 0.5 * (raised * inner).sum(axis=2) - 0.5 * (means * pull).sum(axis=1)[None]
    top = log.max(axis=1, keepdims=True)
    responsibilities = np.exp(log - top)
    total = responsibilities.sum(axis=1, keepdims=True)
    return responsibilities / total, inner, inverse, (top + np.log(total))[:, 0]


def _run(slope, precision, means, covariance, floor, max_iter, tol):
    n, n_classes = len(slope), len(means)
    weights = np.full(n_classes, 1 / n_classes)
    covariance = covariance + floor
    previous, converged = -np.inf, False
    for iteration in range(1, max_iter + 1):
        resp, inner, inverse, log = _expect(slope, precision, weights, means, covariance)
        now = float(log.mean())
        converged = now - previous < tol
        if converged or iteration == max_iter:
            break
        previous = now
        mass = resp.sum(axis=0)
        weights = mass / n
        held = mass > 1e-8 * n
        means = np.where(held[:, None], np.einsum("nk,nki->ki", resp, inner) / np.maximum(mass, 1e-300)[:, None], means)
        off = inner - means[None]
        covariance = (np.einsum("nk,nki,nkj->ij", resp, off, off) + inverse.sum(axis=0)) / n + floor
    return LatentMixture(weights, means, covariance, now, iteration, converged)


def class_volumes(
    images, rotations, shifts, contrast, responsibilities, *, band, mask_radius, box=None, power=None, n_jobs=1
):
    """A volume for each class: that of all images, and what the class adds to it.

    Parameters
    ----------
    images : FourierImages
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
    contrast : ndarray of shape (n,) or None
    responsibilities : ndarray of shape (n, n_classes)
        Rows need not sum to one: an image of weight zero counts for nothing.
    band : float
        Cycles per box.
    mask_radius : float
        Pixels of the images.
    box : int, default=None
        Box of the volumes; None: ``2 (band + 2)``, at most that of the images.
    power : ndarray of shape (n_rings,), default=None
        Signal power by ring; None: as the images have it.
    n_jobs : int, default=1
        Threads; the result does not depend on it.

    Returns
    -------
    ndarray of shape (n_classes, box, box, box), float32

    Notes
    -----
    States of one molecule are alike, so what is estimated is the difference from the consensus: it is reconstructed
    from the images minus the consensus' projections, with a Wiener filter for three tenths of the molecule's power in
    every shell, and added. All images tell of every class what they share. The power that the differences themselves
    show would filter too strongly: it falls to nothing in the shells where it is hard to see.
    """
    power = signal_power(images) if power is None else power
    box = min(2 * (int(np.ceil(band)) + 2), images.L) if box is None else box

    def chunks():
        for start in range(0, len(images), _CHUNK):
            where = slice(start, min(start + _CHUNK, len(images)))
            yield where, images.take(where)

    return stream_class_volumes(
        chunks, rotations, shifts, contrast, responsibilities, L=images.L, band=band, mask_radius=mask_radius, box=box,
        power=power, n_jobs=n_jobs,
    )


def stream_class_volumes(
    chunks, rotations, shifts, contrast, responsibilities, *, L, band, mask_radius, box, power, n_jobs=1
):
    """:func:`class_volumes` of images that are read twice, chunk by chunk.

    Parameters
    ----------
    chunks : callable
        Without arguments; returns an iterator of pairs: a slice of the images, and these as FourierImages.
    rotations, shifts, contrast, responsibilities, band, mask_radius, power, n_jobs
        As :func:`class_volumes`.
    L : int
        Box of the images.
    box : int
        Box of the volumes.

    Returns
    -------
    ndarray of shape (n_classes, box, box, box), float32
    """
    radius = mask_radius * box / L
    spectrum = np.interp(np.arange(box // 2 + 1), np.arange(len(power)), power)
    cut = min(0.5, band / box)
    contrast = np.ones(len(rotations)) if contrast is None else contrast

    def add(sums, images, where, weights):
        used = weights[where] > 0
        add_images(
            sums, images if used.all() else images.take(np.flatnonzero(used)), rotations[where][used],
            shifts[where][used], contrast=contrast[where][used], weights=weights[where][used], band=band, n_jobs=n_jobs,
        )  # fmt: skip

    def solve(sums, share):
        return sums.solve(1 / (share * spectrum), mask_radius=radius, max_frequency=cut)

    sums, all_classes = FourierAccumulator(box), responsibilities.sum(axis=1)
    for where, images in chunks():
        add(sums, images, where, all_classes)
    consensus = solve(sums, 1.0)
    projector = VolumeProjector(consensus)
    by_class = [FourierAccumulator(box) for _ in responsibilities.T]
    for where, images in chunks():
        rest = _residuals(images, projector, rotations[where], shifts[where], contrast[where], band)
        for sums, weights in zip(by_class, responsibilities.T):
            add(sums, rest, where, weights)
    return np.stack([consensus + solve(sums, _SHARE) for sums in by_class])


def _residuals(images, projector, rotations, shifts, contrast, band):
    """Images minus a volume's projections, within the band."""
    n_points = images.n_points(band)
    model = projector.slices(rotations, images.points[:n_points]) * images.filters[:, :n_points]
    model *= images.centred_phases(shifts, n_points).conj()
    model *= contrast[:, None].astype(np.float32)
    values = images.values[:, :n_points] - model
    return FourierImages(values, images.filters[:, :n_points], images.points[:n_points], images.L)


def refine_classes(
    images, rotations, shifts, contrast, responsibilities, *, pose_band, band, mask_radius, n_rounds=3, n_jobs=1
):
    """Poses refined against the volume of each image's own class, and volumes from these, in turn.

    Parameters
    ----------
    images, rotations, shifts, contrast, responsibilities, mask_radius
        As :func:`class_volumes`.
    pose_band, band : float
        Cycles per box, for the poses and for the volumes.
    n_rounds : int, default=3
    n_jobs : int, default=1

    Returns
    -------
    volumes : ndarray of shape (n_classes, box, box, box), float32
    rotations : ndarray of shape (n, 3, 3)
    shifts : ndarray of shape (n, 2)
    """
    labels = responsibilities.argmax(axis=1)
    rotations, shifts = np.array(rotations, dtype=np.float64), np.array(shifts, dtype=np.float64)
    contrast = np.ones(len(images)) if contrast is None else np.asarray(contrast)
    options = {"band": band, "mask_radius": mask_radius, "n_jobs": n_jobs}
    volumes = class_volumes(images, rotations, shifts, contrast, responsibilities, **options)
    for _ in range(n_rounds):
        for k, volume in enumerate(volumes):
            own = np.flatnonzero(labels == k)
            fit = refine_poses(
                images.take(own), VolumeProjector(volume), rotations[own], shifts[own],
                contrast=contrast[own], band=pose_band, n_jobs=n_jobs,
            )
            rotations[own], shifts[own] = fit.rotations, fit.shifts
        volumes = class_volumes(images, rotations, shifts, contrast, responsibilities, **options)
    return volumes, rotations, shifts
