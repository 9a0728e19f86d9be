"""Read and write central slices of a Fourier volume on a grid that is twice oversampled.

The grid is stored for kx >= 0 with a margin of copied samples on every side, so that the loops meet no edge.
`gather` interpolates; `scatter` is its exact transpose over the real numbers.
"""

from libc.math cimport floor

cdef extern from *:
    """
    #include <string.h>
    enum { WIDTH = 6, STRIDE = 8 };

    /* Four numbers at once. Without vector types it is a loop: the same sums in the same order. */
    #if defined(__GNUC__)
    typedef float four __attribute__((vector_size(16)));
    #define FMA(acc, x, w) (acc) += (x) * (w)
    #else
    typedef struct { float v[4]; } four;
    #define FMA(acc, x, w) do { for (int q = 0; q < 4; q++) (acc).v[q] += (x).v[q] * (w); } while (0)
    #endif

    static void read_block(const float *start, Py_ssize_t step_y, Py_ssize_t step_z, const float *wx,
                           const float *wy, const float *wz, float *value)
    {
        four acc0, acc1, acc2, line[3];
        float sum[2 * WIDTH], re = 0, im = 0;
        memset(&acc0, 0, sizeof acc0);
        acc1 = acc2 = acc0;
        for (int a = 0; a < WIDTH; a++)
            for (int b = 0; b < WIDTH; b++) {
                const float weight = wz[a] * wy[b];
                memcpy(line, start + a * step_z + b * step_y, sizeof line);
                FMA(acc0, line[0], weight);
                FMA(acc1, line[1], weight);
                FMA(acc2, line[2], weight);
            }
        memcpy(sum, &acc0, sizeof acc0);
        memcpy(sum + 4, &acc1, sizeof acc1);
        memcpy(sum + 8, &acc2, sizeof acc2);
        for (int j = 0; j < WIDTH; j++) {
            re += wx[j] * sum[2 * j];
            im += wx[j] * sum[2 * j + 1];
        }
        value[0] = re;
        value[1] = im;
    }

    static void add_block(float *start, Py_ssize_t step_y, Py_ssize_t step_z, const float *wx,
                          const float *wy, const float *wz, float re, float im)
    {
        float row[2 * WIDTH];
        four add[3], line[3];
        for (int j = 0; j < WIDTH; j++) {
            row[2 * j] = wx[j] * re;
            row[2 * j + 1] = wx[j] * im;
        }
        memcpy(add, row, sizeof add);
        for (int a = 0; a < WIDTH; a++)
            for (int b = 0; b < WIDTH; b++) {
                const float weight = wz[a] * wy[b];
                float *place = start + a * step_z + b * step_y;
                memcpy(line, place, sizeof line);
                FMA(line[0], add[0], weight);
                FMA(line[1], add[1], weight);
                FMA(line[2], add[2], weight);
                memcpy(place, line, sizeof line);
            }
    }
    """
    enum:
        WIDTH      # taps of the interpolation kernel in each direction
        STRIDE     # a row of the table: WIDTH weights, padded
    void read_block(const float* start, Py_ssize_t step_y, Py_ssize_t step_z, const float* wx,
                    const float* wy, const float* wz, float* value) noexcept nogil
    void add_block(float* start, Py_ssize_t step_y, Py_ssize_t step_z, const float* wx, const float* wy,
                   const float* wz, float re, float im) noexcept nogil


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
    cdef Py_ssize_t i, p, ix, iy, iz
    cdef double x, y, z, u, v, bound = n_half - margin
    cdef float wx[STRIDE]
    cdef float wy[STRIDE]
    cdef float wz[STRIDE]
    cdef float value[2]
    cdef float sign
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
                read_block(start, step_y, step_z, wx, wy, wz, value)
                out[i, 2 * targets[p]] = value[0]
                out[i, 2 * targets[p] + 1] = sign * value[1]


def scatter(float[:, :, ::1] grid, const double[:, :, ::1] rotations, const double[:, ::1] points,
            const long long[::1] targets, const float[:, ::1] table, Py_ssize_t margin, Py_ssize_t n_half,
            const float[:, ::1] values):
    """Add values[i, targets[p]] to grid with the weights of `gather`: its transpose."""
    cdef Py_ssize_t n = rotations.shape[0], n_points = points.shape[0]
    cdef Py_ssize_t step_y = grid.shape[2], step_z = grid.shape[1] * grid.shape[2]
    cdef Py_ssize_t i, p, ix, iy, iz
    cdef double x, y, z, u, v, bound = n_half - margin
    cdef float wx[STRIDE]
    cdef float wy[STRIDE]
    cdef float wz[STRIDE]
    cdef float sign
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
                start = &grid[0, 0, 0] + iz * step_z + iy * step_y + 2 * ix
                add_block(start, step_y, step_z, wx, wy, wz, values[i, 2 * targets[p]],
                          sign * values[i, 2 * targets[p] + 1])
