"""The wavelet earth mover's distance between images, over all in-plane rotations, exactly.

The distance is a weighted l1 norm of wavelet coefficients (Shirdhonkar and Jacobs 2008; equation 8 of Rao, Moscovich
and Singer, "Wasserstein k-means for clustering tomographic projections", 2020). :class:`WaveletTransform` makes the
coefficients, :class:`EMDMatcher` finds for each image the class average, rotation and shift of least distance: the
same answer as trying them all (:func:`match_brute_force`), by bounds that leave about one term in a hundred to compute.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pywt
from scipy import fft, ndimage

from skcryo._ext import _emd
from skcryo.ctf import electron_wavelength, evaluate_ctf_radial

_LEVELS = 6
_WAVELET = "sym5"
_MEMORY = 256 * 2**20


def _aligned(shape, dtype=np.float32):
    """An uninitialised array that starts at a multiple of 64 bytes."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(n + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n].view(dtype).reshape(shape)


def disc_extent(size, radius=None):
    """For each image row, the first and one past the last pixel within `radius` of the centre ``size // 2``.

    The default radius is the largest that any rotation keeps inside the image. ``radius=np.inf`` keeps every pixel.
    """
    centre = size // 2
    if radius is None:
        radius = max(size - 1 - centre, 0)
    extent = np.zeros((size, 2), np.int32)
    offset = np.arange(size) - centre
    for i, dy in enumerate(offset):
        inside = np.flatnonzero(dy**2 + offset**2 <= radius**2) if np.isfinite(radius) else np.arange(size)
        if len(inside):
            extent[i] = inside[0], inside[-1] + 1
    return extent


