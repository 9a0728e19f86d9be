"""Preprocessing tested as mathematics: what each transformer promises of its images, and of their facts."""

import numpy as np
import pytest
import scipy.fft
from sklearn.base import clone

from skcryo.ctf import apply_ctf, evaluate_ctf, make_ctf
from skcryo.fourier import shell_index, shift_images
from skcryo.particles import ParticleStack
from skcryo.preprocessing import (
    Centerer,
    CircularMask,
    Flattener,
    FourierDownsampler,
    NoiseWhitener,
    NormalizeBackground,
    PhaseFlipper,
    noise_spectrum,
    ring_weights,
)
from skcryo.preprocessing._geometry import distance_from_centre, ring_index, soft_circle

SIDES = pytest.mark.parametrize("side", [32, 33], ids=["even", "odd"])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def white_noise(n_images, side, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n_images, side, side)).astype(dtype)


def coloured_noise(spectrum, n_images, side, seed=0):
    """Noise whose expected |F|^2 / n_pixels is `spectrum` in each ring; the reference is written out."""
    white = np.random.default_rng(seed).standard_normal((n_images, side, side))
    k = np.fft.fftfreq(side) * side
    rings = np.minimum(np.rint(np.hypot(k[:, None], k[None, :])).astype(int), side // 2)
    return np.fft.ifft2(np.fft.fft2(white) * np.sqrt(spectrum[rings])).real.astype(np.float32)


def blob(side, sigma=3.0):
    return np.exp(-(distance_from_centre((side, side)) ** 2) / (2 * sigma**2))


class TestGeometry:
    @SIDES
    def test_rings_agree_with_shells_up_to_nyquist(self, side):
        rings = ring_index((side, side))
        shells = shell_index(side, centred=False)
        assert np.array_equal(rings, np.minimum(shells, side // 2))
        assert np.array_equal(ring_index((side, side), half=True), rings[:, : side // 2 + 1])

    def test_rings_of_a_row_are_its_frequencies(self):
        assert ring_index((1, 6)).tolist() == [[0, 1, 2, 3, 2, 1]]

    @SIDES
    def test_soft_circle_is_centred_and_falls_monotonically(self, side):
        circle = soft_circle((side, side), 8.0, 4.0)
        distance = distance_from_centre((side, side))
        assert np.all(circle[distance <= 8] == 1)
        assert np.all(circle[distance >= 12] == 0)
        order = np.argsort(distance.ravel(), kind="stable")
        assert np.all(np.diff(circle.ravel()[order]) <= 1e-12)


class TestNormalizeBackground:
    @SIDES
    @DTYPES
    @pytest.mark.parametrize("radius", [None, 9.0])
    def test_background_has_mean_0_and_deviation_1(self, side, dtype, radius):
        images = (7 + 3 * white_noise(5, side, dtype=dtype)).astype(dtype)
        outside = distance_from_centre((side, side)) >= (side / 2 if radius is None else radius)
        normal = NormalizeBackground(radius).fit_transform(images)[:, outside].astype(np.float64)
        assert normal.mean(axis=1) == pytest.approx(0, abs=1e-6)
        assert normal.std(axis=1) == pytest.approx(1, abs=1e-6)

    def test_does_not_depend_on_scale_and_offset_of_the_images(self):
        images = white_noise(4, 24, dtype=np.float64)
        expected = NormalizeBackground().fit_transform(images)
        assert NormalizeBackground().fit_transform(4 * images - 11) == pytest.approx(expected, abs=1e-10)

    def test_signal_inside_the_circle_changes_no_background(self):
        images = white_noise(4, 32)
        images[:, 12:20, 12:20] += 100
        outside = distance_from_centre((32, 32)) >= 16
        normal = NormalizeBackground().fit_transform(images)
        assert normal[:, outside].std(axis=1) == pytest.approx(1, abs=1e-5)
        assert np.all(normal[:, 16, 16] > 50)

    def test_large_offset_is_taken_away_without_loss(self):
        # A mean in float32 of pixels around 1e6 would be wrong by more than the noise.
        images = np.round(white_noise(3, 32) * 4) / 4
        shifted = (images + 2.0**16).astype(np.float32)
        assert NormalizeBackground().fit_transform(shifted) == pytest.approx(
            NormalizeBackground().fit_transform(images), abs=1e-4
        )

    def test_ramp_is_taken_away(self):
        images = white_noise(4, 32, dtype=np.float64)
        y, x = np.mgrid[:32, :32]
        ramps = np.array([0.5, -1, 2, 0])[:, None, None] * x + np.array([0, 3, 1, -1])[:, None, None] * y + 5
        normalizer = NormalizeBackground(ramp=True)
        expected = normalizer.fit_transform(images)
        assert normalizer.fit_transform(images + ramps) == pytest.approx(expected, abs=1e-9)
        # Without the option a ramp of that slope stays.
        assert np.abs(NormalizeBackground().fit_transform(images + ramps) - expected).max() > 1

    def test_constant_image_is_named(self):
        images = white_noise(6, 16)
        images[4] = 0.1
        with pytest.raises(ValueError, match=r"image 4 has zero variance in its background"):
            NormalizeBackground().fit_transform(images)

    def test_constant_image_of_a_lazy_stack_is_named_when_it_is_read(self, file_backed):
        images = white_noise(6, 16)
        images[4] = 2.0
        lazy = NormalizeBackground().fit_transform(file_backed(images))
        assert np.asarray(lazy[:4]).shape == (4, 16, 16)
        with pytest.raises(ValueError, match=r"image 4 has zero variance"):
            np.asarray(lazy[2:])


class TestCircularMask:
    @SIDES
    def test_keeps_inside_and_clears_outside(self, side):
        images = white_noise(3, side)
        masked = CircularMask(8.0, edge_width=3.0).fit_transform(images)
        distance = distance_from_centre((side, side))
        assert np.array_equal(masked[:, distance <= 8], images[:, distance <= 8])
        assert np.all(masked[:, distance >= 11] == 0)
        between = (distance > 8) & (distance < 11)
        assert np.all(np.abs(masked[:, between]) <= np.abs(images[:, between]))

    def test_background_fill_leaves_constants_alone(self):
        images = np.array([3.0, -2.0])[:, None, None] * np.ones((2, 32, 32))
        assert CircularMask(fill="background").fit_transform(images) == pytest.approx(images)
        assert CircularMask().fit_transform(images)[:, 0, 0] == pytest.approx(0)

    def test_default_ends_at_the_border(self):
        mask = CircularMask().fit_transform(np.ones((1, 64, 64)))[0]
        distance = distance_from_centre((64, 64))
        assert np.all(mask[distance <= 27] == 1)
        assert np.all(mask[distance >= 32] == 0)
        assert np.all(mask[(distance > 27.5) & (distance < 31.5)] > 0)


class TestNoiseSpectrum:
    SPECTRA = {
        "white": lambda r, top: np.ones(len(r)),
        "falling": lambda r, top: 10.0 ** (-r / top),
        "steep": lambda r, top: 1 / (1 + (r / 3.0) ** 2) + 0.05,
    }

    @pytest.mark.parametrize("kind", SPECTRA)
    @pytest.mark.parametrize("side", [48, 49], ids=["even", "odd"])
    def test_finds_the_spectrum_behind_the_mask(self, kind, side):
        rings = np.arange(side // 2 + 1.0)
        truth = self.SPECTRA[kind](rings, side // 2)
        noise = coloured_noise(truth, 600, side, seed=1)
        noise += 3 * np.random.default_rng(2).standard_normal((600, 1, 1), dtype=np.float32)
        ratio = noise_spectrum(noise) / truth
        # Dividing by the mask's energy alone scores 0.64 to 0.85 in ring 1, and an rms of 0.08 when steep.
        assert ratio[1] == pytest.approx(1, abs=0.12)
        assert np.sqrt(np.mean((ratio[1:] - 1) ** 2)) < 0.04

    def test_scales_with_the_variance(self):
        noise = white_noise(50, 32)
        assert noise_spectrum(3 * noise) == pytest.approx(9 * noise_spectrum(noise), rel=1e-4)

    def test_does_not_depend_on_grey_levels_order_or_chunks(self):
        noise = white_noise(40, 32)
        expected = noise_spectrum(noise)
        levels = np.arange(40, dtype=np.float32)[:, None, None]
        assert noise_spectrum(noise + levels) == pytest.approx(expected, rel=1e-3)
        assert noise_spectrum(noise[::-1]) == pytest.approx(expected, rel=1e-5)
        assert noise_spectrum(noise, chunk_size=7) == pytest.approx(expected, rel=1e-5)

    def test_signal_inside_the_circle_is_not_heard(self):
        noise = white_noise(200, 48)
        signal = 30 * blob(48, sigma=4.0).astype(np.float32)
        assert noise_spectrum(noise + signal) == pytest.approx(noise_spectrum(noise), rel=0.01)
        # Taking every pixel as background hears it.
        assert noise_spectrum(noise + signal, radius=0)[2] > 10 * noise_spectrum(noise, radius=0)[2]

    def test_without_a_mask_it_is_the_ring_mean(self):
        noise = coloured_noise(10.0 ** (-np.arange(17) / 16), 20, 32)
        power = np.abs(np.fft.fft2(noise)) ** 2 / 32**2
        expected = [power[:, ring_index((32, 32)) == ring].mean() for ring in range(1, 17)]
        assert noise_spectrum(noise, radius=0)[1:] == pytest.approx(expected, rel=1e-4)

    def test_ring_weights_are_inverse_powers(self):
        spectrum = np.linspace(1, 3, 17)
        weights = ring_weights(spectrum, 32)
        assert weights == pytest.approx(1 / spectrum[ring_index((32, 32))], rel=1e-6)
        assert np.array_equal(ring_weights(spectrum, 32, half=True), weights[:, :17])

    def test_masked_images_have_no_spectrum(self):
        masked = CircularMask(6.0, edge_width=2.0).fit_transform(white_noise(5, 32))
        with pytest.raises(ValueError, match="holds no power"):
            noise_spectrum(masked)


class TestNoiseWhitener:
    def test_noise_becomes_white(self):
        truth = 10.0 ** (-np.arange(25.0) / 24)
        whitened = NoiseWhitener().fit(coloured_noise(truth, 400, 48)).transform(
            coloured_noise(truth, 200, 48, seed=5)
        )
        again = noise_spectrum(whitened, radius=0)
        # The images as they come spread over a factor of ten.
        assert np.abs(again[1:] - 1).max() < 0.2
        assert whitened.std() == pytest.approx(1, abs=0.02)
        neighbour = np.mean(whitened[:, :, 1:] * whitened[:, :, :-1])
        assert abs(neighbour) < 0.02

    def test_inverse_transform_undoes(self):
        images = coloured_noise(10.0 ** (-np.arange(17.0) / 16), 50, 32)
        whitener = NoiseWhitener().fit(images)
        assert whitener.inverse_transform(whitener.transform(images)) == pytest.approx(images, abs=1e-5)

    def test_a_mean_that_is_removed(self):
        images = 3 + white_noise(50, 32)
        kept, removed = (NoiseWhitener(remove_mean=remove).fit(images).transform(images) for remove in (False, True))
        assert removed.mean(axis=(1, 2)) == pytest.approx(0, abs=1e-5)
        assert removed == pytest.approx(kept - kept.mean(axis=(1, 2))[:, None, None], abs=1e-4)

    def test_is_a_filter_common_to_all_images(self):
        images = white_noise(20, 32)
        whitener = NoiseWhitener().fit(images)
        a, b = images[:1], images[1:2]
        total = whitener.transform(2 * a - 3 * b)
        assert total == pytest.approx(2 * whitener.transform(a) - 3 * whitener.transform(b), abs=1e-5)
        # It commutes with the CTF, which therefore still describes the images.
        ctf = make_ctf(1, defocus_u=15000.0)
        there = whitener.transform(apply_ctf(a, ctf, 4.0))
        assert there == pytest.approx(apply_ctf(whitener.transform(a), ctf, 4.0), abs=1e-5)

    def test_transform_needs_a_fit(self):
        from sklearn.exceptions import NotFittedError

        with pytest.raises(NotFittedError):
            NoiseWhitener().transform(white_noise(2, 16))


class TestFourierDownsampler:
    @pytest.mark.parametrize(("side", "box_size"), [(64, 32), (64, 33), (65, 32), (65, 33), (48, 48)])
    def test_band_limited_images_are_sampled_exactly(self, side, box_size):
        # A plane wave about the box's centre, well below the new Nyquist frequency.
        def wave(n):
            y, x = (np.mgrid[:n, :n] - n // 2) / n
            return np.cos(2 * np.pi * (3 * x - 5 * y) + 0.3)[None]

        small = FourierDownsampler(box_size).fit_transform(wave(side))
        assert small == pytest.approx(wave(box_size), abs=1e-10)

    def test_facts_stay_in_step(self):
        shifts = np.array([[3.0, -1.5], [0.0, 2.0]])
        ctf = make_ctf(2)
        stack = ParticleStack(white_noise(2, 60), pixel_size=1.2, shifts=shifts, ctf=ctf)
        small = FourierDownsampler(24).fit_transform(stack)
        assert small.shape == (2, 24, 24)
        assert small.pixel_size == pytest.approx(3.0)
        assert small.shifts == pytest.approx(shifts * 24 / 60)
        assert np.array_equal(small.ctf, ctf)
        assert small.pixel_size * small.shifts == pytest.approx(stack.pixel_size * shifts)

    @pytest.mark.parametrize(("side", "box_size"), [(64, 32), (65, 33), (64, 31), (65, 32)])
    def test_shifts_in_angstrom_still_describe_the_images(self, side, box_size):
        shifts = np.array([[4.0, -6.5]])
        image = blob(side, sigma=5.0)[None]
        moved = ParticleStack(shift_images(image, shifts), pixel_size=1.0, shifts=shifts)
        small = FourierDownsampler(box_size).fit_transform(moved)
        expected = shift_images(FourierDownsampler(box_size).fit_transform(image), small.shifts)
        assert np.asarray(small) == pytest.approx(expected, abs=2e-3)

    def test_ctf_commutes_with_downsampling(self):
        # In physical units: the record stays while the pixels grow.
        ctf = make_ctf(3, defocus_u=[9000.0, 12000.0, 20000.0])
        images = white_noise(3, 64)
        stack = ParticleStack(apply_ctf(images, ctf, 2.0), pixel_size=2.0, ctf=ctf)
        small = FourierDownsampler(31).fit_transform(stack)
        expected = apply_ctf(FourierDownsampler(31).fit_transform(images), small.ctf, small.pixel_size)
        assert np.asarray(small) == pytest.approx(expected, abs=1e-4)

    def test_images_of_a_star_file_stay_in_it_until_they_are_read(self, shared_data):
        from skcryo.io import load_particles

        stack = load_particles(shared_data / "relion31.star")
        small = FourierDownsampler(48).fit_transform(stack)
        assert not small.in_memory
        assert small.pixel_size == pytest.approx(stack.pixel_size * stack.shape[1] / 48)
        assert np.asarray(small[1]).mean() == pytest.approx(np.asarray(stack[1]).mean(), rel=1e-3, abs=1e-4)

    def test_default_halves(self):
        assert FourierDownsampler().fit_transform(white_noise(2, 20)).shape == (2, 10, 10)


class TestPhaseFlipper:
    CTF = make_ctf(3, defocus_u=[9000.0, 15000.0, 22000.0], defocus_v=[8500.0, 15000.0, 20000.0])

    @SIDES
    def test_is_the_product_with_the_sign(self, side):
        images = white_noise(3, side)
        stack = ParticleStack(images, pixel_size=4.0, ctf=self.CTF)
        spectra = scipy.fft.fft2(np.asarray(PhaseFlipper().fit_transform(stack)))
        sign = np.where(evaluate_ctf(self.CTF, side, 4.0, centred=False) < 0, -1, 1)
        # On an even box the Nyquist lines hold k and -k in one, whose CTFs differ when astigmatic.
        inside = shell_index(side, centred=False) < side // 2
        assert spectra[:, inside] == pytest.approx((sign * scipy.fft.fft2(images))[:, inside], abs=1e-3)

    def test_turns_the_ctf_into_its_absolute_value(self):
        images = white_noise(3, 33, dtype=np.float64)
        distorted = ParticleStack(apply_ctf(images, self.CTF, 4.0), pixel_size=4.0, ctf=self.CTF)
        spectra = scipy.fft.fft2(np.asarray(PhaseFlipper().fit_transform(distorted)))
        absolute = np.abs(evaluate_ctf(self.CTF, 33, 4.0, centred=False)) * scipy.fft.fft2(images)
        assert spectra == pytest.approx(absolute, abs=2e-3)

    def test_keeps_the_noise(self):
        images = white_noise(3, 33)
        flipped = PhaseFlipper().fit_transform(ParticleStack(images, pixel_size=4.0, ctf=self.CTF))
        assert np.var(flipped, axis=(1, 2)) == pytest.approx(images.var(axis=(1, 2)), rel=1e-5)

    def test_flipped_stacks_carry_no_ctf_and_are_not_flipped_again(self):
        stack = ParticleStack(white_noise(3, 16), pixel_size=4.0, ctf=self.CTF)
        flipped = PhaseFlipper().fit_transform(stack)
        assert flipped.ctf is None
        assert flipped.pixel_size == 4.0
        with pytest.raises(ValueError, match="needs the CTF"):
            PhaseFlipper().fit_transform(flipped)

    def test_keyword_goes_before_the_stack(self):
        images = white_noise(3, 16)
        other = make_ctf(3, defocus_u=30000.0)
        stack = ParticleStack(images, pixel_size=4.0, ctf=self.CTF)
        explicit = PhaseFlipper().fit_transform(stack, ctf=other)
        expected = PhaseFlipper(pixel_size=4.0).fit_transform(images, ctf=other)
        assert np.array_equal(np.asarray(explicit), expected)
        assert not np.allclose(expected, np.asarray(PhaseFlipper().fit_transform(stack)))

    def test_ignored_without_ctf(self):
        images = white_noise(3, 16)
        assert np.array_equal(PhaseFlipper(missing_ctf="ignore").fit_transform(images), images)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ctf": None}, "PhaseFlipper needs the CTF of the images, and X has none"),
            ({"pixel_size": None}, "PhaseFlipper needs the pixel size"),
        ],
    )
    def test_what_is_missing_is_named(self, change, message):
        stack = ParticleStack(white_noise(3, 16), pixel_size=4.0, ctf=self.CTF).replace(**change)
        with pytest.raises(ValueError, match=message):
            PhaseFlipper().fit_transform(stack)

    def test_number_of_records_is_checked(self):
        with pytest.raises(ValueError, match="CTF has 3 records but X has 5 images"):
            PhaseFlipper(pixel_size=2.0).fit_transform(white_noise(5, 16), ctf=self.CTF)


class TestCenterer:
    SHIFTS = np.array([[3.0, -2.0], [-1.5, 4.0], [0.0, 0.0], [2.25, 2.75]])

    @SIDES
    @pytest.mark.parametrize("method", ["radial", "center_of_mass"])
    def test_finds_the_shifts_of_clean_particles(self, side, method):
        images = shift_images(np.repeat(blob(side)[None], 4, axis=0), self.SHIFTS)
        centerer = Centerer(method, max_shift=6, n_iter=5).fit(images)
        assert centerer.estimate_shifts(images) == pytest.approx(self.SHIFTS, abs=0.15)
        centred = centerer.transform(images)
        # Before, the images differ from the centred blob by up to 0.8.
        assert np.abs(centred - blob(side)).max() < 0.05

    def test_noise_is_survived_by_large_shifts_only_roughly(self):
        rng = np.random.default_rng(3)
        shifts = rng.uniform(-8, 8, (60, 2))
        images = shift_images(np.repeat(blob(48, 5.0)[None], 60, axis=0), shifts)
        images += 0.7 * rng.standard_normal(images.shape, dtype=np.float32)
        error = Centerer(max_shift=10, n_iter=4).fit(images).estimate_shifts(images) - shifts
        # Leaving them where they are scores an rms of 6.5 pixels.
        assert np.sqrt(np.mean(np.sum(error**2, axis=1))) < 2.0

    def test_known_shifts_are_applied(self):
        images = shift_images(np.repeat(blob(32)[None], 4, axis=0), self.SHIFTS)
        stack = ParticleStack(images, shifts=self.SHIFTS)
        centred = Centerer("known").fit_transform(stack)
        assert centred.shifts == pytest.approx(0)
        assert np.asarray(centred) == pytest.approx(np.repeat(blob(32)[None], 4, axis=0), abs=1e-5)

    @pytest.mark.parametrize("side", [64, 65], ids=["even", "odd"])
    def test_known_shifts_agree_with_images_that_relion_centred(self, shared_data, side):
        from skcryo.io import load_particles

        shifted = load_particles(shared_data / f"rln_proj_{side}_shifted.star")
        centred = np.asarray(load_particles(shared_data / f"rln_proj_{side}_centered.star"))
        found = np.asarray(Centerer("known").fit_transform(shifted))
        # The opposite sign, or x for y, correlates by less than 0.1.
        for image, expected in zip(found, centred):
            assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.999

    def test_noise_draws_the_centre_of_mass_to_the_middle(self):
        rng = np.random.default_rng(4)
        shifts = rng.uniform(-4, 4, (60, 2))
        images = shift_images(np.repeat(blob(32)[None], 60, axis=0), shifts)
        images += 0.5 * rng.standard_normal(images.shape, dtype=np.float32)
        found = Centerer("center_of_mass").fit(images).estimate_shifts(images)
        slope = (found * shifts).sum() / (shifts**2).sum()
        # As documented: right without noise (slope 1), too little with it.
        assert 0.05 < slope < 0.5

    def test_remaining_shifts_stay_true(self):
        images = shift_images(np.repeat(blob(32)[None], 4, axis=0), self.SHIFTS)
        wrong = self.SHIFTS + [[0.5, -1.0]]
        centerer = Centerer("center_of_mass").fit(images)
        left = centerer.transform(ParticleStack(images, shifts=wrong)).shifts
        assert left == pytest.approx(wrong - centerer.estimate_shifts(images))
        # Shifts that nobody knew are zero afterwards, as far as the transformer knows.
        assert np.all(centerer.transform(ParticleStack(images)).shifts == 0)

    def test_constant_images_stay_where_they_are(self):
        images = white_noise(5, 24)
        images[2] = 0.5
        assert Centerer().fit(images).estimate_shifts(images)[2] == pytest.approx([0, 0])

    def test_does_not_depend_on_grey_levels(self):
        images = shift_images(np.repeat(blob(32)[None], 4, axis=0), self.SHIFTS)
        grey = images + np.arange(4, dtype=np.float32)[:, None, None]
        for method in ("radial", "center_of_mass"):
            centerer = Centerer(method).fit(images)
            assert centerer.estimate_shifts(grey) == pytest.approx(centerer.estimate_shifts(images), abs=1e-2)

    def test_search_is_bounded(self):
        images = white_noise(30, 32)
        found = Centerer(max_shift=2).fit(images).estimate_shifts(images)
        assert np.abs(found).max() <= 2.5

    def test_dark_image_has_no_centre_of_mass(self):
        images = np.repeat(blob(16)[None], 3, axis=0)
        images[1] *= -1
        images[1, 0, 0] = 1
        with pytest.raises(ValueError, match="image 1 has no centre of mass"):
            Centerer("center_of_mass").fit_transform(images)


class TestFlattener:
    def test_round_trip(self):
        images = white_noise(4, 12)
        flattener = Flattener().fit(images)
        rows = flattener.transform(images)
        assert rows.shape == (4, 144)
        assert np.array_equal(flattener.inverse_transform(rows), images)

    def test_named_columns(self):
        assert list(Flattener().fit(white_noise(4, 2)).get_feature_names_out()) == [
            f"flattener{i}" for i in range(4)
        ]


TRANSFORMERS = [
    NormalizeBackground(),
    NormalizeBackground(ramp=True),
    CircularMask(),
    CircularMask(fill="background"),
    NoiseWhitener(),
    FourierDownsampler(20),
    PhaseFlipper(),
    Centerer(),
    Centerer("center_of_mass"),
    Centerer("known"),
]


@pytest.fixture
def file_backed(tmp_path):
    """Makes a stack of images that lie in a file, by way of a memmap behind a function, as read from disk."""

    def make(images, **facts):
        path = tmp_path / "images.npy"
        np.save(path, images)
        return ParticleStack(np.load(path, mmap_mode="r"), **facts).map(_read)

    return make


def _read(images):
    return images


class CountingReader:
    """Counts the images that were read, to prove that a transformer is lazy."""

    def __init__(self):
        self.n_read = 0

    def __call__(self, images):
        self.n_read += len(images)
        return images


class TestStacks:
    FACTS = {
        "pixel_size": 3.0,
        "ctf": make_ctf(10, defocus_u=np.linspace(8e3, 2e4, 10)),
        "shifts": np.random.default_rng(0).uniform(-2, 2, (10, 2)),
        "rotations": np.repeat(np.eye(3)[None], 10, axis=0),
    }

    @pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
    def test_lazy_stacks_give_what_arrays_in_memory_give(self, transformer, file_backed):
        images = white_noise(10, 32) + blob(32).astype(np.float32)
        in_memory = clone(transformer).fit(ParticleStack(images, **self.FACTS))
        expected = in_memory.transform(ParticleStack(images, **self.FACTS))
        assert expected.in_memory
        lazy = clone(transformer).fit(file_backed(images, **self.FACTS)).transform(
            file_backed(images, **self.FACTS)
        )
        assert not lazy.in_memory
        assert np.asarray(lazy) == pytest.approx(np.asarray(expected), abs=1e-5)
        # Slices, in any order, with the facts that belong to them.
        rows = [7, 2, 2, 9]
        assert np.asarray(lazy[rows]) == pytest.approx(np.asarray(expected)[rows], abs=1e-5)
        assert lazy.pixel_size == expected.pixel_size
        for name in ("ctf", "shifts", "rotations"):
            if getattr(expected, name) is not None:
                assert np.array_equal(getattr(lazy[rows], name), getattr(expected, name)[rows])

    @pytest.mark.parametrize(
        "transformer",
        [t for t in TRANSFORMERS if not isinstance(t, Centerer | NoiseWhitener)],
        ids=repr,
    )
    def test_nothing_is_read_before_it_is_asked_for(self, transformer):
        reader = CountingReader()
        stack = ParticleStack(white_noise(10, 32), **self.FACTS).map(reader)
        lazy = clone(transformer).fit(stack).transform(stack)
        assert reader.n_read == 0
        lazy[3]
        assert reader.n_read == 1

    @pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
    def test_lazy_results_pickle(self, transformer, file_backed):
        import pickle

        stack = file_backed(white_noise(10, 32) + 2 * blob(32).astype(np.float32), **self.FACTS)
        lazy = clone(transformer).fit(stack).transform(stack)
        copied = pickle.loads(pickle.dumps(lazy[2:6]))
        assert np.array_equal(np.asarray(copied), np.asarray(lazy[2:6]))

    @pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
    @DTYPES
    def test_dtype_is_kept_and_input_is_not_touched(self, transformer, dtype):
        images = (white_noise(10, 32) + blob(32)).astype(dtype)
        before = images.copy()
        out = clone(transformer).fit_transform(ParticleStack(images, **self.FACTS))
        assert out.dtype == dtype
        assert np.asarray(out).dtype == dtype
        assert np.array_equal(images, before)

    def test_a_chain_of_all_stays_lazy_and_right(self, file_backed):
        from sklearn.pipeline import make_pipeline

        chain = make_pipeline(
            PhaseFlipper(), FourierDownsampler(24), NormalizeBackground(), NoiseWhitener(), CircularMask()
        )
        images = white_noise(10, 32)
        expected = clone(chain).fit_transform(ParticleStack(images, **self.FACTS))
        lazy = clone(chain).fit_transform(file_backed(images, **self.FACTS))
        assert not lazy.in_memory
        assert lazy.pixel_size == pytest.approx(4.0)
        assert lazy.ctf is None
        assert np.asarray(lazy) == pytest.approx(np.asarray(expected), abs=1e-4)

    def test_memory_stays_bounded(self, tmp_path):
        import tracemalloc

        # 64 MB of images in a file: whitening reads them all, and must not hold them all.
        path = tmp_path / "large.npy"
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1024, 128, 128))
        images[:] = white_noise(16, 128).repeat(64, axis=0)
        images.flush()
        stack = ParticleStack(np.load(path, mmap_mode="r")).map(_read)
        NoiseWhitener().fit(stack[:1])
        tracemalloc.start()
        spectrum = noise_spectrum(stack, chunk_size=32)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert spectrum[1:] == pytest.approx(1, abs=0.5)
        assert peak < 24e6
