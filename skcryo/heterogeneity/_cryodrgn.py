"""Continuous distributions of structures: a decoder from latent coordinates to volumes, trained on particles."""

import time
import warnings
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._emd import max_threads
from .._torch import DEVICES, import_torch, resolve_device
from .._validation import (
    HasMethods,
    Interval,
    StrOptions,
    _fit_context,
    padded_to,
    resolve_optics,
    validate_lazy,
)
from ..particles import describe_image
from ._drgn_checkpoint import FitSaver
from ._drgn_decoder import ResidualDecoder
from ._drgn_images import ImageUnits, fourier_images, noise_spectra, with_tilt
from ._drgn_inference import ComponentsPosterior, EncoderPosterior
from ._drgn_latents import LatentMixture
from ._drgn_paper import HartleyDecoder, ImageEncoder
from ._drgn_poses import find_poses, frames, refine_against, resolve_poses
from ._drgn_search import largest_shift, search_from_nothing
from ._drgn_start import Contrasts, first_latents, particle_radius
from ._drgn_training import DecoderTraining, product_dtype
from ._drgn_use import SMALLEST_BOX, FittedDecoder
from ._drgn_verdict import told_by_heart, told_collapse
from ._drgn_volumes import VolumeDecoder

__all__ = ["CryoDRGN"]

_ROUNDS = 3  # of training and of latents
_STEPS, _RIGID_STEPS, _PASSES = 3000, 900, 3  # of training: at least, for one volume, and passes over the images
_BETWEEN = 50
_N_CENTRES = 20
_BAND = 16.0  # cycles per box that latents are inferred from
_CONTRAST_STD = 0.05
_SEARCH_RING = 32.0  # cycles per box that poses are searched with, at most
_KEPT_OUT = 0.1  # of the images, from training with an encoder
_ARCHITECTURES = {"residual": ResidualDecoder, "paper": HartleyDecoder}


