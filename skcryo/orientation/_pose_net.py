"""Poses by a network that turns with the image, trained on projections of the volume that the images make."""

import warnings
from functools import partial
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch

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
    padded_to,
    resolve_optics,
    validate_lazy,
    validate_parameters,
)
from ..alignment import FourierImages
from ..particles import as_stack
from ..preprocessing import noise_spectrum
from ..projection import VolumeProjector
from ..reconstruction import AbInitioVolume
from ..reconstruction._ab_initio_start import signal_power
from ..rotations import check_rotations
from ._pose_net_architectures import ARCHITECTURES
from ._pose_net_checkpoint import FitSaver
from ._pose_net_common_lines import LINE_BATCH, LineTraining
from ._pose_net_context import FittedContext
from ._pose_net_file import SavedPoseNet
from ._pose_net_half_turns import HalfTurns
from ._pose_net_inputs import SteerableInputs
from ._pose_net_lines import common_line_loss, line_bank, sample_pairs
from ._pose_net_predictor import PosePredictor
from ._pose_net_reprojections import Reprojections
from ._pose_net_start import fitted_quietly
from ._pose_net_training import BATCH, PoseTraining, ReprojectionLoss
from ._pose_net_verdict import is_ambiguous, pose_problems
from ._pose_refinement import PoseRefinement
from ._vector_diffusion_maps import VectorDiffusionMaps

__all__ = ["EquivariantPoseNet"]

_SMALLEST_BOX = 16  # smaller ones have no functions of angular frequency 1
_MAX_ROUNDS, _SETTLED = 24, {"tol": 0.02, "least": 0.03}
_LEAST_FOR_NEIGHBORS = 500  # images; of fewer the nearest are far apart
# Share of images lost, by the first search, where their start is to be another one: with right starts it is up to 0.03
# at low signal, with wrong ones 0.12 and more.
_MISLED = 0.08
_INPUT_BAND, _MAX_ANGULAR_FREQUENCY = 14.0, 12
_N_VIEWS = 8192
_N_KNOWN = 2000  # projections that components, and errors, are learnt from; never more than in training
_LEAST_SHIFT = 0.25  # pixels; shifts drawn in training are at least that
_SHIFT_UNIT = 2.0  # pixels, or the largest shift: smaller ones must not outweigh poses in the loss
_STEPS_BETWEEN = 50
_LEVEL = 0.9
_PARTNERS, _N_THETA = 50, 180
_CENTRED = 0.2  # of the largest shift: what is left of it after images were seen once


