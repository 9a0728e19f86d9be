"""Volumes that a decoder stands for."""

import numpy as np
import scipy.fft

from .._torch import import_torch, to_numpy
from ..reconstruction import spherical_mask
from ._drgn_training import one_thread

__all__ = ["VolumeDecoder"]

_POINTS, _LATENTS = 2**10, 8  # that the network is asked about at a time: what is between layers stays in cache


class VolumeDecoder:
    """A decoder with its scale, asked for volumes.

    Parameters
    ----------
    network : ResidualDecoder
    weights : dict of str to ndarray
    gain : ndarray of shape (n_rings,)
        Coefficient of a slice over what the network says, by radius in cycles per box; between by linear
        interpolation.
    L : int
        Box in pixels that frequencies are counted in.
    mask_radius : float
        Pixels.
    """

    def __init__(self, network, weights, gain, L, mask_radius):
        self.network, self.weights, self.gain = network, weights, gain
        self.L, self.mask_radius = L, mask_radius

    def gains(self, radii):
        """Gain at radii in cycles per box, float64."""
        return np.interp(radii, np.arange(len(self.gain)), self.gain)

    def coefficients(self, z, points, device, dtype):
        """Fourier coefficients of volumes.

        Parameters
        ----------
        z : ndarray of shape (n, z_dim)
        points : ndarray of shape (n_points, 3)
            (kx, ky, kz) in cycles per box.
        device : torch.device
        dtype : str
            "float32" or "bfloat16": of the products.

        Returns
        -------
        ndarray of shape (n, n_points), complex64
        """
        torch = import_torch("CryoDRGN")
        out = np.empty((len(z), len(points)), dtype=np.complex64)
        with torch.inference_mode(), one_thread():
            put = {name: torch.as_tensor(value, device=device) for name, value in self.weights.items()}
            where = torch.as_tensor(np.asarray(points, dtype=np.float32), device=device)
            latents = torch.as_tensor(np.asarray(z, dtype=np.float32), device=device)
            for start in range(0, len(points), _POINTS):
                columns = slice(start, start + _POINTS)
                for first in range(0, len(z), _LATENTS):
                    rows = slice(first, first + _LATENTS)
                    found = self.network(put, where[None, columns], latents[rows], getattr(torch, dtype))
                    out[rows, columns] = to_numpy(torch.view_as_complex(found.contiguous()))
        out *= self.gains(np.linalg.norm(points, axis=1)).astype(np.float32)
        return out

    def volumes(self, z, band, box, device, dtype="float32"):
        """Volumes in real space.

        Parameters
        ----------
        z : ndarray of shape (n, z_dim)
        band : float
            Highest frequency, in cycles per box; Nyquist terms of an even box are left out.
        box : int
            Voxels a side of what is returned, which is as long as the images' box.
        device, dtype
            As in :meth:`coefficients`.

        Returns
        -------
        ndarray of shape (n, box, box, box), float32
            In units of the images per pixel of theirs if `box` is theirs. Images do not tell the mean: it is such that
            density is zero on average outside the mask.
        """
        last = min(int(band), (box - 1) // 2)
        axis = np.arange(-last, last + 1)
        kz, ky, kx = (part.ravel() for part in np.meshgrid(axis, axis, axis, indexing="ij"))
        half = (kz > 0) | ((kz == 0) & ((ky > 0) | ((ky == 0) & (kx > 0))))
        half &= kx**2 + ky**2 + kz**2 <= band**2
        points = np.stack([kx, ky, kz], axis=1)[half]
        mask = spherical_mask(box, self.mask_radius * box / self.L)
        outside = mask == 0
        volumes = np.empty((len(z), box, box, box), dtype=np.float32)
        for row in range(len(z)):
            if row % _LATENTS == 0:
                found = self.coefficients(z[row : row + _LATENTS], points, device, dtype)
            values = found[row % _LATENTS]
            spectrum = np.zeros((box, box, box), dtype=np.complex64)
            spectrum[tuple((points % box).T[::-1])] = values
            spectrum[tuple((-points % box).T[::-1])] = values.conj()
            density = scipy.fft.fftshift(scipy.fft.ifftn(spectrum, overwrite_x=True).real)
            if outside.any():
                density -= density[outside].mean()
            volumes[row] = density * mask
        return volumes
