"""Read and write central slices of a Fourier volume on a grid that is twice oversampled.

The grid is stored for kx >= 0 with a margin of copied samples on every side, so that the loops meet no edge.
`gather` interpolates; `scatter` is its exact transpose over the real numbers.
"""

from libc.math cimport floor

cdef enum:
    WIDTH = 6      # taps of the interpolation kernel in each direction
    STRIDE = 8     # a row of the table: WIDTH weights, padded


cdef inline Py_ssize_t _weights(double position, const float[:, ::1] table, float* w) noexcept nogil:
    """Weights of the taps around `position`; returns the index of the first tap."""
    cdef double below = floor(position)
    cdef double fine = (position - below) * (table.shape[0] - 1)
    cdef Py_ssize_t row = <Py_ssize_t> fine
    if row > table.shape[0] - 2:
        row = table.shape[0] - 2
    cdef float fraction = <float> (fine - row)
    cdef const float* a = &table[row, 0]
    cdef Py_ssize_t j
    for j in range(STRIDE):
        w[j] = a[j] + fraction * (a[STRIDE + j] - a[j])
    return <Py_ssize_t> below - (WIDTH // 2 - 1)


def gather(const float[:, :, ::1] grid, const double[:, :, ::1] rotations, const double[:, ::1] points,
           const long long[::1] targets, const float[:, ::1] table, Py_ssize_t margin, Py_ssize_t n_half,
           float[:, ::1] out):
    """out[i, targets[p]] = grid at R_i (points[p], 0), complex numbers as pairs of float.

    grid: (n_z, n_y, 2 n_x); points: (n_points, 2) in grid steps; frequency zero is at n_half along z and y,
    margin along x; out: (n, 2 n_out), only the targets are written.
    """
    cdef Py_ssize_t n = rotations.shape[0], n_points = points.shape[0]
    cdef Py_ssize_t step_y = grid.shape[2], step_z = grid.shape[1] * grid.shape[2]
    cdef Py_ssize_t i, p, a, b, j, ix, iy, iz
    cdef double x, y, z, u, v, bound = n_half - margin
    cdef float wx[STRIDE]
    cdef float wy[STRIDE]
    cdef float wz[STRIDE]
    cdef float acc[2 * WIDTH]
    cdef float weight, re, im, sign
    cdef const float* line
    cdef const float* start
    with nogil:
        for i in range(n):
            for p in range(n_points):
                u = points[p, 0]
                v = points[p, 1]
                x = u * rotations[i, 0, 0] + v * rotations[i, 0, 1]
                y = u * rotations[i, 1, 0] + v * rotations[i, 1, 1]
                z = u * rotations[i, 2, 0] + v * rotations[i, 2, 1]
                sign = 1
                if x < 0:
                    x = -x
                    y = -y
                    z = -z
                    sign = -1
                if x > bound or y > bound or y < -bound or z > bound or z < -bound:
                    out[i, 2 * targets[p]] = 0
                    out[i, 2 * targets[p] + 1] = 0
                    continue
                ix = _weights(x, table, wx) + margin
                iy = _weights(y, table, wy) + n_half
                iz = _weights(z, table, wz) + n_half
                start = &grid[0, 0, 0] + iz * step_z + iy * step_y + 2 * ix
                for j in range(2 * WIDTH):
                    acc[j] = 0
                for a in range(WIDTH):
                    for b in range(WIDTH):
                        line = start + a * step_z + b * step_y
                        weight = wz[a] * wy[b]
                        for j in range(2 * WIDTH):
                            acc[j] += weight * line[j]
                re = 0
                im = 0
                for j in range(WIDTH):
                    re += wx[j] * acc[2 * j]
                    im += wx[j] * acc[2 * j + 1]
                out[i, 2 * targets[p]] = re
                out[i, 2 * targets[p] + 1] = sign * im


def scatter(float[:, :, ::1] grid, const double[:, :, ::1] rotations, const double[:, ::1] points,
            const long long[::1] targets, const float[:, ::1] table, Py_ssize_t margin, Py_ssize_t n_half,
            const float[:, ::1] values):
    """Add values[i, targets[p]] to grid with the weights of `gather`: its transpose."""
    cdef Py_ssize_t n = rotations.shape[0], n_points = points.shape[0]
    cdef Py_ssize_t step_y = grid.shape[2], step_z = grid.shape[1] * grid.shape[2]
    cdef Py_ssize_t i, p, a, b, j, ix, iy, iz
    cdef double x, y, z, u, v, bound = n_half - margin
    cdef float wx[STRIDE]
    cdef float wy[STRIDE]
    cdef float wz[STRIDE]
    cdef float add[2 * WIDTH]
    cdef float weight, re, im, sign
    cdef float* line
    cdef float* start
    with nogil:
        for i in range(n):
            for p in range(n_points):
                u = points[p, 0]
                v = points[p, 1]
                x = u * rotations[i, 0, 0] + v * rotations[i, 0, 1]
                y = u * rotations[i, 1, 0] + v * rotations[i, 1, 1]
                z = u * rotations[i, 2, 0] + v * rotations[i, 2, 1]
                sign = 1
                if x < 0:
                    x = -x
                    y = -y
                    z = -z
                    sign = -1
                if x > bound or y > bound or y < -bound or z > bound or z < -bound:
                    continue
                ix = _weights(x, table, wx) + margin
                iy = _weights(y, table, wy) + n_half
                iz = _weights(z, table, wz) + n_half
                re = values[i, 2 * targets[p]]
                im = sign * values[i, 2 * targets[p] + 1]
                for j in range(WIDTH):
                    add[2 * j] = wx[j] * re
                    add[2 * j + 1] = wx[j] * im
                start = &grid[0, 0, 0] + iz * step_z + iy * step_y + 2 * ix
                for a in range(WIDTH):
                    for b in range(WIDTH):
                        line = start + a * step_z + b * step_y
                        weight = wz[a] * wy[b]
                        for j in range(2 * WIDTH):
                            line[j] += weight * add[j]