class EquivariantPoseNet(SavedPoseNet, CallbackSupportMixin, StackTagsMixin, BaseEstimator):
    """Poses of images by an equivariant network, which then knows those of new images at once.

    Poses of the images are found without a network and refined against the volume that they make. Of this volume
    projections are made, with the noise, the CTFs, the contrasts and the shifts of the data, and a network is trained
    to tell their poses. It is equivariant: turned in the plane or mirrored, an image gets the pose turned likewise, by
    construction. New images are seen by the network, and a few Gauss-Newton steps against the volume do the rest.

    Parameters
    ----------
    architecture : {"o2-mlp", "mlp", "mlp-attention", "o2-gnn", "so3-o2-gnn"}, default="o2-mlp"
        "o2-mlp": equivariant under turns and mirror images in the plane (section 4.3 of the paper). "mlp": one that
        knows nothing of them (section 4.2), for comparison. The others, for common lines alone, look at several images,
        in :meth:`predict` at the image and at fitted ones: "mlp-attention" (section 4.2) by attention, "o2-gnn" and
        "so3-o2-gnn" (section 4.4) by messages from those alike, turned as these are, the last one with functions of
        rotations.
    training : {"reprojections", "common-lines"}, default="reprojections"
        What the network learns from. "reprojections": projections of the volume, whose poses are known. "common-lines":
        the images alone, by how far they disagree along the common lines of the poses that the network predicts
        (section 3 of the paper); then poses of the network are what is refined. From scratch, without `init`, they may
        be all wrong.
    line_loss : {"squared", "product"}, default="squared"
        Of common lines: equation 18, or 17.
    half_turns : bool, default=False
        With ``training="common-lines"``: whether the network says how likely each pose is half a turn in the plane off,
        and one of the two is drawn by lot in training (section 4 of the paper). It does harm.
    init : estimator, array-like of shape (n_images, 3, 3) or None, default=None
        Where the poses that are refined come from. None: :class:`~skcryo.orientation.VectorDiffusionMaps` for 500 or
        more centred images (`max_shift` is 0) without CTF, unless it says that its poses may be wrong, or a search
        finds more than 8 % of the images elsewhere; for all others
        :class:`~skcryo.reconstruction.AbInitioVolume`. An estimator with ``fit`` that has ``rotations_`` then, and
        maybe ``shifts_``, such as :class:`~skcryo.orientation.LUDRotations`: one that is fitted already, on as many
        images, is taken to be fitted on these; otherwise a clone is fitted. Or rotations. With
        ``training="common-lines"`` None is from scratch; otherwise the network learns these poses first.
    max_shift : float or "auto", default="auto"
        Largest shift in x and in y, in pixels. "auto": 0.055 L. 0: images are centred.
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the ball that holds the particle. "auto": 0.42 L.
    max_ring : int, default=20
        Highest frequency used, in cycles per box; the network sees 14 at most.
    max_iter : int, default=1500
        Steps of training, of 128 images each; by common lines of 256.
    refine : bool, default=True
        Whether :meth:`predict` refines what the network says against the volume.
    checkpoint_dir : path, default=None
        Folder where the state is saved, at most every ten seconds, that of the ab initio volume too; a fit that was
        killed goes on from there, to the same result, if data and parameters are the same.
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
    line_agreement_ : float
        How well the images agree along the common lines of their poses, as a share of how well projections of the
        volume at these poses, with noise, would: near 1 if it is a volume of these images.
    converged_ : bool
        Whether the poses had settled, `init` too, nine in ten known poses were found within 20 degrees, and
        ``line_agreement_`` is above 0.6.
    ambiguous_ : bool
        Whether other poses fit as well, because the particle is symmetric: projections of the volume, without noise,
        are explained to more than 93 % by poses more than 30 degrees away.
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
    equivariant, and errors came out a sixth smaller after as many steps. The network's answer is the expectation of the
    pose's columns given the image, by mean squared error, projected to the nearest rotation as in section 4.1. Images
    off centre are seen twice, the second time with the shift undone that the network saw first. Images whose pose may
    be more than 10 degrees off after they were refined are searched for on a grid over all poses. With
    ``training="common-lines"`` a step has 256 images, each compared with 50 others, where the paper has 200, lines are
    interpolated between 180 rays, and six tenths of the steps are for trials of 120 steps from other weights each, of
    which the one goes on whose images agree best. Half turns are not drawn by lot, as that folds the map of views.

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
        "architecture": [StrOptions(set(ARCHITECTURES))],
        "training": [StrOptions({"reprojections", "common-lines"})],
        "line_loss": [StrOptions({"squared", "product"})],
        "half_turns": ["boolean"],
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
        architecture="o2-mlp",
        training="reprojections",
        line_loss="squared",
        half_turns=False,
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
        self.architecture = architecture
        self.training = training
        self.line_loss = line_loss
        self.half_turns = half_turns
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
            `init` are not those of as many images; if the checkpoint is that of another fit; if there is no such
            device.

        Warns
        -----
        ConvergenceWarning
            If the poses cannot be trusted.
        """
        import_torch("EquivariantPoseNet")
        resolve_device(self.device, caller="EquivariantPoseNet")
        if self.training == "reprojections":
            self._check_reprojections()
        stack = validate_lazy(self, X, ensure_min_samples=2)
        for _ in iter_finite_chunks(stack):
            pass
        self.pixel_size_, ctf = resolve_optics(stack, ctf)
        stack = stack.replace(ctf=ctf)
        self._check_lengths(stack.shape[1])
        vars(self).pop("init_", None)
        self._by_neighbors = False
        saver = FitSaver(self, stack)
        seed = saver.seed
        with FitProgress(self, X, y, max_steps=None) as progress:
            with progress.step("first poses"):
                self._start, problems = None, []
                if self.training == "reprojections" or self.init is not None:
                    problems = self._find_poses(stack, seed)
            images = self._fit_images(stack)
            if self.training == "common-lines":
                self._train(self._line_training(images, seed), saver, progress)
                found = self._predictor.by_network(images, self.device)
                self._start = found["rotations"], found["shifts"]
            refinement = self._refinement(images)
            refinement.settle(progress, _MAX_ROUNDS, most_lost=_MISLED if self._by_neighbors else 1)
            if self._by_neighbors and (refinement.lost or 0) > _MISLED and not progress.stopped:
                # Neighbours mislead where views of a molecule look alike from different sides.
                with progress.step("first poses"):
                    problems = self._find_poses(stack, seed, neighbors=False)
                refinement = self._refinement(self._fit_images(stack))
                refinement.settle(progress, _MAX_ROUNDS)
            self._keep(refinement)
            if self.training == "reprojections":
                self._train(self._training(refinement, seed), saver, progress)
            n = min(_N_KNOWN, BATCH * self.max_iter)
            errors = self._predictor.calibrate(refinement, self.volume_, n, seed, self.device, self._threads())
            resemblance = self._predictor.resemblance(refinement.images, seed, self._threads())
            self.validation_error_ = float(np.median(errors))
            self.line_agreement_ = self._predictor.line_agreement(refinement, _N_THETA, _PARTNERS)
        self.ambiguous_ = is_ambiguous(resemblance)
        problems += pose_problems(refinement, errors, resemblance, self.line_agreement_)
        self.converged_ = not problems
        if problems and not progress.stopped:
            warnings.warn(
                f"EquivariantPoseNet did not converge: {'; '.join(problems)}", ConvergenceWarning, stacklevel=2
            )
        return self

    def _find_poses(self, stack, seed, neighbors=True):
        """Poses to start from, by default of neighbours where these may do; returns what is wrong with them."""
        init, problems = self.init, []
        if init is not None and not hasattr(init, "fit"):
            self._start = (check_rotations(init, len(stack), name="init"), np.zeros((len(stack), 2)))
            return problems
        centred = self._max_shift(max(stack.shape[1], _SMALLEST_BOX)) == 0
        if init is None and neighbors and centred and stack.ctf is None and len(stack) >= _LEAST_FOR_NEIGHBORS:
            init, problems = fitted_quietly(VectorDiffusionMaps(n_jobs=self._threads()), stack)
            init = None if problems else init
        self._by_neighbors = init is not self.init
        if init is None:
            options = {"max_shift": self.max_shift, "mask_radius": self.mask_radius, "device": self.device}
            init = AbInitioVolume(
                n_jobs=self._threads(), random_state=seed, checkpoint_dir=self.checkpoint_dir, **options
            )
        if len(getattr(init, "rotations_", ())) != len(stack):
            init, problems = fitted_quietly(init, stack)
        self.init_ = init
        shifts = getattr(init, "shifts_", None)
        self._start = (init.rotations_, np.zeros((len(stack), 2)) if shifts is None else shifts)
        return problems

    def _fit_images(self, stack):
        small, padded = stack.shape[1] < _SMALLEST_BOX, padded_to(stack, _SMALLEST_BOX)
        spectrum = getattr(getattr(self, "init_", None), "noise_spectrum_", None)
        L = padded.shape[1]
        if spectrum is None or len(spectrum) != L // 2 + 1:
            spectrum = noise_spectrum(padded, radius=0 if small else None)
        self.noise_spectrum_ = spectrum
        return self._fourier_images(padded)

    def _refinement(self, images):
        L = images.L
        return PoseRefinement(
            images,
            *self._start,
            max_shift=self._max_shift(L),
            mask_radius=self._radius(L),
            **_SETTLED,
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

    def _training(self, refinement, seed):
        images, inputs = refinement.images, self._new_inputs(refinement.images, refinement.power)
        largest = self._max_shift(images.L)
        if largest > 0:
            largest = min(largest, 1.1 * np.quantile(np.abs(self.shifts_), 0.99))
        shift_range = max(_LEAST_SHIFT, largest)
        reprojections = Reprojections(
            images,
            VolumeProjector(self.volume_),
            self.contrast_,
            inputs,
            max_shift=shift_range,
            n_views=min(_N_VIEWS, BATCH * self.max_iter),
            seed=seed,
            centred=_CENTRED,
        )
        random = np.random.default_rng([seed, 1])
        clean, noise, filters, _, _ = reprojections.draw_values(min(_N_KNOWN, BATCH * self.max_iter), random)
        inputs.reduce(inputs.of_values(clean + noise, filters), inputs.of_values(clean, filters))
        predictor, network, device = self._new_predictor(inputs, seed, shift_range, max(shift_range, _SHIFT_UNIT))
        loss = ReprojectionLoss(network, reprojections.draw, predictor.shift_unit, device)
        return PoseTraining(predictor.weights, loss, self.max_iter, seed, device)

    def _line_training(self, images, seed):
        """Training by common lines, of the images alone."""
        inputs = self._new_inputs(images, signal_power(images))
        random = np.random.default_rng([seed, 1])
        noise = random.standard_normal((_N_KNOWN, 2 * inputs.n_points), dtype=np.float32)
        noise = (noise * np.float32(np.sqrt(0.5))).view(np.complex64)
        rows = random.integers(len(images), size=_N_KNOWN) if len(images.filters) > 1 else slice(None)
        inputs.reduce_by_noise(inputs(images), inputs.of_values(noise, images.filters[rows]))
        predictor, network, device = self._new_predictor(inputs, seed, self._max_shift(images.L), 1.0)
        seen = inputs(images)
        if network.sees_others:
            predictor.context = FittedContext(seen, inputs.sizes, network.n_frame, LINE_BATCH, seed, self._threads())
            seen = predictor.context.fitted
        bank = line_bank(images, inputs.filters, np.zeros((len(images), 2)), _N_THETA, int(inputs.band))
        start = None if self._start is None else self._start[0]
        return LineTraining(network, seen, bank, self.line_loss, self.max_iter, seed, device, start)

    def _new_inputs(self, images, power):
        band = min(_INPUT_BAND, float(images.radii[-1]))
        return SteerableInputs(images, power, band, _MAX_ANGULAR_FREQUENCY)

    def _new_predictor(self, inputs, seed, shift_range, shift_unit):
        network = ARCHITECTURES[self.architecture](inputs.sizes)
        if self.half_turns:
            network = HalfTurns(network, inputs.sizes)
        weights = network.initial_weights(np.random.default_rng([seed, 4]))
        self._predictor = PosePredictor(
            self.architecture, weights, inputs, shift_range, shift_unit, expectations=self.training == "reprojections"
        )
        return self._predictor, network, resolve_device(self.device, caller="EquivariantPoseNet")

    def _train(self, training, saver, progress):
        saver.restore(training)
        while training.step < self.max_iter and not progress.stopped:
            with progress.step("training"):
                training.run(_STEPS_BETWEEN)
            saver(training, now=progress.stopped or training.step == self.max_iter)
        self.weights_ = self._predictor.weights = training.weights
        self.loss_curve_, self.n_iter_ = training.losses, training.step

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
    def _check_reprojections(self):
        name = "half_turns=True" if self.half_turns else f"architecture={self.architecture!r}"
        if self.half_turns or ARCHITECTURES[self.architecture].sees_others:
            raise ValueError(f"{name} is for training='common-lines'; training is 'reprojections'")

    def _threads(self):
        return max_threads() if self.n_jobs is None else joblib.effective_n_jobs(self.n_jobs)

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
            in degrees, see :meth:`predict_uncertainty`; if refined, ``contrast`` (n,), ``log_likelihood`` (n,) above
            that of no particle, and ``probability`` (n,) that it is the particle, not junk: less than 1 where among the
            fitted images more were as unlike projections as this one than projections with noise are.
        """
        parts = []
        for found in self._predicted(X, ctf):
            found["uncertainty"] = self._predictor.stated_errors(found, _LEVEL)
            if self.refine:
                found["probability"] = self._predictor.probability(found)
            names = ("rotations", "shifts", "uncertainty", "contrast", "log_likelihood", "probability")
            parts.append({name: found[name] for name in names if name in found})
        return Bunch(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _predicted(self, X, ctf):
        check_is_fitted(self, "weights_")
        import_torch("EquivariantPoseNet")
        validate_parameters(self)
        stack = validate_lazy(self, X, reset=False)
        stack = stack.replace(ctf=resolve_optics(stack, ctf)[1])
        for where, chunk in iter_finite_chunks(stack, chunk_size=1000):
            part = as_stack(chunk).replace(
                pixel_size=stack.pixel_size, ctf=None if stack.ctf is None else stack.ctf[where]
            )
            images = self._fourier_images(padded_to(part, _SMALLEST_BOX))
            if self.refine:
                found = self._predictor.poses(images, self.device, self._threads())
            else:
                found = self._predictor.by_network(images, self.device)
            inputs = self._predictor.inputs
            found["lines"] = partial(line_bank, images, inputs.filters, found["shifts"], _N_THETA, int(inputs.band))
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
        those fitted. After refinement it also counts how probable it is that an image does not show the particle, and
        its pose is arbitrary.

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
        return np.concatenate([self._predictor.stated_errors(found, level) for found in self._predicted(X, ctf)])

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
