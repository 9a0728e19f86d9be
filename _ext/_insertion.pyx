"""Sums that a volume is made of: slices inserted with their weights, and the sums divided.

The grid is that of `_projection`: twice oversampled, stored for kx >= 0, with a margin of `margin` samples on every
side. Frequency zero is at n_half along z and y, at margin along x.
"""

from libc.math cimport floor, sqrt

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

    static void insert_block(float *numerator, float *denominator, Py_ssize_t step_y, Py_ssize_t step_z,
                             int first, int last, const float *wx, const float *wy, const float *wz,
                             float re, float im, float weight)
    {
        float row[2 * WIDTH];
        float light[WIDTH];
        four add[3], line[3], add_light, line_light;
        for (int j = 0; j < WIDTH; j++) {
            row[2 * j] = wx[j] * re;
            row[2 * j + 1] = wx[j] * im;
            light[j] = wx[j] * weight;
        }
        memcpy(add, row, sizeof add);
        memcpy(&add_light, light, sizeof add_light);
        for (int a = first; a < last; a++)
            for (int b = 0; b < WIDTH; b++) {
                const float w = wz[a] * wy[b];
                float *place = numerator + 2 * (a * step_z + b * step_y);
                float *below = denominator + a * step_z + b * step_y;
                memcpy(line, place, sizeof line);
                FMA(line[0], add[0], w);
                FMA(line[1], add[1], w);
                FMA(line[2], add[2], w);
                memcpy(place, line, sizeof line);
                memcpy(&line_light, below, sizeof line_light);
                FMA(line_light, add_light, w);
                memcpy(below, &line_light, sizeof line_light);
                below[4] += light[4] * w;
                below[5] += light[5] * w;
            }
    }
    """
    enum:
        WIDTH      # taps of the interpolation kernel in each direction
        STRIDE     # a row of the table: WIDTH weights, padded
    void insert_block(float* numerator, float* denominator, Py_ssize_t step_y, Py_ssize_t step_z, int first,
                      int last, const float* wx, const float* wy, const float* wz, float re, float im,
                      float weight) noexcept nogil


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


def insert(float[:, :, ::1] numerator, float[:, :, ::1] denominator, const double[:, :, ::1] rotations,
           const double[:, ::1] points, const float[:, ::1] table, Py_ssize_t margin, Py_ssize_t n_half,
           const float[:, ::1] values, const float[:, ::1] weights, Py_ssize_t z_start, Py_ssize_t z_stop):
    """Add values[i, p] and weights[i, p] at R_i (points[p], 0) to the planes z_start, ..., z_stop - 1.

    numerator: (n_z, n_y, 2 n_x), complex numbers as pairs of float; denominator: (n_z, n_y, n_x); points: (n_points, 2)
    in grid steps; values: (n, 2 n_points); weights: (n, n_points). Threads that own different planes meet in no
    sample, and each sample is summed in the order of the images, however the planes are dealt out.
    """
    cdef Py_ssize_t n = rotations.shape[0], n_points = points.shape[0]
    cdef Py_ssize_t step_y = denominator.shape[2], step_z = denominator.shape[1] * denominator.shape[2]
    cdef Py_ssize_t i, p, ix, iy, iz, first, last, start
    cdef double x, y, z, u, v, bound = n_half - margin
    cdef float wx[STRIDE]
    cdef float wy[STRIDE]
    cdef float wz[STRIDE]
    cdef float re, im, weight
    with nogil:
        for i in range(n):
            for p in range(n_points):
                weight = weights[i, p]
                re = values[i, 2 * p]
                im = values[i, 2 * p + 1]
                if weight == 0 and re == 0 and im == 0:
                    continue
                u = points[p, 0]
                v = points[p, 1]
                x = u * rotations[i, 0, 0] + v * rotations[i, 0, 1]
                z = u * rotations[i, 2, 0] + v * rotations[i, 2, 1]
                if x < 0:
                    z = -z
                if z > bound or z < -bound:
                    continue
                iz = <Py_ssize_t> floor(z) - (WIDTH // 2 - 1) + n_half
                if iz >= z_stop or iz + WIDTH <= z_start:
                    continue
                y = u * rotations[i, 1, 0] + v * rotations[i, 1, 1]
                if x < 0:
                    x = -x
                    y = -y
                    im = -im
                if x > bound or y > bound or y < -bound:
                    continue
                ix = _weights(x, table, wx) + margin
                iy = _weights(y, table, wy) + n_half
                iz = _weights(z, table, wz) + n_half
                first = z_start - iz if z_start > iz else 0
                last = z_stop - iz if z_stop - iz < WIDTH else WIDTH
                start = iz * step_z + iy * step_y + ix
                insert_block(&numerator[0, 0, 0] + 2 * start, &denominator[0, 0, 0] + start, step_y, step_z,
                             <int> first, <int> last, wx, wy, wz, re, im, weight)


cdef struct Sums:
    double re
    double im
    double weight


cdef inline Sums _both_sides(const float[:, :, ::1] numerator, const float[:, :, ::1] denominator, Py_ssize_t iz,
                             Py_ssize_t iy, Py_ssize_t x, Py_ssize_t margin, Py_ssize_t n_half) noexcept nogil:
    """The sums at one sample, what was put beyond kx = 0 by the opposite points included."""
    cdef Sums s
    cdef Py_ssize_t mz, my, mx
    s.re = numerator[iz, iy, 2 * (x + margin)]
    s.im = numerator[iz, iy, 2 * (x + margin) + 1]
    s.weight = denominator[iz, iy, x + margin]
    if x <= margin:
        mz = 2 * n_half - iz
        my = 2 * n_half - iy
        mx = margin - x
        s.re += numerator[mz, my, 2 * mx]
        s.im -= numerator[mz, my, 2 * mx + 1]
        s.weight += denominator[mz, my, mx]
    return s


cdef inline double _interpolated(const double[::1] table, double shell) noexcept nogil:
    cdef Py_ssize_t k = <Py_ssize_t> shell
    if k >= table.shape[0] - 1:
        return table[table.shape[0] - 1]
    return table[k] + (shell - k) * (table[k + 1] - table[k])


def divide(const float[:, :, ::1] numerator, const float[:, :, ::1] denominator, const double[::1] prior,
           double oversampling, double radius, Py_ssize_t margin, Py_ssize_t n_half, float[:, :, ::1] out):
    """out = numerator / (denominator + prior) within `radius` grid steps of the origin, 0 beyond.

    out: (2 L, 2 L, 2 (L + 1)), frequencies -L, ..., L - 1 along z and y, 0, ..., L along x. prior: one value per
    shell, `oversampling` grid steps apart, read by linear interpolation.
    """
    cdef Py_ssize_t M = out.shape[0], L = out.shape[2] // 2 - 1, jz, jy, x
    cdef double r2, yz2, total, radius2 = radius * radius * (1 + 1e-12)
    cdef Sums s
    with nogil:
        for jz in range(M):
            for jy in range(M):
                yz2 = <double> ((jz - L) * (jz - L) + (jy - L) * (jy - L))
                for x in range(L + 1):
                    r2 = yz2 + <double> (x * x)
                    out[jz, jy, 2 * x] = 0
                    out[jz, jy, 2 * x + 1] = 0
                    if r2 > radius2:
                        continue
                    s = _both_sides(numerator, denominator, jz + margin, jy + margin, x, margin, n_half)
                    total = s.weight + _interpolated(prior, sqrt(r2) / oversampling)
                    if total > 0:
                        out[jz, jy, 2 * x] = <float> (s.re / total)
                        out[jz, jy, 2 * x + 1] = <float> (s.im / total)


def shell_sums(const float[:, :, ::1] numerator, const float[:, :, ::1] denominator, double oversampling,
               Py_ssize_t margin, Py_ssize_t n_half, double[:, ::1] out):
    """Sums over each shell of: 1, denominator, its square, the numerator's squared modulus; out: (n_shells, 4)."""
    cdef Py_ssize_t L = n_half - margin, iz, iy, x, shell
    cdef double yz2, count
    cdef Sums s
    with nogil:
        for iz in range(margin, margin + 2 * L):
            for iy in range(margin, margin + 2 * L):
                yz2 = <double> ((iz - n_half) * (iz - n_half) + (iy - n_half) * (iy - n_half))
                for x in range(L + 1):
                    shell = <Py_ssize_t> (sqrt(yz2 + <double> (x * x)) / oversampling + 0.5)
                    if shell >= out.shape[0]:
                        break
                    s = _both_sides(numerator, denominator, iz, iy, x, margin, n_half)
                    count = 1 if x == 0 else 2
                    out[shell, 0] += count
                    out[shell, 1] += count * s.weight
                    out[shell, 2] += count * s.weight * s.weight
                    out[shell, 3] += count * (s.re * s.re + s.im * s.im)
