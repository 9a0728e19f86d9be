"""Poses by a network that turns with the image, trained on projections of the volume that the images make."""

import warnings
from functools import partial
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch, check_random_state

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._emd import max_threads
from .._torch import DEVICES, import_torch, resolve_device
from .._validation import (
    HasMethods,
    Interval,
    StackTagsMixin,
    StrOptions,
    _fit_context,
    check_is_fitted,
    iter_finite_chunks,
    resolve_ctf,
    resolve_pixel_size,
    validate_lazy,
    validate_parameters,
)
from ..alignment import FourierImages, pose_normal_equations, refine_poses
from ..particles import as_stack
from ..preprocessing import noise_spectrum
from ..projection import VolumeProjector
from ..reconstruction import AbInitioVolume
from ..reconstruction._ab_initio_refine import add_images, best_contrast, solve_volume
from ..reconstruction._accumulator import FourierAccumulator
from ..rotations import check_rotations, geodesic_distance
from ._pose_net_architectures import O2MLP
from ._pose_net_inputs import SteerableInputs
from ._pose_net_lines import common_line_loss, line_bank, sample_pairs
from ._pose_net_reprojections import Reprojections
from ._pose_net_training import BATCH, PoseTraining, evaluate_network
from ._pose_net_uncertainty import ErrorModel
from ._pose_refinement import PoseRefinement

__all__ = ["EquivariantPoseNet"]

_SMALLEST_BOX = 16  # smaller ones have no functions of angular frequency 1
_CONTRAST_STD = 0.2
_MAX_ROUNDS = 24
_INPUT_BAND, _MAX_ANGULAR_FREQUENCY = 14.0, 12
_N_VIEWS = 8192
_N_KNOWN = 2000  # projections that components, and errors, are learnt from; never more than in training
_REFINE_STEPS = 3
_LEAST_SHIFT = 0.25  # pixels; shifts drawn in training are at least that
_SHIFT_UNIT = 2.0  # pixels, or the largest shift: smaller ones must not outweigh poses in the loss
_STEPS_BETWEEN = 50
_LEVEL = 0.9
_PARTNERS, _N_THETA = 50, 180
_LOST = 20.0  # degrees


