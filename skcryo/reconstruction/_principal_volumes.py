"""Principal volumes: probabilistic principal component analysis of what varies between particles of known pose."""

import warnings
from dataclasses import dataclass

import joblib
import numpy as np
import scipy.fft
from scipy.ndimage import gaussian_filter
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._gridding import OVERSAMPLING, deconvolution, kernel_transform
from ..projection import VolumeProjector
from ._ab_initio_start import signal_power
from ._accumulator import _NORM, FourierAccumulator, _half_spectrum, spherical_mask

__all__ = ["PrincipalVolumes", "coordinates", "principal_volumes"]

# Images in a task: fixed, so that results do not depend on the number of threads.
_BLOCK = 200
_CHUNK = 1000
_FIRST_STEPS, _STEPS = 12, 6  # of conjugate gradients
_LOCAL_WIDTH = 2.0  # voxels of the small box: about the resolution
_LEAST_WEIGHT = 0.1


@dataclass
class PrincipalVolumes:
    """Mean and principal volumes, and where each image lies among them.

    Attributes
    ----------
    mean : ndarray of shape (box, box, box), float32
    components : ndarray of shape (n_components, box, box, box), float32
        Scaled for coordinates of prior variance one; by falling power, uncorrelated in the images, the strongest voxel
        of each positive.
    coordinates : ndarray of shape (n_images, n_components), float64
        Mean of each image's posterior under the prior N(0, 1).
    covariance : ndarray of shape (n_images, n_components, n_components), float64
        Of the posterior.
    variances : ndarray of shape (n_components,), float64
        Power of each component in the images over the power of the mean.
    log_likelihood : list of float
        Log-likelihood of an image (mean over images, without terms that no volume changes) plus that of the volumes
        under their prior, after each update. It rises but where the local weights are renewed.
    weight : ndarray of shape (box, box, box), float32
        Where the components may be large: see Notes of :func:`principal_volumes`.
    n_iter : int
    converged : bool
    band, mask_radius, contrast_std : float
        Cycles per box, pixels of `mean`, and what the contrasts may be off by.
    """

    mean: np.ndarray
    components: np.ndarray
    coordinates: np.ndarray
    covariance: np.ndarray
    variances: np.ndarray
    log_likelihood: list
    weight: np.ndarray
    n_iter: int
    converged: bool
    band: float
    mask_radius: float
    contrast_std: float

    def volume(self, z):
        """The volume at coordinates z of shape (n_components,)."""
        return self.mean + np.tensordot(np.asarray(z, dtype=np.float32), self.components, axes=1)


class _Data:
    """What the likelihood needs of the images: spectra moved to the centre times filter, and filter squared.

    Attributes
    ----------
    views : list of (rotations, values, squares)
        One, or two of pairs: (n, 3, 3) float64, (n, n_points) complex64 and float32.
    power : ndarray of shape (n,)
    """

    def __init__(self, images, rotations, shifts, contrast, band):
        n, n_points = len(images), images.n_points(band)
        self.points = images.points[:n_points]
        self.power = np.zeros(n)
        contrast = np.ones(n) if contrast is None else np.asarray(contrast)
        self.views = []
        for view, turned, own_shifts in images.views(np.asarray(rotations, dtype=np.float64), shifts):
            products = np.empty((n, n_points), dtype=np.complex64)
            squares = np.empty((n, n_points), dtype=np.float32)
            for start in range(0, n, _CHUNK):
                where = slice(start, min(start + _CHUNK, n))
                part = view.take(where)
                filters = part.filters[:, :n_points] * contrast[where, None].astype(np.float32)
                values = part.values[:, :n_points]
                self.power[where] += np.square(np.abs(values)).sum(axis=1, dtype=np.float64)
                products[where] = values * part.centred_phases(own_shifts[where], n_points) * filters
                squares[where] = np.square(filters)
            self.views.append((np.ascontiguousarray(turned), products, squares))

    def __len__(self):
        return len(self.power)

    def moments(self, projectors, rows):
        """``2 Re <slice_j, image>`` and ``2 Re <slice_j, slice_l>`` of some images, through their filters."""
        cross, gram = 0.0, 0.0
        for rotations, values, squares in self.views:
            slices = np.stack([p.slices(rotations[rows], self.points) for p in projectors], axis=1)
            # Re <a, b> is the product of the pairs of real numbers
            pairs = slices.view(np.float32)
            weighted = pairs * np.repeat(squares[rows], 2, axis=1)[:, None]
            cross = cross + 2 * (pairs @ values[rows].view(np.float32)[:, :, None])[..., 0].astype(np.float64)
            gram = gram + 2 * (weighted @ pairs.swapaxes(1, 2)).astype(np.float64)
        return cross, 0.5 * (gram + gram.swapaxes(1, 2))


