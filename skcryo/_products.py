"""Matrix products of which every row is the same bits whatever the rows around it."""

import numpy as np

from ._ext._products import multiply

__all__ = ["row_products"]


def row_products(a, b, out=None):
    """Product ``a @ b`` in single precision, each element summed in the same order wherever it stands.

    Products by BLAS depend, in their last bits, on where in the matrix a row or a column stands and on how many there
    are, so that an image by itself would not get exactly what it gets among others.

    Parameters
    ----------
    a : ndarray of shape (n, depth), float32
    b : ndarray of shape (depth, n_columns), float32
        Of both, each row is contiguous; rows need not follow each other.
    out : ndarray of shape (n, n_columns), float32, default=None
        Where to put the product; overlaps neither.

    Returns
    -------
    ndarray of shape (n, n_columns), float32

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo._products import row_products
    >>> a = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    >>> b = np.linspace(-1, 1, 270, dtype=np.float32).reshape(30, 9)
    >>> whole = row_products(a, b)
    >>> np.allclose(whole, a @ b, atol=1e-5), np.array_equal(whole[7:8, 3:], row_products(a[7:8], b[:, 3:]))
    (True, True)
    """
    if out is None:
        out = np.empty((len(a), b.shape[1]), dtype=np.float32)
    multiply(a, b, out)
    return out