def wavelet_coefficients(images, *, wavelet=_WAVELET, n_levels=_LEVELS):
    """Weighted detail coefficients by PyWavelets: the slow, obvious form of equation 8.

    Returns a list, coarsest level first, of arrays (n_images, 3, m, m); level s = 0, 1, ... counted from the coarsest
    is weighted by 2**(-2 s). The approximation band carries no weight (as in the authors' program).
    """
    images = np.asarray(images, np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Level value of")  # of coarse levels that reach beyond the border, as here
        bands = pywt.wavedec2(images, wavelet, mode="zero", level=n_levels)[1:]
    return [np.stack(band, axis=1) * 4.0**-s for s, band in enumerate(bands)]


class WaveletTransform:
    """Weighted wavelet coefficients of square images inside a disc, as rows whose l1 distance is equation 8.

    Parameters
    ----------
    size : int
        Images are ``(size, size)``.
    mask_radius : float, default=None
        Pixels farther from the centre ``size // 2`` count as zero. None: the largest disc in the image.
    wavelet, n_levels :
        The paper's: "sym5", 6.

    Attributes
    ----------
    offsets : ndarray of shape (n_levels + 1,)
        Where each level starts in a row, coarsest first. Rows are padded with zeros at every level.
    """

    def __init__(self, size, *, mask_radius=None, wavelet=_WAVELET, n_levels=_LEVELS):
        filters = pywt.Wavelet(wavelet)
        taps = filters.dec_len
        self.size = size
        self.n_levels = n_levels
        self.extent = disc_extent(size, mask_radius)
        columns = np.arange(size)
        self.mask = (columns >= self.extent[:, :1]) & (columns < self.extent[:, 1:])
        keep, offsets = [], [0]
        for reach in self._reach(taps):
            index = np.flatnonzero(reach)
            index = np.r_[index, np.full(-len(index) % _emd.ROW, -1)]
            if len(index) == 0:
                index = np.full(_emd.ROW, -1)
            keep.append(index)
            offsets.append(offsets[-1] + len(index))
        self.offsets = np.array(offsets, np.int32)
        weights = 4.0 ** -np.arange(n_levels)[::-1]
        self._plan = _emd.Plan(
            size,
            np.array(filters.dec_lo, np.float32),
            np.array(filters.dec_hi, np.float32),
            weights.astype(np.float32),
            np.concatenate(keep).astype(np.int32),
            self.offsets,
            np.ascontiguousarray(self.extent).ravel(),
        )
        self.row_length = int(self.offsets[-1])

    def _reach(self, taps):
        """Coefficients that a pixel inside the mask can reach, coarsest level first, each (3 * m * m,)."""
        inside = self.mask.astype(np.float64)
        bands = []
        for _ in range(self.n_levels):
            n = len(inside)
            half = (n + taps - 1) // 2
            matrix = np.zeros((half, n))
            for o in range(half):
                source = 2 * o + 1 - np.arange(taps)
                matrix[o, source[(source >= 0) & (source < n)]] = 1
            inside = (matrix @ inside @ matrix.T > 0).astype(np.float64)
            bands.append(np.tile(inside.ravel() > 0, 3))
        return bands[::-1]

    def transform(self, images, n_threads=1, out=None):
        """Rows (n, row_length) of images (n, size, size)."""
        images = np.ascontiguousarray(images, np.float32)
        if out is None:
            out = _aligned((len(images), self.row_length))
        self._plan.transform(images, np.arange(len(images), dtype=np.int32), out, n_threads=n_threads)
        return out

    def splines(self, images):
        """Cubic B-spline coefficients with a mirrored margin of two, (n, size + 4, size + 4)."""
        out = np.empty((len(images), self.size + 4, self.size + 4), np.float32)
        for i, image in enumerate(images):
            out[i] = np.pad(ndimage.spline_filter(image, 3, output=np.float64, mode="mirror"), 2, mode="reflect")
        return out

    def turned(self, splines, source, angles, n_threads=1):
        """Rows of single images ``source[i]`` turned by ``angles[i]`` radians."""
        rows = _aligned((len(source), self.row_length))
        angles = np.asarray(angles, np.float64)
        self._plan.transform(
            splines, np.asarray(source, np.int32), rows, np.cos(angles), np.sin(angles), n_threads=n_threads
        )
        return rows

    def rotations(self, splines, angles, n_threads=1, out=None):
        """Rows (n, n_angles, row_length) of every image turned by every angle; `out` may be larger in n."""
        angles = np.asarray(angles, np.float64)
        n, lanes = len(splines), _emd.LANES
        blocks = -(-n // lanes)
        width = self.size + 4
        packed = _aligned((blocks, width, width, lanes))
        packed[-1] = 0
        for b in range(blocks):
            part = splines[b * lanes : (b + 1) * lanes]
            packed[b, :, :, : len(part)] = part.transpose(1, 2, 0)
        if out is None:
            out = _aligned((blocks * lanes, len(angles), self.row_length))
        out = out[: blocks * lanes]
        self._plan.transform_rotations(packed, np.cos(angles), np.sin(angles), out, n_threads)
        return out[:n]

    def norms(self, rows, n_threads=1):
        """l1 norms by level (n, n_levels), coarsest first."""
        out = np.empty((len(rows), self.n_levels), np.float32)
        self._plan.norms(rows, out, n_threads)
        return out

    def paired(self, x, y, n_threads=1):
        """Distances (n,) of x[i] to y[i]."""
        out = np.empty(len(x), np.float32)
        self._plan.paired(x, y, out, n_threads)
        return out

    def all_pairs(self, x, y, n_threads=1, n_levels=None):
        """Distances (n, m) of every x to every y, over the `n_levels` coarsest levels (None: all)."""
        out = np.empty((len(x), len(y)), np.float32)
        self._plan.all_pairs(x, y, out, n_levels or self.n_levels, n_threads)
        return out


@dataclass
class Match:
    """Best class, in-plane angle (radians), shift (x, y; pixels) and distance for each image."""

    labels: np.ndarray
    angles: np.ndarray
    shifts: np.ndarray
    distances: np.ndarray
    all_distances: np.ndarray | None = None


@dataclass
class EMDFeatures:
    """What the search needs of some images: their rows, or the images where shifts make rows by the dozen."""

    images: np.ndarray | None
    rows: np.ndarray | None
    norms: np.ndarray | None
    groups: np.ndarray | None
    curves: np.ndarray | None
    n_images: int

    def __len__(self):
        return self.n_images

    @property
    def nbytes(self):
        return sum(a.nbytes for a in (self.images, self.rows, self.norms) if a is not None)


def ctf_groups(ctf, size, pixel_size, *, tolerance=0.2, frequency=0.125):
    """Images whose CTFs are so alike that one radial curve serves them all.

    Two CTFs share a group when voltage, Cs, amplitude contrast, phase shift, B-factor and scale agree and the phases
    (at `frequency` cycles a pixel) differ from the group's by at most `tolerance` radians. The groups lie on a fixed
    grid of defocus, so that the curve of an image does not depend on the other images. Astigmatism is averaged out here
    (the class averages use it in full).

    Returns
    -------
    groups : ndarray of shape (n,), int
    curves : ndarray of shape (n_groups, size // 2 + 1 shells up to the corner), float32
        Radial CTF of each group at 0, 1, 2, ... cycles a box.
    """
    names = [f for f in ctf.dtype.names if f not in ("defocus_u", "defocus_v", "defocus_angle")]
    defocus = (ctf["defocus_u"] + ctf["defocus_v"]) / 2
    step = 2 * tolerance / (np.pi * electron_wavelength(ctf["voltage"]) * (frequency / pixel_size) ** 2)
    bins = np.floor(defocus / step).astype(np.int64)
    keys = np.column_stack([bins] + [ctf[f] for f in names])
    _, first, groups = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    groups = groups.ravel()
    representative = ctf[first].copy()
    representative["defocus_u"] = representative["defocus_v"] = ((bins + 0.5) * step)[first]
    radii = np.arange(int(np.ceil(size / np.sqrt(2))) + 2) / size
    return groups, np.asarray(evaluate_ctf_radial(representative, radii, pixel_size), np.float32)


def filter_radially(images, curve):
    """Multiply the Fourier transforms of images (n, L, L) by a radial curve given at 0, 1, 2, ... cycles a box."""
    size = images.shape[-1]
    k = np.hypot(fft.fftfreq(size, 1 / size)[:, None], fft.rfftfreq(size, 1 / size)[None])
    transfer = np.interp(k, np.arange(len(curve)), curve).astype(np.float32)
    return fft.irfft2(fft.rfft2(images) * transfer, s=(size, size)).astype(np.float32)


def shift_grid(max_shift, step):
    """Whole-pixel shifts (x, y) that are multiples of `step` within `max_shift`, the nearest to zero first."""
    reach = int(np.floor(max_shift / step)) * step if max_shift > 0 else 0
    axis = np.arange(-reach, reach + 1, step) if reach else np.zeros(1, int)
    x, y = np.meshgrid(axis, axis)
    shifts = np.column_stack([x.ravel(), y.ravel()])
    shifts = shifts[(shifts**2).sum(1) <= max_shift**2 + 1e-9]
    return shifts[np.lexsort((shifts[:, 0], shifts[:, 1], (shifts**2).sum(1)))].astype(np.int64)


class EMDMatcher:
    """For each image the class average, in-plane angle and shift of least wavelet earth mover's distance.

    The search is exact. What makes it fast: last iteration's answer bounds the distance from above; distances between
    neighbouring rotated copies of one average bracket every angle between two that were computed (the distance is
    1-Lipschitz); differences of norms bound what finer levels can add; what survives is computed level by level, coarse
    to fine, and dropped as soon as the sum exceeds the bound.

    Parameters
    ----------
    size : int
    n_angles : int, default=200
        In-plane angles, equally spaced over a turn.
    max_shift : float, default=0.0
        Shifts up to this many pixels are searched jointly with class and angle.
    shift_step : int, default=None
        Spacing of the candidate shifts in whole pixels; None: one pixel up to 64 px, two above.
    mask_radius : float, default=None
    n_threads : int, default=None
        None: all cores. Results do not depend on it.
    """

    def __init__(self, size, *, n_angles=200, max_shift=0.0, shift_step=None, mask_radius=None, n_threads=None):
        self.size = size
        self.n_angles = n_angles
        self.angles = 2 * np.pi * np.arange(n_angles) / n_angles
        self.n_threads = n_threads or _emd.max_threads()
        if shift_step is None:
            shift_step = 1 if size <= 64 or max_shift < 2 else 2
        self.shift_step = shift_step
        self.shifts = shift_grid(max_shift, shift_step)
        self.wavelets = WaveletTransform(size, mask_radius=mask_radius)
        self.stride = max(s for s in range(1, 9) if n_angles % s == 0)
        self.n_coarse = 3
        self._copies = None

    def prepare(self, images, ctf=None, pixel_size=None):
        """What the search needs of images (n, size, size)."""
        return self.prepare_chunks([(slice(0, len(images)), images)], len(images), ctf, pixel_size)

    def prepare_chunks(self, chunks, n, ctf=None, pixel_size=None):
        """The same for n images that come as (slice, images)."""
        groups = curves = None
        if ctf is not None:
            groups, curves = ctf_groups(ctf, self.size, pixel_size)
        if len(self.shifts) > 1:
            pixels = np.empty((n, self.size, self.size), np.float32)
            for where, chunk in chunks:
                pixels[where] = chunk
            return EMDFeatures(pixels, None, None, groups, curves, n)
        rows = _aligned((n, self.wavelets.row_length))
        for where, chunk in chunks:
            self.wavelets.transform(chunk, self.n_threads, out=rows[where])
        return EMDFeatures(None, rows, self.wavelets.norms(rows, self.n_threads), groups, curves, n)

    def _rows(self, features, members, shift):
        """Rows and norms of images `members` (None: all), moved back by candidate `shift`."""
        if features.rows is not None:
            if members is None:
                return features.rows, features.norms
            return features.rows[members], features.norms[members]
        images = features.images if members is None else features.images[members]
        return self._shifted_rows(images, np.broadcast_to(self.shifts[shift], (len(images), 2)))

    def _shifted_rows(self, images, shifts):
        moved = np.empty_like(images)
        for value in np.unique(shifts, axis=0):
            these = (shifts == value).all(1)
            moved[these] = np.roll(images[these], (-value[1], -value[0]), axis=(1, 2))
        rows = self.wavelets.transform(moved, self.n_threads)
        return rows, self.wavelets.norms(rows, self.n_threads)

    def _parts(self, features, averages):
        """(members, averages as those images see them) for each group of CTFs."""
        if features.groups is None:
            yield None, averages
            return
        for g, curve in enumerate(features.curves):
            members = np.flatnonzero(features.groups == g)
            if len(members):
                yield members, filter_radially(averages, curve)

    def match(self, features, averages, *, bias=None, previous=None, return_all=False):
        """Exact best candidate for each image.

        Parameters
        ----------
        features : EMDFeatures
            From :meth:`prepare`.
        averages : ndarray of shape (k, size, size)
        bias : ndarray of shape (k,), default=None
            Added to the distances where classes compete; not part of the distances returned.
        previous : tuple of (labels, angles, shifts), default=None
            Class, angle (radians) and shift of each image to start from: speeds the search up, does not change its
            result.
        return_all : bool, default=False
            Also the least distance to every class, (n, k).

        Returns
        -------
        Match
        """
        averages = np.ascontiguousarray(averages, np.float32)
        n, k = len(features), len(averages)
        bias = np.zeros(k, np.float32) if bias is None else np.asarray(bias, np.float32)
        state = _State(n, k)
        distances = np.empty((n, k), np.float32) if return_all else None
        for members, seen in self._parts(features, averages):
            part = _State(n if members is None else len(members), k)
            splines = self.wavelets.splines(seen)
            start = None
            if previous is not None:
                start = [np.asarray(p) if members is None else np.asarray(p)[members] for p in previous]
            out = None if distances is None else np.full((len(part.best), k), np.inf, np.float32)
            self._search(features, members, splines, bias, start, part, out)
            state.put(members, part)
            if out is not None:
                distances[slice(None) if members is None else members] = out
        return Match(
            labels=state.labels,
            angles=self.angles[state.angles],
            shifts=self.shifts[state.shifts].astype(np.float64),
            distances=state.best - bias[state.labels] if n else state.best,
            all_distances=distances,
        )

    def _seed(self, rows, splines, bias, start, state, shifts):
        """A first candidate for each image: last iteration's, or the best of the coarse levels and angles."""
        wavelets, threads = self.wavelets, self.n_threads
        if start is None:
            labels, angles = self._coarse_best(rows, splines)
        else:
            labels = start[0].astype(np.int32)
            angles = np.rint(np.asarray(start[1]) / (2 * np.pi) * self.n_angles).astype(np.int64) % self.n_angles
        chunk = max(_MEMORY // 4 // (4 * wavelets.row_length), 64)
        order = np.argsort(labels, kind="stable")
        for i in range(0, len(order), chunk):
            index = order[i : i + chunk]
            turned = wavelets.turned(splines, labels[index], self.angles[angles[index]], threads)
            state.best[index] = wavelets.paired(np.ascontiguousarray(rows[index]), turned, threads)
        state.best += bias[labels]
        state.labels[:] = labels
        state.angles[:] = angles
        state.shifts[:] = shifts

    def _coarse_best(self, rows, splines):
        best = np.full(len(rows), np.inf, np.float32)
        labels = np.zeros(len(rows), np.int32)
        angles = np.zeros(len(rows), np.int64)
        base = self.angles[:: self.stride]
        for first in range(0, len(splines), _emd.LANES):
            copies = self.wavelets.rotations(splines[first : first + _emd.LANES], base, self.n_threads)
            for c, copy in enumerate(copies, first):
                d = self.wavelets.all_pairs(rows, copy, self.n_threads, self.n_coarse)
                j = d.argmin(1)
                value = d[np.arange(len(rows)), j]
                improved = value < best
                best[improved] = value[improved]
                labels[improved] = c
                angles[improved] = j[improved] * self.stride
        return labels, angles

    def _search(self, features, members, splines, bias, start, state, distances):
        wavelets, threads = self.wavelets, self.n_threads
        k = len(splines)
        block = max(_MEMORY // (4 * wavelets.row_length * self.n_angles) // _emd.LANES, 1) * _emd.LANES
        block = min(block, -(-k // _emd.LANES) * _emd.LANES)
        if self._copies is None or len(self._copies) < block:
            self._copies = _aligned((block, self.n_angles, wavelets.row_length))
        rows, norms = self._rows(features, members, 0)
        nearest = np.zeros(len(rows), np.int32)
        if start is not None and len(self.shifts) > 1:
            nearest = ((start[2][:, None] - self.shifts) ** 2).sum(2).argmin(1).astype(np.int32)
            images = features.images if members is None else features.images[members]
            self._seed(self._shifted_rows(images, self.shifts[nearest])[0], splines, bias, start, state, nearest)
        else:
            self._seed(rows, splines, bias, start, state, nearest)
        for first in range(0, k, block):
            turned = wavelets.rotations(splines[first : first + block], self.angles, threads, self._copies)
            centres = _emd.Centres(
                wavelets._plan, turned, bias[first : first + block], first, self.stride, self.n_coarse, threads
            )
            for s in range(len(self.shifts)):
                if s or first:
                    rows, norms = self._rows(features, members, s)
                wavelets._plan.search(
                    rows, norms, s, state.best, state.labels, state.angles, state.shifts, centres, distances, threads
                )


class _State:
    """The best candidate so far of each image."""

    def __init__(self, n, k):
        self.best = np.full(n, np.inf, np.float32)
        self.labels = np.full(n, k, np.int32)
        self.angles = np.zeros(n, np.int32)
        self.shifts = np.zeros(n, np.int32)

    def put(self, members, part):
        where = slice(None) if members is None else members
        for name in ("best", "labels", "angles", "shifts"):
            getattr(self, name)[where] = getattr(part, name)


def match_brute_force(matcher, features, averages, *, bias=None):
    """The same answer as :meth:`EMDMatcher.match`, by computing every distance: the reference."""
    averages = np.ascontiguousarray(averages, np.float32)
    n, k = len(features), len(averages)
    bias = np.zeros(k, np.float32) if bias is None else np.asarray(bias, np.float32)
    state = _State(n, k)
    distances = np.full((n, k), np.inf, np.float32)
    for members, seen in matcher._parts(features, averages):
        splines = matcher.wavelets.splines(seen)
        where = slice(None) if members is None else members
        for c in range(k):
            turned = matcher.wavelets.rotations(splines[c : c + 1], matcher.angles, matcher.n_threads)[0]
            for s in range(len(matcher.shifts)):
                rows, _ = matcher._rows(features, members, s)
                d = matcher.wavelets.all_pairs(rows, turned, matcher.n_threads)
                distances[where, c] = np.minimum(distances[where, c], d.min(1))
                angle = (d + bias[c]).argmin(1)
                value = (d + bias[c]).min(1)
                best, angles = state.best[where], state.angles[where]
                # classes come in order, so that a tie can only be won within one: by the lower angle, then shift
                wins = (value < best) | ((value == best) & (state.labels[where] == c) & (angle < angles))
                state.best[where] = np.where(wins, value, best)
                state.labels[where] = np.where(wins, c, state.labels[where])
                state.angles[where] = np.where(wins, angle, angles)
                state.shifts[where] = np.where(wins, s, state.shifts[where])
    return Match(
        labels=state.labels,
        angles=matcher.angles[state.angles],
        shifts=matcher.shifts[state.shifts].astype(np.float64),
        distances=state.best - bias[state.labels],
        all_distances=distances,
    )