class EquivariantPoseNet(CallbackSupportMixin, StackTagsMixin, BaseEstimator):
    """Poses of images by an equivariant network, which then knows those of new images at once.

    Poses of the images are found without a network and refined against the volume that they make. Of this volume
    projections are made, with the noise, the CTFs, the contrasts and the shifts of the data, and a network is trained
    to tell their poses. It is equivariant: turned in the plane or mirrored, an image gets the pose turned likewise, by
    construction. New images are seen by the network, and a few Gauss-Newton steps against the volume do the rest.

    Parameters
    ----------
    init : estimator, array-like of shape (n_images, 3, 3) or None, default=None
        Where the poses that are refined come from. None: :class:`~skcryo.reconstruction.AbInitioVolume`. An estimator
        with ``fit`` that has ``rotations_`` then, and maybe ``shifts_``, such as
        :class:`~skcryo.orientation.LUDRotations`, faster for centred images without CTF: one that is fitted already, on
        as many images, is taken to be fitted on these; otherwise a clone is fitted. Or rotations.
    max_shift : float or "auto", default="auto"
        Largest shift in x and in y, in pixels. "auto": 0.055 L. 0: images are centred.
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the ball that holds the particle. "auto": 0.42 L.
    max_ring : int, default=20
        Highest frequency used, in cycles per box; the network sees 14 at most.
    max_iter : int, default=1500
        Steps of training, of 128 images each.
    refine : bool, default=True
        Whether :meth:`predict` refines what the network says against the volume.
    checkpoint_dir : path, default=None
        Folder where the state is saved now and then; a fit that was killed goes on from there, to the same result, if
        data and parameters are the same.
    n_jobs : int, default=None
        Threads of all but the network, which takes one. None: all cores (OMP_NUM_THREADS is respected). Results do not
        depend on it.
    device : {"auto", "cpu", "cuda"}, default="auto"
        Where the network is trained. "auto": on a GPU if torch sees one, else on the CPU.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    rotations_ : ndarray of shape (n_images, 3, 3), float64
        Poses, refined, up to one rotation and hand of all.
    shifts_ : ndarray of shape (n_images, 2), float64
        (x, y) in pixels.
    contrast_ : ndarray of shape (n_images,), float64
        Of mean 1.
    volume_ : ndarray of shape (box, box, box), float32
        What images are compared with: frequencies up to `max_ring` alone, in a box of the same size in Angstrom. For
        one to look at, give ``rotations_`` and ``shifts_`` to :class:`~skcryo.reconstruction.FourierReconstructor`.
    loss_curve_ : list of float
        Loss of each step of training.
    n_iter_ : int
        Steps of training.
    n_rounds_ : int
        Rounds of refinement before.
    weights_ : dict of str to ndarray
        Of the network.
    validation_error_ : float
        Median error in degrees of :meth:`predict` for projections whose poses are known. They are made of the volume
        plus half the difference of two volumes, each from half of the images, so that it counts how wrong the volume
        is.
    converged_ : bool
        Whether the poses had settled, `init` too, and at least nine in ten known poses were found within 20 degrees.
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        The noise's power by ring.
    init_ : estimator
        The fitted one, if there is one.
    pixel_size_ : float or None
    n_features_in_ : int
    image_shape_ : tuple of two ints

    See Also
    --------
    skcryo.reconstruction.AbInitioVolume : Poses without a network; `predict` searches for each image anew.

    Notes
    -----
    The network needs torch (``pip install "skcryo[torch]"``) to be fitted and used.

    Choices: coefficients of angular frequency 12 at most; layers of 64 channels with frequencies up to 12, 6, 4, 3, 2
    and 1; SiLU instead of the paper's ELU, whose kink makes frequencies without end: it takes fewer angles to be
    equivariant, and errors come out a fifth smaller after as many steps. The network's answer is the expectation of the
    pose's columns given the image, by mean squared error; projected to the nearest rotation as in section 4.1. Of the
    paper's common-lines loss :meth:`score` is made; trained by it, networks did not reach vector diffusion maps there.

    References
    ----------
    .. [1] Cesa, Kumar, Behboodi, "Equivariant self-supervised deep pose estimation for cryo EM", TAG-ML (2023).

    Examples
    --------
    >>> from skcryo.orientation import EquivariantPoseNet
    >>> EquivariantPoseNet(max_iter=200, random_state=0)
    EquivariantPoseNet(max_iter=200, random_state=0)
    """

    _parameter_constraints: dict = {
        "init": [HasMethods(["fit"]), "array-like", None],
        "max_shift": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "mask_radius": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "max_ring": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "refine": ["boolean"],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "device": [StrOptions(set(DEVICES))],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        init=None,
        max_shift="auto",
        mask_radius="auto",
        max_ring=20,
        max_iter=1500,
        refine=True,
        checkpoint_dir=None,
        n_jobs=None,
        device="auto",
        random_state=None,
    ):
        self.init = init
        self.max_shift = max_shift
        self.mask_radius = mask_radius
        self.max_ring = max_ring
        self.max_iter = max_iter
        self.refine = refine
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, *, ctf=None):
        """Find poses, refine them, and train the network.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, light on dark. Poses that it may carry are not used.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If torch is not installed.
        ValueError
            If images are not square and finite, or fewer than two; if CTFs come without a pixel size, or rotations for
            `init` are not those of as many images; if there is no such device.

        Warns
        -----
        ConvergenceWarning
            If the poses cannot be trusted.
        """
        import_torch("EquivariantPoseNet")
        resolve_device(self.device, caller="EquivariantPoseNet")
        stack = validate_lazy(self, X, ensure_min_samples=2)
        for _ in iter_finite_chunks(stack):
            pass
        self.pixel_size_, ctf = self._optics(stack, ctf)
        stack = stack.replace(ctf=ctf)
        self._check_lengths(stack.shape[1])
        vars(self).pop("init_", None)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with FitProgress(self, X, y, max_steps=None) as progress:
            with progress.step("first poses"):
                problems = self._find_poses(stack, seed)
            refinement = self._refinement(stack)
            while refinement.round < _MAX_ROUNDS and not refinement.settled and not progress.stopped:
                with progress.step("round"):
                    refinement.run_round()
            self._keep(refinement)
            training = self._training(refinement, seed)
            while training.step < self.max_iter and not progress.stopped:
                with progress.step("training"):
                    training.run(_STEPS_BETWEEN)
            self._keep_network(training)
            errors = self._calibrate(refinement, seed)
        if not refinement.settled:
            problems.append(f"poses still moved by {refinement.change:.2g} degrees in round {refinement.round}")
        lost = float((errors > _LOST).mean())
        if lost > 0.1:
            problems.append(
                f"{lost:.0%} of noisy projections of the volume get poses wrong by more than {_LOST:.0f} degrees: "
                "the noise is too strong, the network not trained for long enough (max_iter) or the particle symmetric"
            )
        self.converged_ = not problems
        if problems and not progress.stopped:
            warnings.warn(
                f"EquivariantPoseNet did not converge: {'; '.join(problems)}", ConvergenceWarning, stacklevel=2
            )
        return self

    def _find_poses(self, stack, seed):
        """Poses to start from; returns what is wrong with them."""
        n, init = len(stack), self.init
        if init is not None and not hasattr(init, "fit"):
            self._start = (check_rotations(init, n, name="init"), np.zeros((n, 2)))
            return []
        if init is None:
            init = AbInitioVolume(
                max_shift=self.max_shift,
                mask_radius=self.mask_radius,
                n_jobs=self._threads(),
                random_state=seed,
                device=self.device,
                checkpoint_dir=self.checkpoint_dir,
            )
        problems = []
        if len(getattr(init, "rotations_", ())) != n:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                init = clone(init).fit(stack)
            for warning in caught:
                if issubclass(warning.category, ConvergenceWarning):
                    problems.append(str(warning.message))
                else:
                    warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        self.init_ = init
        shifts = getattr(init, "shifts_", None)
        self._start = (init.rotations_, np.zeros((n, 2)) if shifts is None else shifts)
        return problems

    def _refinement(self, stack):
        small, padded = stack.shape[1] < _SMALLEST_BOX, _padded(stack)
        spectrum = getattr(getattr(self, "init_", None), "noise_spectrum_", None)
        L = padded.shape[1]
        if spectrum is None or len(spectrum) != L // 2 + 1:
            spectrum = noise_spectrum(padded, radius=0 if small else None)
        self.noise_spectrum_ = spectrum
        images = self._fourier_images(padded)
        return PoseRefinement(
            images,
            *self._start,
            max_shift=self._max_shift(L),
            mask_radius=self._radius(L),
            n_jobs=self._threads(),
        )

    def _keep(self, refinement):
        top = float(refinement.images.radii[-1])
        self.volume_ = refinement.solve(top)
        self.rotations_, self.shifts_ = refinement.fit.rotations, refinement.fit.shifts
        self.contrast_, self.n_rounds_ = refinement.contrast, refinement.round
        rings = np.arange(len(self.noise_spectrum_))
        self.noise_spectrum_ = self.noise_spectrum_ * np.interp(
            rings, np.arange(len(refinement.noise)), refinement.noise
        )
        largest = np.quantile(np.abs(self.shifts_), 0.99) * 1.1
        self._shift_range = max(_LEAST_SHIFT, min(largest, self._max_shift(refinement.images.L)))
        if self._max_shift(refinement.images.L) == 0:
            self._shift_range = _LEAST_SHIFT
        self._shift_unit = max(self._shift_range, _SHIFT_UNIT)

    def _training(self, refinement, seed):
        images = refinement.images
        band = min(_INPUT_BAND, float(images.radii[-1]))
        self._inputs = SteerableInputs(images, refinement.power, band, _MAX_ANGULAR_FREQUENCY)
        reprojections = Reprojections(
            images,
            VolumeProjector(self.volume_),
            self.contrast_,
            self._inputs,
            max_shift=self._shift_range,
            n_views=min(_N_VIEWS, BATCH * self.max_iter),
            seed=seed,
        )
        clean, noise, filters, _, _ = reprojections.draw_values(
            min(_N_KNOWN, BATCH * self.max_iter), np.random.default_rng([seed, 1])
        )
        self._inputs.reduce(self._inputs.of_values(clean, filters), self._inputs.of_values(clean + noise, filters))
        network = O2MLP(self._inputs.sizes)
        weights = network.initial_weights(np.random.default_rng([seed, 4]))
        device = resolve_device(self.device, caller="EquivariantPoseNet")
        return PoseTraining(network, weights, reprojections.draw, self.max_iter, self._shift_unit, seed, device)

    def _keep_network(self, training):
        self.weights_ = training.weights
        self.loss_curve_, self.n_iter_ = training.losses, training.step

    def _calibrate(self, refinement, seed):
        """Learn errors from projections of known poses; returns those of :meth:`predict`, in degrees."""
        images, L = refinement.images, refinement.images.L
        top, box = float(images.radii[-1]), len(self.volume_)
        halves, order = [], np.random.default_rng([seed, 2]).permutation(len(images))
        for rows in (np.sort(order[::2]), np.sort(order[1::2])):
            sums = FourierAccumulator(box)
            add_images(
                sums,
                images.take(rows),
                self.rotations_[rows],
                self.shifts_[rows],
                contrast=self.contrast_[rows],
                n_jobs=self._threads(),
            )
            halves.append(solve_volume(sums, refinement.power, top, self._radius(L) * box / L))
        true, n = self.volume_ + (halves[0] - halves[1]) / 2, min(_N_KNOWN, BATCH * self.max_iter)
        known = Reprojections(
            images,
            VolumeProjector(true),
            self.contrast_,
            None,
            max_shift=self._shift_range,
            n_views=n,
            seed=seed + 1,
        )
        clean, noise, filters, rotations, _ = known.draw_values(n, np.random.default_rng([seed, 3]))
        found = self._poses(FourierImages(clean + noise, filters, images.points, L), True)
        errors = np.degrees(geodesic_distance(found["network_rotations"], rotations))
        self._network_errors = ErrorModel(found["network_known"], errors)
        errors = np.degrees(geodesic_distance(found["rotations"], rotations))
        self._refined_errors = ErrorModel(found["known"], errors)
        self.validation_error_ = float(np.median(errors))
        return errors

    def fit_predict(self, X, y=None, *, ctf=None):
        """Fit, and return the rotations of the images.

        Parameters
        ----------
        X, y, ctf : as in :meth:`fit`

        Returns
        -------
        rotations : ndarray of shape (n_images, 3, 3), float64
            ``rotations_``.
        """
        return self.fit(X, y, ctf=ctf).rotations_

    # ------------------------------------------------------------------------------------------- arguments
    def _threads(self):
        return max_threads() if self.n_jobs is None else joblib.effective_n_jobs(self.n_jobs)

    def _optics(self, stack, ctf):
        pixel_size, ctf = resolve_pixel_size(stack), resolve_ctf(stack, ctf)
        if ctf is not None and pixel_size is None:
            raise ValueError("CTFs need the pixel size: give X as a ParticleStack with pixel_size in Angstrom")
        return pixel_size, ctf

    def _check_lengths(self, L):
        L = max(L, _SMALLEST_BOX)
        if self._max_shift(L) >= L / 2:
            raise ValueError(f"max_shift is {self.max_shift} pixels; less than half of the box of {L} is wanted")
        if self._radius(L) > L:
            raise ValueError(f"mask_radius is {self.mask_radius} pixels; at most the box of {L} is wanted")

    def _max_shift(self, L):
        return 0.055 * L if self.max_shift == "auto" else float(self.max_shift)

    def _radius(self, L):
        return 0.42 * L if self.mask_radius == "auto" else float(self.mask_radius)

    def _fourier_images(self, padded):
        return FourierImages.from_stack(
            padded, self.noise_spectrum_, self.max_ring, ctf=padded.ctf, pixel_size=padded.pixel_size
        )

    # ------------------------------------------------------------------------------------------------- use
    def _poses(self, images, refine):
        """Poses of images by the network, and refined, with what is known of their errors."""
        network = O2MLP(self._inputs.sizes)
        device = resolve_device(self.device, caller="EquivariantPoseNet")
        rotations, shifts, squares = evaluate_network(
            network, self.weights_, self._inputs(images), self._shift_unit, device
        )
        # The columns are expectations, of length 1 where the pose is certain.
        spread = np.maximum(1 - np.clip(squares, 0, 1), 1e-4)
        network_known = np.sqrt(np.concatenate([spread, spread.sum(axis=1, keepdims=True)], axis=1))
        found = {"network_rotations": rotations, "network_known": network_known}
        if not refine:
            return found | {"rotations": rotations, "shifts": shifts, "known": network_known}
        projector = VolumeProjector(self.volume_)
        fit = refine_poses(
            images,
            projector,
            rotations,
            shifts,
            contrast_std=_CONTRAST_STD,
            n_steps=_REFINE_STEPS,
            n_jobs=self._threads(),
        )
        contrast = best_contrast(fit, _CONTRAST_STD)
        hessian = pose_normal_equations(images, projector, fit.rotations, fit.shifts, contrast=contrast)[0]
        diagonal = np.einsum("nii->ni", hessian)
        hessian[:, np.arange(5), np.arange(5)] += 1e-6 * diagonal.max(axis=1, keepdims=True) + 1e-9
        variance = np.linalg.inv(hessian)[:, np.arange(3), np.arange(3)].sum(axis=1)
        power = np.square(np.abs(images.values)).sum(axis=1, dtype=np.float64)
        explained = 2 * contrast * fit.cross - contrast**2 * fit.power
        moved = geodesic_distance(fit.rotations, rotations)
        known = np.stack(
            [
                np.sqrt(variance),
                1 / np.maximum(explained, 1.0),
                moved + 0.01,
                network_known[:, 2],
            ],
            axis=1,
        )
        return found | {
            "rotations": fit.rotations,
            "shifts": fit.shifts,
            "contrast": contrast,
            "log_likelihood": explained,
            "excess": (power - explained) / images.values.shape[1] - 1,
            "known": known,
        }

    def predict_poses(self, X, *, ctf=None):
        """Poses of images, each image by itself.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        ctf : structured array of shape (n_images,), default=None
            None: those that `X` carries, if any.

        Returns
        -------
        poses : Bunch
            ``rotations`` (n, 3, 3), in the frame of ``rotations_``; ``shifts`` (n, 2) in pixels; ``uncertainty`` (n,)
            in degrees, see :meth:`predict_uncertainty`; if refined, ``contrast`` (n,) and ``log_likelihood`` (n,) above
            that of no particle.
        """
        parts = []
        for found in self._predicted(X, ctf):
            found["uncertainty"] = self._errors().quantile(found["known"], _LEVEL)
            names = ("rotations", "shifts", "uncertainty", "contrast", "log_likelihood")
            parts.append({name: found[name] for name in names if name in found})
        return Bunch(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _errors(self):
        return self._refined_errors if self.refine else self._network_errors

    def _predicted(self, X, ctf):
        check_is_fitted(self, "weights_")
        import_torch("EquivariantPoseNet")
        validate_parameters(self)
        stack = validate_lazy(self, X, reset=False)
        stack = stack.replace(ctf=self._optics(stack, ctf)[1])
        for where, chunk in iter_finite_chunks(stack, chunk_size=1000):
            part = as_stack(chunk).replace(
                pixel_size=stack.pixel_size, ctf=None if stack.ctf is None else stack.ctf[where]
            )
            images = self._fourier_images(_padded(part))
            found = self._poses(images, self.refine)
            found["lines"] = partial(
                line_bank, images, self._inputs.filters, found["shifts"], _N_THETA, int(self._inputs.band)
            )
            yield found

    def predict(self, X, *, ctf=None):
        """Rotations of images, each image by itself.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`

        Returns
        -------
        rotations : ndarray of shape (n_images, 3, 3), float64
            In the frame of ``rotations_``.
        """
        return self.predict_poses(X, ctf=ctf).rotations

    def predict_uncertainty(self, X, *, ctf=None, level=_LEVEL):
        """How far off the rotations of :meth:`predict` may be.

        Learnt from projections of known poses, so that the true error is below it for a share `level` of images like
        those fitted; what shows no whole particle, or another one, tends to have a large one.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`
        level : float, default=0.9
            The share, between 0 and 1.

        Returns
        -------
        ndarray of shape (n_images,), float64
            Degrees.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}; a number between 0 and 1 is wanted")
        return np.concatenate([self._errors().quantile(found["known"], level) for found in self._predicted(X, ctf)])

    def score(self, X, y=None, *, ctf=None):
        """Minus the common-lines loss: how far images agree along the common lines that their poses predict.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`
        y : None
            Ignored; for scores by true poses see :func:`skcryo.metrics.make_pose_scorer`.

        Returns
        -------
        score : float
            Minus equation 18 over pairs of these images, as a share of what it is for unrelated lines: -1 if they have
            nothing in common, 0 if they are the same.

        Notes
        -----
        Images are Wiener-filtered and centred by the shifts found; each is compared with 50 others, drawn by lot,
        always the same.
        """
        parts = list(self._predicted(X, ctf))
        rotations = np.concatenate([part["rotations"] for part in parts])
        bank = np.concatenate([part["lines"]() for part in parts])
        pairs = sample_pairs(len(rotations), _PARTNERS, np.random.default_rng(0))
        return -common_line_loss(bank, rotations, pairs)


def _padded(stack):
    L = stack.shape[1]
    if L >= _SMALLEST_BOX:
        return stack
    before = (_SMALLEST_BOX - L + 1) // 2
    width = ((0, 0), (before, _SMALLEST_BOX - L - before), (before, _SMALLEST_BOX - L - before))
    return as_stack(np.pad(np.asarray(stack, dtype=np.float32), width)).replace(
        pixel_size=stack.pixel_size, ctf=stack.ctf
    )
