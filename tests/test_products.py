import numpy as np
import pytest

from skcryo._ext import _products
from skcryo._products import row_products

SHAPES = [(1, 1, 1), (5, 3, 7), (11, 193, 31), (12, 40, 32), (13, 400, 33), (29, 22, 100), (3, 0, 4), (0, 3, 4)]


@pytest.fixture(params=range(len(_products.VARIANTS)), ids=_products.VARIANTS)
def variant(request):
    if _products.select(request.param) < 0:
        pytest.skip("this processor has not got it")
    yield request.param
    _products.select()


@pytest.mark.parametrize("n, depth, columns", SHAPES)
def test_is_the_product(variant, n, depth, columns):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, depth), (depth, columns)))
    reference = a.astype(np.float64) @ b.astype(np.float64)
    bound = 2e-7 * np.sqrt(depth + 1) * (np.abs(a).astype(np.float64) @ np.abs(b) + 1)
    assert (np.abs(row_products(a, b) - reference) <= bound).all()


def test_bits_do_not_depend_on_place_or_number(variant):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((50, 700)).astype(np.float32), rng.standard_normal((700, 90)).astype(np.float32)
    whole = row_products(a, b)
    for rows in (slice(0, 1), slice(1, 50), slice(7, 20), slice(49, 50), slice(None, None, 3)):
        for columns in (slice(0, 90), slice(5, 6), slice(31, 90), slice(0, 64)):
            assert np.array_equal(row_products(a[rows], b[:, columns]), whole[rows, columns])


def test_variants_with_fused_multiplication_agree():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((40, 500)).astype(np.float32), rng.standard_normal((500, 70)).astype(np.float32)
    found = [row_products(a, b) for isa in (1, 2) if _products.select(isa) == isa]
    _products.select()
    if len(found) < 2:
        pytest.skip("this processor has only one of them")
    assert np.array_equal(*found)


def test_parts_of_larger_matrices():
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal((30, 40)).astype(np.float32) for _ in range(3))
    before = c.copy()
    found = row_products(a[2:8, 3:20], b[:17, 5:12], out=c[10:16, 1:8])
    assert np.shares_memory(found, c)
    assert np.allclose(c[10:16, 1:8], a[2:8, 3:20] @ b[:17, 5:12], atol=1e-4)
    c[10:16, 1:8] = before[10:16, 1:8]
    assert np.array_equal(c, before)


@pytest.mark.parametrize(
    "a, b, out, message",
    [
        ((3, 4), (5, 6), (3, 6), "inconsistent"),
        ((3, 4), (4, 6), (3, 5), "inconsistent"),
        ((3, 4), (4, 6), (4, 6), "inconsistent"),
    ],
)
def test_bad_shapes(a, b, out, message):
    with pytest.raises(ValueError, match=message):
        row_products(*(np.zeros(shape, dtype=np.float32) for shape in (a, b, out)))


def test_bad_layout():
    a = np.zeros((4, 4), dtype=np.float32)
    for arrays in ((a.T[:, ::2], a[:2], a.copy()), (a, a.T[:, :3], a[:, :3].copy()), (a[:, ::2], a[:2], a.copy())):
        with pytest.raises(ValueError, match="next to each other"):
            row_products(*arrays)