# ------------------------------------------------------------------------------------------------- latent variables
def _products(data, volumes, n_jobs):
    """``2 Re <slice_j, image>`` and ``2 Re <slice_j, slice_l>`` of all images, through their filters."""
    projectors = [VolumeProjector(volume) for volume in volumes]
    n, size = len(data), len(volumes)
    cross, gram = np.empty((n, size)), np.empty((n, size, size))

    def block(where):
        cross[where], gram[where] = data.moments(projectors, where)

    joblib.Parallel(n_jobs=n_jobs, require="sharedmem")(
        joblib.delayed(block)(slice(i, min(i + _BLOCK, n))) for i in range(0, n, _BLOCK)
    )
    return cross, gram


def _posterior(power, cross, gram, contrast_std):
    """Posterior of ``(contrast error, z)`` in closed form, and each image's log-likelihood.

    Returns
    -------
    mean : ndarray of shape (n, 1 + q)
        Contrast over the assumed one first, then z.
    covariance : ndarray of shape (n, 1 + q, 1 + q)
    log_likelihood : ndarray of shape (n,)
    """
    n, size = cross.shape
    residual = power - cross[:, 0] + 0.5 * gram[:, 0, 0]
    first = 0 if contrast_std > 0 else 1
    slope = (cross - gram[:, :, 0])[:, first:]
    hessian = gram[:, first:, first:].copy()
    diagonal = np.arange(size - first)
    prior = np.ones(size - first)
    if first == 0:
        prior[0] = 1 / contrast_std**2
    hessian[:, diagonal, diagonal] += prior
    inverse = np.linalg.inv(hessian)
    mean, covariance = np.zeros((n, size)), np.zeros((n, size, size))
    mean[:, first:] = (inverse @ slope[:, :, None])[..., 0]
    covariance[:, first:, first:] = inverse
    log_likelihood = -residual + 0.5 * (slope * mean[:, first:]).sum(axis=1)
    log_likelihood += 0.5 * (np.log(prior).sum() - np.linalg.slogdet(hessian)[1])
    mean[:, 0] += 1
    return mean, covariance, log_likelihood


