"""What images say before they are classified: mean, noise by Fourier ring, and the components that stand out of it."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

from ._sml_coordinates import PixelCoordinates
from ._sml_data import ring_sums

__all__ = ["SignalSpace", "find_signal_space"]

_RIDGE = 1e-3  # of the mean CTF^2, against its zeros
_MODES = 1e-6  # of the squares of all CTFs, root mean square, that their modes may leave
_DENSE = 600  # coordinates up to which all eigenvectors are computed
_ROUNDS = 3  # of noise and components; the first of the whole box, the others of the particle's disc
_FIRST_RINGS, _REACH = 16, 0.8  # in which signal is sought first, and how far into them it may reach
_WITHIN = 0.99  # of what varies, within the disc
_INSIDE = 0.5  # of its power, that a function of the disc has there
_DETECTED = 1.5  # standard deviations above what noise does, on average over rings
_ALIKE = 1e-12  # of all power
_LEAST_NOISE = 1e-3  # of all power: images without noise must not divide by zero


@dataclass
class SignalSpace:
    """Mean, noise and components of CTF-free images, in coordinates.

    Attributes
    ----------
    mean : ndarray of shape (n_coordinates,)
    noise : ndarray of shape (n_coordinates,)
        Variance of the noise.
    components : ndarray of shape (n_coordinates, n_components)
        Of coordinates divided by the noise's standard deviation. Multiplied by the root mean square CTF they are
        orthonormal; without CTFs they are so themselves.
    variances : ndarray of shape (n_components,)
        Of the images' coefficients of the components, descending.
    ring_variances : ndarray of shape (n_rings,)
        Mean variance of the images in a coordinate of each ring, in units of the noise.
    n_significant : int
        Components that stand out of the noise.
    ctf_modes : ndarray of shape (n_groups, n_modes)
        Orthonormal; the squares of the images' CTFs lie in their span. Of CTFs that differ in defocus alone it takes
        some twenty, of images that share one CTF a single one.
    radius : float or None
        Of the disc that components lie in, in pixels; None of rows that are no images.
    n_kept : int
        Coordinates up to the last ring that shows signal.
    """

    mean: np.ndarray
    noise: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    ring_variances: np.ndarray
    n_significant: int
    ctf_modes: np.ndarray
    radius: float | None
    n_kept: int


def find_signal_space(data, n_components, radius=None):
    """Principal components of CTF-free, noise-free images, and the noise, from two passes over the images.

    The covariance is that which best predicts the second moments of the images through their CTFs: with c the CTF
    and y an image minus c times the mean, ``sum (c y)(c y)^T - sigma^2 diag(sum c^2)`` divided, element by element, by
    ``sum c^2 c^2T``. Noise by ring is what the components leave of the images' power; both are found in turn.

    Parameters
    ----------
    data : ParticleCoordinates
    n_components : int
        At most.
    radius : float, default=None
        Pixels from the centre within which what varies lies. None: found from the images.

    Returns
    -------
    SignalSpace

    Raises
    ------
    ValueError
        If the images are all alike.

    Notes
    -----
    Where CTFs are small the covariance is mostly noise. Components are those of the covariance as it is seen,
    multiplied by the root mean square CTF on both sides, in which noise is even: what matters is what images can show.

    Components end at the last ring whose covariance with all rings within it exceeds that of noise: all further ones
    would only add noise. Of a ribosome of 65 px that varies to 14 cycles across the box, components of the whole band
    gave half as pure classes (share of pairs within 15 degrees, with CTFs, .37 instead of .59).

    What varies is confined to a disc: components of the whole box, found first, say where it is (99 % of what they have
    above their level in the corners of the box, and half a period of the finest detail more), and the final ones are
    sought among functions of that disc alone. Of a particle of 25 pixels in a box of 65 these are half as many, which
    makes components as good as of twice as many images.

    Variances of a covariance from finitely many images are too large by what noise adds; this is taken off as for
    spiked covariances in white noise (Baik, Silverstein 2006). What lies within noise keeps a quarter of the least
    variance that would stand out.
    """
    coordinates, total = data.coordinates, data.weights.sum()
    filtered, squares, power = _first_moments(data)
    spread = squares[coordinates.groups]
    mean = filtered / (spread + _RIDGE * spread.mean())
    exact = filtered**2 / np.where(spread > 0, spread, 1)
    if (power - ring_sums(exact, coordinates)).sum() <= _ALIKE * power.sum():
        raise ValueError(f"the n_samples={len(data)} images are all alike: there is nothing to classify")
    power = power - ring_sums(mean * (2 * filtered - mean * spread), coordinates)
    power = np.maximum(power, 1e-6 * power.max())
    overlap = _overlap(data)
    modes = _leading_modes(overlap)
    overlap += _RIDGE * np.diag(overlap).mean()
    noise = power / (total * coordinates.ring_sizes)
    seen = np.sqrt((spread + _RIDGE * spread.mean()) / total)
    moments = _second_moments(data, mean, noise, overlap * ((data.weights**2).sum() / total))
    n_kept = len(moments)
    kept, frame, functions = coordinates.groups[:n_kept], None, None
    scale = np.outer(seen[:n_kept], seen[:n_kept]) / overlap[np.ix_(kept, kept)]
    for _ in range(_ROUNDS):
        sigma = np.sqrt(noise)[coordinates.rings]
        covariance = moments / np.outer(sigma[:n_kept], sigma[:n_kept])
        covariance[np.diag_indices_from(covariance)] -= spread[:n_kept]
        covariance *= scale
        if frame is not None:
            frame = np.linalg.qr(functions * (seen / sigma)[:n_kept, None])[0]
            covariance = frame.T @ covariance @ frame
        values, vectors = _largest(covariance, min(n_components, len(covariance)))
        variances, n_significant = _shrunk(values, len(covariance), total)
        components = np.zeros((coordinates.n_coordinates, len(values)))
        components[:n_kept] = vectors if frame is None else frame @ vectors
        components *= (sigma / seen)[:, None]
        left = power - ring_sums(components**2 @ variances * spread, coordinates)
        noise = np.maximum(left, _LEAST_NOISE * power) / (total * coordinates.ring_sizes)
        if frame is None and not isinstance(coordinates, PixelCoordinates):
            if radius is None:
                radius = _particle_radius(components * sigma[:, None], variances, coordinates, n_kept)
            shares, functions = eigh(coordinates.disc_overlaps(min(radius, coordinates.L), n_kept))
            functions = frame = functions[:, shares > min(_INSIDE, shares[-1])]
    components /= np.sqrt(noise)[coordinates.rings, None]
    ring_variances = ring_sums(components**2 @ variances, coordinates) / coordinates.ring_sizes
    noise = noise[coordinates.rings]
    return SignalSpace(mean, noise, components, variances, ring_variances, n_significant, modes, radius, n_kept)


def _first_moments(data):
    coordinates = data.coordinates
    filtered, squares = np.zeros(coordinates.n_coordinates), np.zeros(coordinates.n_groups)
    power = np.zeros(coordinates.n_rings)
    for where, y, factors in data.chunks():
        w = data.weights[where]
        weighted = factors * w[:, None] if len(factors) > 1 else factors
        if len(factors) > 1:
            filtered += np.einsum("ij,ij->j", weighted[:, coordinates.groups], y)
            squares += np.einsum("ij,ij->j", weighted, factors)
        else:
            filtered += (w @ y) * factors[0, coordinates.groups]
            squares += w.sum() * factors[0] ** 2
        power += ring_sums(w @ (y.astype(np.float64) ** 2), coordinates)
    return filtered, squares, power


def _overlap(data):
    """sum w c^2 c^2T by group, in double precision: what rounding leaves would pass for modes."""
    overlap = np.zeros((data.coordinates.n_groups,) * 2)
    for where, factors in data.ctf_chunks():
        squares = factors.astype(np.float64) ** 2
        squares *= np.sqrt(data.weights[where] if len(factors) > 1 else data.weights[where].sum(keepdims=True))[:, None]
        overlap += squares.T @ squares
    return overlap


def _second_moments(data, mean, noise, overlap):
    """sum w (c y)(c y)^T of y = Y - c mean, of the coordinates up to the last ring that shows signal.

    They are sought within 16 rings, and within twice as many while signal reaches far into those.
    """
    coordinates, n_rings = data.coordinates, _FIRST_RINGS
    while True:
        n = int(np.count_nonzero(coordinates.rings < n_rings))
        groups = coordinates.groups[:n]
        moments, level = np.zeros((n, n)), mean[:n].astype(data.dtype)
        for where, y, factors in data.chunks():
            c = np.take(factors, groups, axis=1)
            roots = np.sqrt(data.weights[where])[:, None].astype(data.dtype)
            y = (y[:, :n] - c * level) * (c * roots)
            moments += y.T @ y
        n_kept = _correlated(moments, noise, overlap, coordinates)
        if n == coordinates.n_coordinates or coordinates.rings[n_kept - 1] < _REACH * n_rings:
            return moments[:n_kept, :n_kept]
        n_rings *= 2


def _leading_modes(overlap):
    """Eigenvectors of sum w c^2 c^2T that leave next to nothing of the squares of CTFs, the largest first."""
    values, vectors = np.linalg.eigh(overlap)
    left = np.cumsum(values.clip(0))
    start = np.searchsorted(left, _MODES**2 * left[-1], side="right")
    return vectors[:, start:][:, ::-1]


def _correlated(moments, noise, overlap, coordinates):
    """Coordinates up to the last ring that varies together with what lies within it, more than noise would.

    What rings exceed noise by is summed up, less 1.5 standard deviations a ring; the sum is highest at the last ring.
    If coordinate k is noise of variance sigma^2 alone, the sum over images of c_j y_j c_k y_k has the variance
    ``sigma_j^2 sigma_k^2 sum c_j^2 c_k^2`` (`overlap`, times the mean weight of images that have weights). Of its
    squares over this, summed over the m coordinates j within and the n of a ring, the mean is ``m n`` and the variance
    ``2 n`` times the squared Frobenius norm of the correlations among the m. All rings beyond would add noise to the
    components and nothing else.
    """
    groups, rings = coordinates.groups[: len(moments)], coordinates.rings[: len(moments)]
    sigma = np.sqrt(noise[rings])
    squares = moments**2 / (overlap[np.ix_(groups, groups)] * np.outer(sigma, sigma) ** 2)
    lengths = np.sqrt(np.diag(squares))
    last, norm, evidence, highest = 0, 0.0, 0.0, 0.0
    for ring in range(rings[-1] + 1):
        rows = np.flatnonzero(rings == ring)
        inner = squares[rows[0] : rows[-1] + 1, : rows[0]]
        if inner.size:
            evidence += (inner.sum() - inner.size) / np.sqrt(2 * len(rows) * norm) - _DETECTED
        if evidence > highest:
            last, highest = ring, evidence
        among = squares[np.ix_(rows, rows)] / np.outer(lengths[rows], lengths[rows])
        norm += among.sum() + 2 * (inner / lengths[rows, None] / lengths[: rows[0]]).sum()
    return int(np.count_nonzero(rings <= last))


def _particle_radius(components, variances, coordinates, n_kept):
    """Radius in pixels that holds nearly all that varies above what noise brings to the corners of the box."""
    L = coordinates.L
    power = (coordinates.synthesize(components.T) ** 2 * variances[:, None, None]).sum(axis=0).ravel()
    radii = np.hypot(*(np.indices((L, L)) - L // 2)).ravel()
    inscribed = radii <= L / 2
    excess = (power - power[~inscribed].mean())[inscribed]
    order = np.argsort(radii[inscribed], kind="stable")
    held = np.cumsum(excess[order])
    if held[-1] <= 0:
        return L / 2
    found = radii[inscribed][order][np.argmax(held >= _WITHIN * held[-1])]
    return float(min(found + L / (2 * (coordinates.rings[n_kept - 1] + 1)), L / 2))


def _largest(covariance, n):
    """Largest eigenvalues, descending, and their eigenvectors, of which the largest element is positive."""
    if len(covariance) <= _DENSE or n > len(covariance) // 4:
        values, vectors = eigh(covariance, subset_by_index=(len(covariance) - n, len(covariance) - 1))
    else:
        start = np.random.RandomState(0).standard_normal(len(covariance))
        values, vectors = eigsh(covariance, k=n, which="LA", v0=start, tol=1e-6)
    order = np.argsort(-values, kind="stable")
    order = order[: max(np.count_nonzero(values > 0), 1)]  # the others are noise of which too much was taken off
    values, vectors = values[order], vectors[:, order]
    return values, vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))])


def _shrunk(values, n_coordinates, n_images):
    """Variances of the signal from eigenvalues of a covariance with white noise of variance 1 taken off.

    And how many of them noise alone would not reach in 99 of 100 cases (Johnstone 2001, Tracy-Widom law).
    """
    ratio = n_coordinates / n_images
    inside = (values - ratio) ** 2 - 4 * ratio
    above = (values > ratio) & (inside > 0)
    signal = np.where(above, (values - ratio + np.sqrt(np.maximum(inside, 0))) / 2, 0)
    roots = np.sqrt(n_images) + np.sqrt(n_coordinates)
    width = roots / n_images * (1 / np.sqrt(n_images) + 1 / np.sqrt(n_coordinates)) ** (1 / 3)
    n_significant = int(np.count_nonzero(1 + values > roots**2 / n_images + 2 * width))
    return np.maximum(signal, np.sqrt(ratio) / 4), n_significant
