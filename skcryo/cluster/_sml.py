"""Statistical manifold learning: many classes of aligned particle images, with class means on a manifold."""

import warnings
from functools import partial
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._emd import max_threads
from .._torch import DEVICES, accelerator
from .._validation import (
    Interval,
    StrOptions,
    _fit_context,
    check_sample_weight,
    resolve_ctf,
    resolve_pixel_size,
    validate_lazy,
)
from ..io._checkpoint import StageCheckpoints
from ..metrics import effective_n_classes
from ..reconstruction._half_sets import fingerprint
from ._sml_coordinates import SMALLEST_BOX, PixelCoordinates, find_coordinates, has_images
from ._sml_data import ParticleCoordinates, ctf_grouping
from ._sml_expectation import TorchExpectation, expect
from ._sml_fit import Features, mutual_information, run_em, sparse_rows
from ._sml_latent import check_grid, manifold_basis, mean_positions
from ._sml_pixels import PixelMixture
from ._sml_space import find_signal_space
from ._sml_start import check_averages, first_means
from ._sml_subspace import SubspaceMixture
from ._sml_use import FittedManifold, float_dtype

_COMPONENTS = 50, 200  # at least and at most
_START_COMPONENTS = 50  # in which a fit on pixels starts
_NOISE_BOUNDS = (0.5, 1.1)  # relative to what components leave: a free equation 12 takes signal for noise
_ROW_NOISE_BOUNDS = (1e-6, 10.0)
_LEAST_RESPONSIBILITY = 1e-3
_COLLAPSED_SHARE = 0.25  # of the classes
_COLLAPSED_NATS = 0.1