# ----------------------------------------------------------------------------------------------------------- volumes
class _NormalEquations:
    """Regularised least squares for several volumes that share the images, each ``mask_j * U_j``.

    The expected data term is a quadratic form: for volumes j and l a convolution, with the transform of the
    denominator with weights ``<z_j z_l>`` as kernel. All are solved together by conjugate gradients, preconditioned
    by dividing each volume by its own density. The prior is that of ``U_j``: where a mask is small, so is the volume.
    """

    def __init__(self, data, first, second, box, priors, masks, n_jobs):
        size = first.shape[1]
        self.box, self.masks = box, masks
        M = OVERSAMPLING * box
        place = (np.arange(box) - box // 2) % M
        square = np.minimum(np.arange(M), M - np.arange(M)).astype(np.float64) ** 2
        shell = np.sqrt(square[:, None, None] + square[:, None] + square[: box + 1]) / OVERSAMPLING
        tiny = np.finfo(np.float32).tiny
        self.right = np.empty((size, box, box, box), dtype=np.float32)
        self.multipliers = np.empty((size, size, M, M, box + 1), dtype=np.float32)
        self.inverse = np.empty((size, M, M, box + 1), dtype=np.float32)
        self.strength = np.empty_like(self.inverse)
        factors = deconvolution(box).astype(np.float32)
        for j in range(size):
            for k in range(j, size):
                sums = FourierAccumulator(box)
                _insert(sums, data, first[:, k] if j == 0 else None, second[:, j, k], n_jobs)
                half, self.multipliers[j, k] = _convolution(sums)
                self.multipliers[k, j] = self.multipliers[j, k]
                if j == 0:
                    right = scipy.fft.irfftn(_half_spectrum(sums.numerator, box), s=(M, M, M), norm="forward")
                    right = right[np.ix_(place, place, place)]
                    self.right[k] = right * factors[:, None, None] * factors[:, None] * factors * masks[k]
                if j == k:
                    strength = box**3 * np.interp(shell, np.arange(len(priors[j])), priors[j])
                    self.strength[j] = strength
                    self.inverse[j] = 1 / np.maximum(half * np.float32(box**3 / _NORM) + strength, tiny)

    def _transform(self, volumes):
        M = OVERSAMPLING * self.box
        spectra = scipy.fft.rfft(volumes, n=M, axis=3)
        for axis in (2, 1):
            spectra = scipy.fft.fft(spectra, n=M, axis=axis, overwrite_x=True)
        return spectra

    def _back(self, spectra):
        box = self.box
        spectra = scipy.fft.ifft(spectra, axis=1, overwrite_x=True)[:, :box]
        spectra = scipy.fft.ifft(spectra, axis=2)[:, :, :box]
        return scipy.fft.irfft(spectra, n=OVERSAMPLING * box, axis=3)[..., :box]

    def apply(self, volumes):
        """The quadratic form's matrix times U."""
        spectra = self._transform(volumes * self.masks)
        out = np.empty_like(spectra)
        for j, row in enumerate(self.multipliers):
            out[j] = row[0] * spectra[0]
            for k in range(1, len(row)):
                out[j] += row[k] * spectra[k]
        return self._back(out) * self.masks + self._back(self._transform(volumes) * self.strength)

    def penalty(self, volumes):
        """What the prior of U takes from the log-likelihood."""
        return 0.5 * float(np.vdot(volumes, self._back(self._transform(volumes) * self.strength)))

    def voxel_variance(self):
        """Posterior variance of a voxel of each U, about: the mean over voxels, as if density were all that counts."""
        inner = self.inverse[..., 1 : self.box].sum(axis=(1, 2, 3), dtype=np.float64)
        edges = self.inverse[..., :: self.box].sum(axis=(1, 2, 3), dtype=np.float64)
        return (2 * inner + edges) / (OVERSAMPLING * self.box) ** 3

    def solve(self, volumes, n_steps):
        """Conjugate gradients from U = `volumes`."""
        residual = self.right - self.apply(volumes)
        z = self._back(self._transform(residual) * self.inverse)
        direction, power = z.copy(), float(np.vdot(residual, z))
        for _ in range(n_steps):
            image = self.apply(direction)
            curvature = float(np.vdot(direction, image))
            if not curvature > 0 or not power > 0:
                break
            step = np.float32(power / curvature)
            volumes = volumes + step * direction
            residual = residual - step * image
            z = self._back(self._transform(residual) * self.inverse)
            previous, power = power, float(np.vdot(residual, z))
            direction = z + np.float32(power / previous) * direction
        return volumes


def _insert(sums, data, first, second, n_jobs):
    """Images with weights `first` (None: none) and filters squared with weights `second`, in fixed chunks."""
    for rotations, values, squares in data.views:
        for start in range(0, len(data), _CHUNK):
            where = slice(start, min(start + _CHUNK, len(data)))
            weighted = squares[where] * second[where, None].astype(np.float32)
            if first is None:
                told = np.zeros(weighted.shape, dtype=np.complex64)
            else:
                told = values[where] * first[where, None].astype(np.float32)
            sums.add(told, weighted, rotations[where], data.points, n_jobs=n_jobs)


def _convolution(sums):
    """Half the denominator, and the multiplier of the convolution that it stands for."""
    L = sums.L
    M = OVERSAMPLING * L
    half = _half_spectrum(sums.denominator, L)
    response = scipy.fft.irfftn(half, s=(M, M, M), norm="forward")
    distance = np.minimum(np.arange(M), M - np.arange(M))
    factors = (1 / kernel_transform(np.minimum(distance, 0.99 * L) / M)).astype(np.float32)
    response *= factors[:, None, None]
    response *= factors[:, None]
    response *= factors
    response[L] = response[:, L] = response[:, :, L] = 0  # a distance that two voxels cannot have
    return half, scipy.fft.rfftn(response, overwrite_x=True).real


# --------------------------------------------------------------------------------------------------------- the model
def principal_volumes(
    images, rotations, shifts, contrast=None, *, n_components=1, band=12.0, mask_radius, power=None, share=0.02,
    contrast_std=0.05, n_local=2, random_state=None, max_iter=50, tol=2e-3, n_jobs=1,
):
    """Fit ``image_i = contrast_i CTF_i slice_i(V_0 + sum_j z_ij V_j) + noise`` by expectation-maximisation.

    Parameters
    ----------
    images : FourierImages
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
        Poses, held fixed.
    contrast : ndarray of shape (n,), default=None
    n_components : int, default=1
    band : float, default=12
        Highest frequency used, in cycles per box. The parts of a molecule that move are large: what lies beyond
        tells little about z and takes its time.
    mask_radius : float
        Pixels of the images; of a soft ball outside which the volumes are zero.
    power : ndarray of shape (n_rings,), default=None
        Signal power by ring, the prior of the mean; None: as the images have it.
    share : float, default=0.02
        Power of a component over that of the mean in the components' prior.
    contrast_std : float, default=0.05
        What the contrasts may be off by. Without it differences of contrast are a component.
    n_local : int, default=2
        How often the local weights of the components are renewed; 0: they are one everywhere.
    random_state : int, RandomState instance or None, default=None
        The first coordinates are drawn from it.
    max_iter : int, default=50
        In all.
    tol : float, default=2e-3
        Ends when the log-likelihood rose by less than this share of its whole rise (at a plateau, from which EM
        starts, both are small), or by less than a twentieth of it for each image.
    n_jobs : int, default=1
        Threads; the result does not depend on it.

    Returns
    -------
    PrincipalVolumes
        With volumes in a box of ``2 (band + 2)`` voxels, whose frequencies are the images'.

    Notes
    -----
    The posterior of z is Gaussian and in closed form, that of a joint error of the contrast beside it. All volumes
    then minimise the expected squared residual plus the prior together; its steps of conjugate gradients from the
    last volumes never raise it, so the log-likelihood rises. The
    likelihood of this model has no local maxima but the best, up to what regularisation and missing views do, so one
    start will do.

    What varies is seldom the whole molecule. Once the components have converged, their power, smoothed over two
    voxels, is compared with a voxel's posterior variance: ``w = s / (s + variance)``, at least 0.1, s what there is
    beyond the variance; the components are then sought as w times a volume of the same prior. It keeps the noise
    of all that is still out of the coordinates: of the images whose state the true volumes tell and a plain component
    does not, most are found.

    References
    ----------
    Tipping, Bishop, "Probabilistic principal component analysis", J. R. Stat. Soc. B 61 (1999); Tagare, Kucukelbir,
    Sigworth, Wang, Rao, "Directly reconstructing principal components of heterogeneous particles from cryo-EM
    images", J. Struct. Biol. 191 (2015).
    """
    n, size = len(images), n_components + 1
    if n_components < 1:
        raise ValueError(f"n_components is {n_components}; at least 1 is wanted")
    if n <= n_components:
        raise ValueError(f"images has {n} images; more than n_components={n_components} are wanted")
    box = 2 * (int(np.ceil(band)) + 2)
    mask = spherical_mask(box, float(mask_radius * box / images.L))
    power = signal_power(images) if power is None else power
    spectrum = np.interp(np.arange(box // 2 + 1), np.arange(len(power)), power)
    priors = [1 / spectrum] + [1 / (share * spectrum)] * n_components
    data = _Data(images, rotations, shifts, contrast, band)
    first = np.ones((n, size))
    first[:, 1:] = check_random_state(random_state).standard_normal((n, n_components))
    spread = np.zeros((n, size, size))
    volumes = np.zeros((size, box, box, box), dtype=np.float32)  # before the masks
    weight = np.ones_like(mask)
    masks = np.stack([mask] * size)
    curve, converged, stage = [], False, 0
    for iteration in range(1, max_iter + 1):
        second = first[:, :, None] * first[:, None] + spread
        equations = _NormalEquations(data, first, second, box, priors, masks, n_jobs)
        volumes = equations.solve(volumes, _STEPS if iteration > 1 else _FIRST_STEPS)
        cross, gram = _products(data, volumes * masks, n_jobs)
        first, spread, likelihood = _posterior(data.power, cross, gram, contrast_std)
        curve.append(float((likelihood.sum() - equations.penalty(volumes)) / n))
        rise = curve[-1] - curve[max(len(curve) - 2, 0)]
        if len(curve) - stage > 1 and rise < tol * max(curve[-1] - curve[0], 0.05):
            if n_local == 0:
                converged = True
                break
            n_local, stage = n_local - 1, len(curve)
            old = masks[1:].copy()
            weight = _local_weight(volumes[1:] * old, equations.voxel_variance()[1:].sum())
            masks[1:] = mask * weight
            volumes[1:] *= np.divide(old, masks[1:], out=np.zeros_like(old), where=masks[1:] > 0)
    if not converged:
        warnings.warn(
            f"principal_volumes did not converge in max_iter={max_iter} iterations: the log-likelihood of an image "
            f"last rose by {rise:.2g}; it was to be less than tol={tol:.2g} of its whole rise",
            ConvergenceWarning,
            stacklevel=2,
        )
    volumes = volumes * masks
    turn = _principal_axes(gram, volumes)
    components = np.tensordot(turn.T.astype(np.float32), volumes[1:], axes=1)
    rotated = turn.T @ gram[:, 1:, 1:].mean(axis=0) @ turn
    return PrincipalVolumes(
        mean=volumes[0],
        components=components,
        coordinates=first[:, 1:] @ turn,
        covariance=turn.T @ spread[:, 1:, 1:] @ turn,
        variances=np.diag(rotated) / gram[:, 0, 0].mean(),
        log_likelihood=curve,
        weight=weight,
        n_iter=iteration,
        converged=converged,
        band=float(band),
        mask_radius=float(mask_radius * box / images.L),
        contrast_std=float(contrast_std),
    )


def _local_weight(components, variance):
    """Share of signal in the components' power about each voxel, between 0.1 and 1."""
    power = gaussian_filter(np.square(components).sum(axis=0), _LOCAL_WIDTH)
    signal = np.maximum(power - variance, 0)
    return np.maximum(signal / (signal + variance), _LEAST_WEIGHT).astype(np.float32)


def _principal_axes(gram, volumes):
    """Rotation of z to components uncorrelated in the images, strongest first, the strongest voxel positive."""
    values, vectors = np.linalg.eigh(gram[:, 1:, 1:].mean(axis=0))
    turn = vectors[:, np.argsort(-values, kind="stable")]
    turned = np.tensordot(turn.T, volumes[1:], axes=1).reshape(turn.shape[1], -1)
    strongest = np.abs(turned).argmax(axis=1)
    return turn * np.where(turned[np.arange(len(turned)), strongest] < 0, -1.0, 1.0)


def coordinates(images, rotations, shifts, contrast, model, *, n_jobs=1):
    """Coordinates of images on principal volumes.

    Parameters
    ----------
    images : FourierImages
        Of the same box and units as those of the fit.
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
    contrast : ndarray of shape (n,) or None
    model : PrincipalVolumes
    n_jobs : int, default=1

    Returns
    -------
    mean : ndarray of shape (n, n_components), float64
    covariance : ndarray of shape (n, n_components, n_components), float64
        Of the posterior under the prior N(0, 1). An image's does not depend on the others.
    """
    data = _Data(images, rotations, shifts, contrast, model.band)
    cross, gram = _products(data, [model.mean, *model.components], n_jobs)
    first, spread, _ = _posterior(data.power, cross, gram, model.contrast_std)
    return first[:, 1:], spread[:, 1:, 1:]