class CryoDRGN(CallbackSupportMixin, FittedDecoder, BaseEstimator):
    """Continuous heterogeneity of particles of known poses: latent coordinates, and a volume for each of them.

    A network says the Fourier coefficients of the volume at any latent coordinates z. It is trained so that its
    slices, seen through CTF, shift and contrast, are the images [1]_. Here coordinates are not told by a second
    network, which learns images by heart, but inferred through the decoder: by their posterior given the volumes that
    it makes. They start from probabilistic principal component analysis of the volume.

    Parameters
    ----------
    z_dim : int, default=8
        Latent coordinates. 0: one volume for all images.
    architecture : {"residual", "paper"}, default="residual"
        The decoder. "residual": residual layers on random Fourier features, half of Fourier space. "paper": ten layers
        of 128 on the paper's positional encoding, in Hartley space, trained as there, on all frequencies of 10 images
        at a rate of 1e-4; it takes some hundred times longer.
    inference : {"decoder", "encoder", "pca"}, default="decoder"
        Where coordinates come from. "decoder": their posterior through the decoder. "encoder": a second network that
        looks at images, as in the paper (a variational autoencoder). It learns noise by heart if images are few, which
        a tenth of them, kept out of training, shows. "pca": the principal volumes' coordinates.
    poses : {"given", "search", "identity"} or estimator, default="given"
        "given": images carry rotations, or `rotations` is given; an error where they are missing. "search": they are
        found from random ones, those that images carry are not used. "identity": images without rotations are taken as
        views along z with nothing turned. An estimator that has ``rotations_`` after
        ``fit``, such as :class:`~skcryo.reconstruction.AbInitioVolume`: poses that images carry are not used; one that
        is fitted already, on as many images, is taken to be fitted on these. Its ``predict_poses`` is asked for those
        of new images.
    refine_poses : bool or "auto", default="auto"
        Whether poses are refined against the volumes of the decoder. "auto": if an estimator found them, or a search
        did and `z_dim` is not 0; against one volume the search has refined them already, better than a decoder can
        that has seen few images.
    max_shift : float or "auto", default="auto"
        Largest shift in x and in y that a search looks for, in pixels. "auto": 0.055 L.
    max_iter : int, default=None
        Steps of training, each on 16 images ("paper": 10). None: 3000 (900 if `z_dim` is 0), or as many as three
        passes over the images take if that is more.
    max_time : float, default=None
        Seconds that training may take; it is planned so that it ends then. None: `max_iter` alone decides. With it,
        results depend on how fast the computer is.
    resolution : float, default=None
        Finest detail that images are used for, in Angstrom if the pixel size is known, else in pixels. None: two
        pixels.
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the ball that holds the particle. "auto": 0.45 L.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Of the products in training; weights are always float32. "auto": bfloat16 where the processor has such
        products.
    checkpoint_dir : path, default=None
        Folder where the state is saved, at most every ten seconds; a fit that was killed goes on from there, to the
        same result, if data and parameters are the same.
    n_jobs : int, default=None
        Threads of all but the network, which takes one. None: all cores (OMP_NUM_THREADS is respected). Results do not
        depend on it.
    device : {"auto", "cpu", "cuda"}, default="auto"
        Where the network is trained. "auto": on a GPU if torch sees one, else on the CPU.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    embedding_ : ndarray of shape (n_images, z_dim), float64
        Latent coordinates of the images: means of their posteriors. Their mean is 0 and their covariance, posterior
        widths counted, the identity.
    embedding_covariance_ : ndarray of shape (n_images, z_dim, z_dim), float64
        Of the posteriors.
    contrast_ : ndarray of shape (n_images,), float64
    loss_curve_ : list of float
        Mean squared residual of each step of training, in units of the noise (a half is what noise alone leaves).
    n_iter_ : int
        Steps of training.
    weights_ : dict of str to ndarray
        Of the network.
    rotations_, shifts_ : ndarray of shape (n_images, 3, 3) and (n_images, 2), float64
        Poses, as they were given or found, refined if they are to be.
    tilt_shifts_ : ndarray of shape (n_images, 2), float64
        Of the tilt images, if there are any.
    pose_estimator_ : estimator
        The fitted one, if there is one.
    resolution_ : float
        Finest detail that images were used for, in Angstrom or pixels as `resolution`.
    noise_spectrum_, tilt_noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        The noise's power by ring; that of the tilt images if there are any.
    pixel_size_ : float or None
    n_features_in_ : int
    image_shape_ : tuple of two ints

    See Also
    --------
    skcryo.heterogeneity.CommonLinesMaxCut : Few discrete structures, poses unknown.
    skcryo.reconstruction.FourierReconstructor : One volume from known poses, much faster.

    Notes
    -----
    Needs torch (``pip install "skcryo[torch]"``) to be fitted and used.

    Choices: two residual layers of 256 channels on 256 random Fourier features as wide as the particle; Adam, rates
    rising to 1e-3 and falling by half a cosine; 16 images and 200 random frequencies of each a step. After each third
    of the training the posterior of z is found anew, from frequencies up to 16 cycles per box: about 20 centres of the
    coordinates the decoder is replaced by its volume and its slopes, which makes the posterior a mixture of normal
    distributions in closed form, the image's contrast beside z. The prior is the mixture of the images themselves. In
    training coordinates are drawn from these posteriors. Signal that no network explains is taken to be 3 % of a
    ring's power and counted with the noise.

    ``poses="search"``: as :class:`~skcryo.reconstruction.AbInitioVolume` begins, stochastic expectation-maximisation
    over a grid of poses with a rising band, from random poses, until two of up to five starts agree; then search and
    Levenberg-Marquardt against the volume of all images. If particles differ, poses are refined against the decoder's
    volumes after each third of the training but the last, these volumes in one frame. What was found on one volume
    of a molecule that bends far is blurred and turns along with it: on such data, look at how volumes turn.

    Tilt pairs are one particle with one pose, one z, one contrast and two shifts.

    References
    ----------
    .. [1] Zhong, Bepler, Berger, Davis, "CryoDRGN: reconstruction of heterogeneous cryo-EM structures using neural
       networks", Nature Methods 18 (2021).

    Examples
    --------
    >>> from skcryo.heterogeneity import CryoDRGN
    >>> CryoDRGN(z_dim=1, max_iter=500, random_state=0)
    CryoDRGN(max_iter=500, random_state=0, z_dim=1)
    """

    _parameter_constraints: dict = {
        "z_dim": [Interval(Integral, 0, None, closed="left")],
        "architecture": [StrOptions(set(_ARCHITECTURES))],
        "inference": [StrOptions({"decoder", "encoder", "pca"})],
        "poses": [StrOptions({"given", "search", "identity"}), HasMethods(["fit"])],
        "refine_poses": ["boolean", StrOptions({"auto"})],
        "max_shift": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "resolution": [Interval(Real, 0, None, closed="neither"), None],
        "mask_radius": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "device": [StrOptions(set(DEVICES))],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        z_dim=8,
        *,
        architecture="residual",
        inference="decoder",
        poses="given",
        refine_poses="auto",
        max_shift="auto",
        max_iter=None,
        max_time=None,
        resolution=None,
        mask_radius="auto",
        precision="auto",
        checkpoint_dir=None,
        n_jobs=None,
        device="auto",
        random_state=None,
    ):
        self.z_dim = z_dim
        self.architecture = architecture
        self.inference = inference
        self.poses = poses
        self.refine_poses = refine_poses
        self.max_shift = max_shift
        self.max_iter = max_iter
        self.max_time = max_time
        self.resolution = resolution
        self.mask_radius = mask_radius
        self.precision = precision
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, *, rotations=None, shifts=None, ctf=None, tilt=None, tilt_angle=None):
        """Train the decoder and infer the latent coordinates of the images.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, light on dark.
        y : None
            Ignored.
        rotations : array-like of shape (n_images, 3, 3), default=None
            Poses. None: those that `X` carries; see `poses` where it carries none.
        shifts : array-like of shape (n_images, 2), default=None
            (x, y) in pixels: where the particle's centre lies relative to the image's. None: those that `X` carries,
            else zero.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.
        tilt : ParticleStack or array-like of shape (n_images, L, L), default=None
            Second images of the same particles, the stage tilted, with CTFs and shifts of their own, if any. None:
            those that `X` carries, if any. Poses, coordinates and the network are then found from both images of each
            particle, which have one contrast.
        tilt_angle : float or array-like of shape (3,), default=None
            Between the two, in radians about the images' x axis, or a rotation vector: as
            :class:`~skcryo.particles.ParticleStack`. None: that of `X`.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If torch is not installed.
        ValueError
            If images are not square and finite, or no more than `z_dim`; if poses are missing, not of as many images,
            no rotations, or shifts larger than half the box; if tilt images come without their angle or are not those
            of `X` in number and size; if CTFs come without a pixel size; if the checkpoint is that of another fit; if
            there is no such device.

        Warns
        -----
        UserWarning
            If an image is constant.
        ConvergenceWarning
            If poses were searched for and no two starts agree; if the coordinates tell images apart by little more than
            chance, or the encoder has learnt noise by heart.
        """
        import_torch("CryoDRGN")
        device = resolve_device(self.device, caller="CryoDRGN")
        stack = validate_lazy(self, X, ensure_min_samples=2)
        n = len(stack)
        if n <= self.z_dim:
            raise ValueError(f"n_samples={n} images are too few for z_dim={self.z_dim} coordinates; more are wanted")
        self.pixel_size_, ctf = resolve_optics(stack, ctf)
        stack = with_tilt(stack.replace(ctf=ctf), tilt, tilt_angle)
        for name in ("pose_estimator_", "tilt_shifts_", "tilt_noise_spectrum_"):
            vars(self).pop(name, None)
        poses = ()
        if hasattr(self.poses, "fit"):
            self.pose_estimator_, *poses = find_poses(self.poses, stack)
        elif not self._searches:
            poses = resolve_poses(stack, rotations, shifts, self.poses)
        padded = padded_to(stack, SMALLEST_BOX)
        small = padded is not stack and stack.shape[1] < SMALLEST_BOX
        L = padded.shape[1]
        self._max_ring = self._highest_ring(L)
        spectra = noise_spectra(padded, radius=0 if small else None)
        self.noise_spectrum_ = spectra[0]
        if stack.tilt is not None:
            self.tilt_noise_spectrum_ = spectra[1]
        saver = FitSaver(self, stack, (ctf, *poses))
        with FitProgress(self, X, y, max_steps=None) as progress:
            if saver.first_poses is not None:
                poses = saver.first_poses
            elif self._searches:
                *poses, saver.problem = search_from_nothing(
                    padded, spectra, max_shift=largest_shift(self.max_shift, L), mask_radius=self._radius(L),
                    max_ring=min(_SEARCH_RING, self._max_ring, (L - 1) // 2), homogeneous=self.z_dim == 0, saver=saver,
                    progress=progress, n_jobs=self._threads(), device=device if device.type == "cuda" else None,
                )  # fmt: skip
            self.rotations_, self.shifts_ = poses
            with progress.step("images"):
                images = fourier_images(padded, spectra, self._max_ring)
                _warn_of_constant_images(images, stack)
                self._units = ImageUnits(images)
                images = self._units.apply(images)
            saver.first_poses = self.rotations_, self.shifts_
            with progress.step("start"):
                latents, training = self._start(images, saver, device)
            self._train(training, latents, saver, progress)
        if saver.problem is not None:
            warnings.warn(
                f"CryoDRGN did not converge: {saver.problem}. Poses may be wrong; more images or a smaller max_shift "
                "are wanted",
                ConvergenceWarning,
                stacklevel=2,
            )
        if self.z_dim and not progress.stopped:
            problem = told_collapse(self.embedding_)
            if problem is None and self._mode == "encoder":
                problem = told_by_heart(self._posterior, training, self.contrast_)
            if problem:
                warnings.warn(f"CryoDRGN did not converge: {problem}", ConvergenceWarning, stacklevel=2)
        return self

    def _start(self, images, saver, device):
        """Everything before training: contrasts, first coordinates, a network."""
        L, threads = images.L, self._threads()
        self._contrasts = Contrasts.from_images(
            images, self.rotations_, self.shifts_, self._radius(L), min(_BAND, self._max_ring), threads
        )
        contrast = self._contrasts(images, self.rotations_, self.shifts_)
        seed = saver.seed
        network = self._network = _ARCHITECTURES[self.architecture](self.z_dim)
        weights = network.initial_weights(np.random.default_rng([seed, 0]), particle_radius(self._contrasts.mean, L), L)
        encoder, rows = None, None
        if self._mode == "encoder":
            encoder = ImageEncoder(self.z_dim, images.n_views * len(images.points))
            weights |= encoder.initial_weights(np.random.default_rng([seed, 4]))
            rows = np.sort(np.random.default_rng([seed, 5]).permutation(len(images))[int(_KEPT_OUT * len(images)) :])
        gain = np.interp(images.radii, np.arange(len(self._units.gain)), self._units.gain)
        training = DecoderTraining(
            network, weights, images, self.rotations_, self.shifts_, gain, seed, device, self._dtype(device),
            encoder, rows,
        )  # fmt: skip
        latents = saver.restore(training)
        self.rotations_, self.shifts_ = training.rotations, training.shifts
        if latents is None or self._mode == "pca":
            latents, components = first_latents(
                images, self.rotations_, self.shifts_, contrast, 0 if encoder else self.z_dim, self._radius(L), seed,
                threads,
            )  # fmt: skip
            moved = latents.standardise()
            if self._mode == "pca":
                self._posterior = ComponentsPosterior(components)
                self._posterior.move(*moved)
            if training.step == 0:
                saver(training, latents, now=True)
        return latents, training

    @property
    def _searches(self):
        return isinstance(self.poses, str) and self.poses == "search"

    @property
    def _refines(self):
        if self._mode != "decoder":
            return False
        found = (self._searches and self.z_dim > 0) or hasattr(self.poses, "fit")
        return found if self.refine_poses == "auto" else self.refine_poses

    def _refine(self, training, latents, seed):
        """Poses against the decoder's volumes, those of all volumes in one frame."""
        mixture, images = self._posterior, training.images
        rotations, shifts = refine_against(
            mixture, images, self.rotations_, self.shifts_, latents, n_jobs=self._threads()
        )
        if self.z_dim:
            turns = frames(mixture.volumes[:, 0], self._contrasts.mean, mixture.band, seed)
            rotations = turns[mixture.nearest(latents.mean)].swapaxes(1, 2) @ rotations
        self._set_poses(training, rotations, shifts)

    def _set_poses(self, training, rotations, shifts):
        self.rotations_, self.shifts_ = rotations, shifts
        training.set_poses(rotations, shifts)

    @property
    def _mode(self):
        return "decoder" if self.z_dim == 0 else self.inference

    def _train(self, training, latents, saver, progress):
        least = _STEPS if self.z_dim else _RIGID_STEPS
        n_steps = self.max_iter or max(least, -(-_PASSES * len(latents.mean) // training.batch_size))
        while True:
            bound, begun = (saver.round + 1) / _ROUNDS, time.monotonic() - saver.elapsed
            while (over := self._fraction(training.step, n_steps, begun)) < bound and not progress.stopped:
                with progress.step("training"):
                    left = max(1, int(np.ceil(bound * n_steps)) - training.step)
                    training.run(min(_BETWEEN, left), latents, lambda step, over=over: max(over, step / n_steps))
                saver.elapsed = time.monotonic() - begun
                saver(training, latents, now=progress.stopped)
            last = saver.round + 1 >= _ROUNDS or progress.stopped
            with progress.step("latents"):
                if last or self._mode == "decoder":
                    latents = self._infer(training, latents, saver.seed)
            if self._refines and not last:
                with progress.step("poses"):
                    self._refine(training, latents, saver.seed)
            saver.round += 1
            if last:
                break
            saver(training, latents, now=True)
        if training.images.n_views == 2:
            self.shifts_, self.tilt_shifts_ = np.split(self.shifts_, 2, axis=1)
        self.embedding_, self.embedding_covariance_ = latents.mean, latents.covariance
        self.contrast_, self._n_features_out = latents.contrast, self.z_dim
        self.weights_, self.loss_curve_, self.n_iter_ = training.weights, training.losses, training.step

    def _fraction(self, step, n_steps, begun):
        share = step / n_steps
        return share if self.max_time is None else max(share, (time.monotonic() - begun) / self.max_time)

    def _infer(self, training, latents, seed):
        """New coordinates; through the decoder they are standardised, and it is moved along."""
        if self._mode == "pca":
            return latents
        band, device, dtype = min(_BAND, self._max_ring), training.device, str(training.dtype).split(".")[1]
        decoder = self._volume_decoder(training.weights)
        images = training.images
        base = self._contrasts(images, self.rotations_, self.shifts_)
        if self._mode == "encoder":
            self._posterior = EncoderPosterior(training.encoder, decoder, device, dtype)
            return self._posterior.posterior(images, self.rotations_, self.shifts_, base)

        def decode(z):
            return decoder.volumes(z, band, 2 * (int(band) + 2), device, dtype)

        noise = training.residual_power(latents, images.n_points(band))
        mixture = LatentMixture.from_latents(latents, decode, _N_CENTRES, band, _CONTRAST_STD, seed, noise)
        latents = mixture.posterior(images, self.rotations_, self.shifts_, base)
        centre, matrix = latents.standardise()
        mixture.move(centre, matrix)
        training.weights = self._network.move_latents(training.weights, centre, matrix)
        self._posterior = mixture
        return latents

    def _volume_decoder(self, weights):
        L = max(self.image_shape_[1], SMALLEST_BOX)
        return VolumeDecoder(self._network, weights, self._units.gain, L, self._radius(L))

    # ------------------------------------------------------------------------------------------- arguments
    def _threads(self):
        return max_threads() if self.n_jobs is None else joblib.effective_n_jobs(self.n_jobs)

    def _radius(self, L):
        return 0.45 * L if self.mask_radius == "auto" else float(self.mask_radius)

    def _dtype(self, device):
        return product_dtype(device) if self.precision == "auto" else self.precision

    def _highest_ring(self, L):
        highest, unit = L / 2, self.pixel_size_ or 1.0
        if self._radius(L) > L:
            raise ValueError(f"mask_radius is {self.mask_radius} pixels; at most the box of {L} is wanted")
        ring = highest if self.resolution is None else min(highest, L * unit / self.resolution)
        if ring < 2:
            raise ValueError(
                f"resolution is {self.resolution}, coarser than half the box of {L * unit:g}; a smaller one is wanted"
            )
        self.resolution_ = L * unit / ring
        return float(ring)


def _warn_of_constant_images(images, stack):
    for start in range(0, len(images), 1000):
        constant = np.flatnonzero(~np.abs(images.values[start : start + 1000]).any(axis=1))
        if len(constant):
            warnings.warn(
                f"{describe_image(stack, start + constant[0])} is the first of {len(constant)} that are constant: they "
                "show nothing",
                UserWarning,
                stacklevel=4,
            )
            return