class SMLClustering(CallbackSupportMixin, FittedManifold, BaseEstimator):
    """Deep classification of aligned particle images by statistical manifold learning.

    A generative topographic mapping with the CTF in the likelihood [1]_: every image is one of `n_clusters` class
    means, filtered by the image's CTF, in noise whose variance depends on the Fourier ring. Class means are smooth
    functions of latent nodes on a grid, so that neighbouring classes support each other: hundreds of classes can be
    told apart at noise levels where independent class means cannot.

    Images must be aligned in the plane. Shifts that `X` carries are undone.

    Parameters
    ----------
    n_clusters : int, default=100
        Number of classes, that is latent nodes.
    grid_shape : tuple of int, default=None
        Nodes along each axis of a flat grid; goes before `n_clusters` and `latent_dim`. None: `n_clusters` as a
        product of `latent_dim` factors as equal as can be (of a prime number, a line).
    latent_dim : {1, 2, 3}, default=2
        Dimension of the latent space; a sphere has 2.
    manifold : {"sphere", "flat", "none"}, default="sphere"
        "sphere": nodes all over a sphere, as viewing directions are. "flat": the regular grid of the paper. "none":
        independent class means, that is maximum-likelihood classification.
    n_basis : int, default=None
        Gaussian basis functions of the class means. None: 75 % as many as nodes of a sphere, 80 % along each axis of a
        grid (the paper's number).
    basis_width : float, default=0.7
        Standard deviation of the Gaussians in spacings of their centres; at most 0.6 of the radius of the sphere, or of
        half the longest side of the grid. On a simulated ribosome (5000 images, 300 classes, SNR 0.01) 0.7 gave purer
        classes than 1.5.
    alpha : float or "auto", default=1.0
        Precision of the prior of the class means (equation 8), relative to the images' own signal: at 1, class means
        vary as much as images do without their noise. "auto": estimated from the
        sixth iteration on, from 0.1 to 10.
    residual : float, default=0.1
        Variance by which each class mean may deviate from the manifold, relative to the variance along it. Unused
        without a manifold.
    n_components : int, "auto" or None, default="auto"
        Principal components, with CTFs undone, in the span of which class means lie. "auto": the square root of twice
        the number of images, from 50 to 200 (100 of 5000 images): more images make finer components worth having.
        None: no such bound; slower and, in noise, less accurate. Rows that are no images have none. In either case
        class means differ only up to the last ring in which the images' covariance shows signal.
    resolution : float, default=None
        Finest detail looked at, in Angstrom. None: 32 cycles across the box, at most Nyquist.
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the disc in which the particle lies, and so the components do. "auto": found from the
        images. numpy.inf: the whole box.
    init : {"auto", "pca", "k-means", "random"} or array-like, default="auto"
        First class means. "pca": the latent grid along the first components (without manifold: drawn from their
        variances). "k-means": of Wiener filtered images in the components. "random": filtered images drawn by chance.
        "auto": "pca" on a manifold, else "k-means". An array of shape (n_clusters, L, L), or of rows: class averages.
    tol : float, default=1e-3
        The fit has converged when the log posterior rises by less in an iteration, per image.
    max_iter : int, default=100
        Most iterations.
    checkpoint_dir : path, default=None
        Folder where the state is saved after every iteration; a fit that was killed goes on from there to the same
        result, if data and parameters are the same.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.
    device : {"auto", "cpu", "cuda"}, default="auto"
        Where the iterations are done. "auto": on a GPU if torch is installed and sees one, else on the CPU, without
        torch. They are the same up to rounding.
    random_state : int, RandomState instance or None, default=None
        Of starts drawn by chance; a manifold that starts from "pca" has none.

    Attributes
    ----------
    labels_ : ndarray of shape (n_images,), int32
        Likeliest class of each image.
    class_averages_ : ndarray of shape (n_clusters, L, L)
        Images of each class averaged by their responsibilities, CTFs undone (equation 13), within the band. Each has
        mean zero: the level of the background is not looked at.
    responsibilities_ : scipy.sparse.csr_array of shape (n_images, n_clusters)
        Probabilities of classes given the image (equation 9) of at least 0.001.
    latent_positions_ : ndarray of shape (n_clusters, n_latent), float64
        Nodes: unit vectors of a sphere (n_latent = 3), points of the grid (latent_dim); without manifold, the class
        means along their first `latent_dim` principal components.
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        Variance of the noise by Fourier ring, as of :func:`skcryo.preprocessing.noise_spectrum`; rings outside the band
        have the value of the nearest one inside. Of rows that are no images, one number.
    lower_bound_ : float
        Log posterior per image (up to the constant of the prior) before the last update.
    lower_bound_curve_ : ndarray of float64
        The same before each update.
    effective_n_clusters_ : float
        Exponential of the entropy of the classes' occupancy.
    alpha_ : float
        The prior's precision used.
    mask_radius_ : float or None
        Radius in pixels of the disc of the components; None of rows that are no images.
    n_iter_ : int
    converged_ : bool
    n_features_in_ : int
        Pixels of an image.
    image_shape_ : tuple of two ints

    Warns
    -----
    ConvergenceWarning
        If the log posterior still rises after `max_iter` iterations; if nothing that varies between the images stands
        out of their noise; or if the classes collapsed: fewer than a quarter of them are in effect used, or images
        hardly tell their class.

    See Also
    --------
    RotInvWassersteinKMeans : Classes of images that are not aligned.

    Notes
    -----
    Noise, mean and components come from two passes over the images before the first iteration. In components the noise
    is then held, since equation 12 with few classes takes what they do not yet explain for noise; on pixels it may
    change between 0.5 and 1.1 of it. Of rows that are no image it is free.

    Rows that are no square image, and images below 8 pixels, are compared pixel by pixel.

    A CTF with astigmatism makes every frequency a group of its own in the maximisation (a few times slower on pixels).

    References
    ----------
    .. [1] J. Wu et al.: Unsupervised single-particle deep clustering via statistical manifold learning. PLoS ONE 12
       (2017).

    Examples
    --------
    >>> from skcryo.cluster import SMLClustering
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> stack, truth = make_particles(make_molecule(24, random_state=0), 200, snr=1.0, random_state=0)
    >>> sml = SMLClustering(12, n_components=8).fit(stack)
    >>> sml.class_averages_.shape, sml.transform(stack).shape, sml.converged_
    ((12, 24, 24), (200, 3), True)
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "grid_shape": [tuple, list, None],
        "latent_dim": [Interval(Integral, 1, 3, closed="both")],
        "manifold": [StrOptions({"sphere", "flat", "none"})],
        "n_basis": [Interval(Integral, 1, None, closed="left"), None],
        "basis_width": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "residual": [Interval(Real, 0, None, closed="left")],
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
        "resolution": [Interval(Real, 0, None, closed="neither"), None],
        "mask_radius": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "init": [StrOptions({"auto", "pca", "k-means", "random"}), "array-like"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "device": [StrOptions(set(DEVICES))],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters=100,
        *,
        grid_shape=None,
        latent_dim=2,
        manifold="sphere",
        n_basis=None,
        basis_width=0.7,
        alpha=1.0,
        residual=0.1,
        n_components="auto",
        resolution=None,
        mask_radius="auto",
        init="auto",
        tol=1e-3,
        max_iter=100,
        checkpoint_dir=None,
        n_jobs=None,
        device="auto",
        random_state=None,
    ):
        self.n_clusters = n_clusters
        self.grid_shape = grid_shape
        self.latent_dim = latent_dim
        self.manifold = manifold
        self.n_basis = n_basis
        self.basis_width = basis_width
        self.alpha = alpha
        self.residual = residual
        self.n_components = n_components
        self.resolution = resolution
        self.mask_radius = mask_radius
        self.init = init
        self.tol = tol
        self.max_iter = max_iter
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, ctf=None, sample_weight=None):
        """Find the classes.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Aligned particle images.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.
        sample_weight : array-like of shape (n_images,), default=None
            Images of weight zero take no part but get a label.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `X` holds fewer images than classes, images that are all alike, not square or not finite; if `ctf` or
            `sample_weight` do not fit `X`; if `grid_shape` or `latent_dim` do not fit the manifold; if `resolution`
            leaves no band, or the pixel size is not known.
        """
        expectation = self._expectation()
        shape = check_grid(self.manifold, self.grid_shape, self.latent_dim)
        n_clusters = self.n_clusters if shape is None else int(np.prod(shape))
        dtype = float_dtype(X)
        stack = validate_lazy(self, X, ensure_min_samples=1)
        weights = check_sample_weight(sample_weight, stack, dtype=np.float64)
        used = np.flatnonzero(weights > 0)
        if len(used) < n_clusters:
            raise ValueError(
                f"n_samples={len(used)} should be >= n_clusters={n_clusters}: so many classes need as many images"
                + ("" if len(used) == len(stack) else " of positive weight")
            )
        init = check_averages(self.init, n_clusters, self.image_shape_)
        ctf, pixel_size = self._optics(stack, ctf)
        self._coordinates = find_coordinates(stack, self.n_features_in_, pixel_size, self.resolution)
        every = self._data(stack, ctf, pixel_size, weights)
        data = every if len(used) == len(stack) else every.part(used)
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        saved = StageCheckpoints(self.checkpoint_dir, self._fingerprint(stack, ctf, sample_weight, init))
        with FitProgress(self, X, y, max_steps=self.max_iter + 1, sample_weight=sample_weight) as progress:
            radius = None if self.mask_radius == "auto" else float(self.mask_radius)
            self._space = find_signal_space(data, self._n_components(len(stack)), radius)
            self._mixture, nodes = self._make_mixture(data, n_clusters, shape)
            rng = np.random.RandomState(seed)
            run = run_em(
                self._mixture,
                lambda: first_means(init, self._space, self._mixture, data, nodes, rng),
                Features(self._mixture, data, self._space),
                data,
                self,
                expectation,
                progress,
                saved,
            )
        self.n_iter_, self.converged_ = run.n_iter, run.converged
        self.lower_bound_curve_ = np.array(run.curve)
        self.lower_bound_ = run.curve[-1]
        self.alpha_, self.mask_radius_ = self._mixture.alpha, self._space.radius
        self.latent_positions_ = mean_positions(self._mixture.means, self.latent_dim) if nodes is None else nodes
        self._n_features_out = self.latent_positions_.shape[1]
        self.noise_spectrum_ = self._noise_by_ring()
        information = self._keep_classes(every, dtype)
        self._warn(information, progress.stopped)
        return self

    def _optics(self, stack, ctf):
        ctf, pixel_size = resolve_ctf(stack, ctf), resolve_pixel_size(stack)
        if ctf is not None and pixel_size is None:
            raise ValueError("CTFs need the pixel size: give X as a ParticleStack with pixel_size in Angstrom")
        if ctf is not None and not has_images(stack, self.n_features_in_):
            raise ValueError(
                f"CTFs need square images of at least {SMALLEST_BOX} px, got {self.n_features_in_} pixels an image"
            )
        return ctf, pixel_size

    def _data(self, stack, ctf, pixel_size, weights):
        coordinates = self._coordinates.regrouped(ctf_grouping(ctf))
        dtype = np.float32 if has_images(stack, self.n_features_in_) else np.float64
        return ParticleCoordinates(stack, coordinates, ctf, pixel_size, weights, dtype)

    def _fingerprint(self, stack, ctf, sample_weight, init):
        """Of all that the result depends on; None where nothing is saved."""
        if self.checkpoint_dir is None:
            return None
        params = self.get_params(deep=False)
        if isinstance(self.random_state, np.random.RandomState):
            params["random_state"] = "given"
        for name in ("checkpoint_dir", "n_jobs", "device"):
            params.pop(name)
        params["init"], averages = (init, None) if isinstance(init, str) else ("given", init)
        return fingerprint(params, stack, (ctf, sample_weight, stack.shifts, averages))

    def _make_mixture(self, data, n_clusters, shape):
        nodes, basis = manifold_basis(
            self.manifold,
            n_clusters,
            shape=shape,
            latent_dim=self.latent_dim,
            n_basis=self.n_basis,
            width=self.basis_width,
            residual=self.residual,
        )
        alpha = 1.0 if self.alpha == "auto" else self.alpha
        space = self._space
        if isinstance(data.coordinates, PixelCoordinates):
            return PixelMixture(
                basis, data.coordinates, 1 + space.ring_variances, alpha, _ROW_NOISE_BOUNDS, data.dtype, space.ctf_modes
            ), nodes
        if self.n_components is None:
            prior = np.maximum(space.ring_variances, 1e-12)
            return PixelMixture(
                basis, data.coordinates, prior, alpha, _NOISE_BOUNDS, data.dtype, space.ctf_modes, space.n_kept
            ), nodes
        return SubspaceMixture(
            basis, space.components, space.variances, alpha, data.dtype, data.coordinates, space.ctf_modes
        ), nodes

    def _expectation(self):
        """The expectation step, on threads or on a GPU."""
        device = accelerator(self.device, caller="SMLClustering")
        if device is not None:
            return TorchExpectation(device)
        return partial(expect, n_jobs=self._threads())

    def _n_components(self, n_samples):
        if self.n_components is None:
            return _START_COMPONENTS
        if self.n_components == "auto":
            return int(np.clip(np.sqrt(2 * n_samples), *_COMPONENTS))
        return self.n_components

    def _threads(self):
        return max_threads() if self.n_jobs is None else joblib.effective_n_jobs(self.n_jobs)

    def _noise_by_ring(self):
        c, mixture = self._coordinates, self._mixture
        first = np.searchsorted(c.rings, np.arange(c.n_rings))
        noise = self._space.noise[first]
        if isinstance(mixture, PixelMixture):
            noise = noise / mixture.precision
        if isinstance(c, PixelCoordinates):
            return noise
        return noise[np.clip(np.arange(c.L // 2 + 1) - 1, 0, c.n_rings - 1)]

    def _keep_classes(self, data, dtype):
        """Labels, responsibilities and class averages; returns what images tell of their class, in nats."""
        mixture, coordinates = self._mixture, data.coordinates
        n_clusters = len(mixture.basis)
        sums = np.zeros((n_clusters, coordinates.n_coordinates))
        squares = np.zeros((n_clusters, coordinates.n_groups))
        labels, rows, entropy, occupancy = [], [], 0.0, np.zeros(n_clusters)
        for where, whitened, found, _ in self._posteriors(data):
            w = data.weights[where]
            labels.append(found.argmax(axis=1))
            entropy -= float(w @ (found * np.log(np.maximum(found, 1e-30))).sum(axis=1, dtype=np.float64))
            occupancy += w @ found
            rows.append(sparse_rows(found, _LEAST_RESPONSIBILITY))
            shares = (sparse.diags_array(w) @ rows[-1]).T
            sums += shares @ whitened[0]
            if len(whitened[1]) == 1:
                squares += np.outer(shares.sum(axis=1), whitened[1][0])
            else:
                squares += shares @ whitened[1]
        self.labels_ = np.concatenate(labels).astype(np.int32)
        self.responsibilities_ = sparse.vstack(rows, format="csr")
        self.effective_n_clusters_ = float(effective_n_classes(self.labels_))
        prior = mixture.alpha / np.maximum(self._space.ring_variances, 1e-12)[coordinates.rings]
        averages = sums / (squares[:, coordinates.groups] + prior)
        self.class_averages_ = self._images(averages).astype(dtype)
        return mutual_information(occupancy, entropy / data.weights.sum())

    def _images(self, whitened):
        """Images of coordinates relative to the mean in units of the noise."""
        return self._coordinates.synthesize(whitened * np.sqrt(self._space.noise) + self._space.mean)

    def _warn(self, information, stopped):
        name, n_clusters = type(self).__name__, len(self._mixture.basis)
        if not self.converged_ and not stopped:
            rise = self.lower_bound_curve_[-1] - self.lower_bound_curve_[-2]
            warnings.warn(
                f"{name} did not converge in {self.n_iter_} iterations (max_iter={self.max_iter}): the log posterior "
                f"still rose by {rise:.2g} an image (tol={self.tol:g})",
                ConvergenceWarning,
                stacklevel=3,
            )
        if not self._space.n_significant and not isinstance(self._coordinates, PixelCoordinates):
            warnings.warn(
                "nothing that varies between the images stands out of their noise: classes may mean nothing. More "
                "images, or less noise, are wanted",
                ConvergenceWarning,
                stacklevel=3,
            )
        few = self.effective_n_clusters_ < _COLLAPSED_SHARE * n_clusters
        if n_clusters > 1 and (few or information < _COLLAPSED_NATS):
            warnings.warn(
                f"the classes collapsed: {self.effective_n_clusters_:.1f} of {n_clusters} are in effect used, and an "
                f"image tells {information:.2g} nats of its class. Fewer classes, more images or less noise are wanted",
                ConvergenceWarning,
                stacklevel=3,
            )
