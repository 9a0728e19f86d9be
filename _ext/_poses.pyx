"""Poses of images: sums over a grid of all poses, and normal equations of single ones.

`best_shifts` and `spread` read log-likelihoods in two parts, even and odd under half a turn in the plane: a slice's
conjugate is the slice turned by 180 degrees, so the sum of the parts is the likelihood of one rotation, their
difference that of another. `normal_equations` tells how well slices of a volume fit images and how that changes with
pose; the volume is on the twice oversampled grid of `_projection`, its interpolant is differentiated exactly.
"""

from libc.math cimport cos, exp, floor, sin

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

    /* out: value, d/dx, d/dy, d/dz, each (re, im). Weights w and their derivatives d, of x, y, z in turn. */
    static void read_gradient(const float *start, Py_ssize_t step_y, Py_ssize_t step_z, const float *w,
                              const float *d, double *out)
    {
        const float *wx = w, *wy = w + STRIDE, *wz = w + 2 * STRIDE;
        const float *dx = d, *dy = d + STRIDE, *dz = d + 2 * STRIDE;
        four acc[9], part[6], line[3];
        float sum[36];
        memset(acc, 0, sizeof acc);
        for (int a = 0; a < WIDTH; a++) {
            memset(part, 0, sizeof part);
            for (int b = 0; b < WIDTH; b++) {
                memcpy(line, start + a * step_z + b * step_y, sizeof line);
                for (int j = 0; j < 3; j++) {
                    FMA(part[j], line[j], wy[b]);
                    FMA(part[3 + j], line[j], dy[b]);
                }
            }
            for (int j = 0; j < 3; j++) {
                FMA(acc[j], part[j], wz[a]);
                FMA(acc[3 + j], part[3 + j], wz[a]);
                FMA(acc[6 + j], part[j], dz[a]);
            }
        }
        memcpy(sum, acc, sizeof sum);
        memset(out, 0, 8 * sizeof *out);
        for (int j = 0; j < WIDTH; j++) {
            for (int part_ = 0; part_ < 2; part_++) {
                out[part_] += wx[j] * sum[2 * j + part_];
                out[2 + part_] += dx[j] * sum[2 * j + part_];
                out[4 + part_] += wx[j] * sum[12 + 2 * j + part_];
                out[6 + part_] += wx[j] * sum[24 + 2 * j + part_];
            }
        }
    }

    /* The largest of even + odd over rows, and of even - odd where minus is wanted, the first of equals. */
    static void largest(const float *restrict even, const float *restrict odd, int n_rows, Py_ssize_t n,
                        float *restrict plus, int *restrict plus_at, float *restrict minus, int *restrict minus_at)
    {
        for (Py_ssize_t j = 0; j < n; j++) {
            plus[j] = even[j] + odd[j];
            plus_at[j] = 0;
        }
        for (int i = 1; i < n_rows; i++) {
            const float *restrict e = even + i * n, *restrict o = odd + i * n;
            for (Py_ssize_t j = 0; j < n; j++) {
                const float value = e[j] + o[j];
                plus_at[j] = value > plus[j] ? i : plus_at[j];
                plus[j] = value > plus[j] ? value : plus[j];
            }
        }
        if (minus == NULL)
            return;
        for (Py_ssize_t j = 0; j < n; j++) {
            minus[j] = even[j] - odd[j];
            minus_at[j] = 0;
        }
        for (int i = 1; i < n_rows; i++) {
            const float *restrict e = even + i * n, *restrict o = odd + i * n;
            for (Py_ssize_t j = 0; j < n; j++) {
                const float value = e[j] - o[j];
                minus_at[j] = value > minus[j] ? i : minus_at[j];
                minus[j] = value > minus[j] ? value : minus[j];
            }
        }
    }

    static void add_scaled(float *restrict out, const float *restrict x, float factor, Py_ssize_t n)
    {
        for (Py_ssize_t j = 0; j < n; j++)
            out[j] += factor * x[j];
    }
    """
    enum:
        WIDTH      # taps of the interpolation kernel in each direction
        STRIDE     # a row of the table: WIDTH weights, padded
    void read_gradient(const float* start, Py_ssize_t step_y, Py_ssize_t step_z, const float* w, const float* d,
                       double* out) noexcept nogil
    void largest(const float* even, const float* odd, int n_rows, Py_ssize_t n, float* plus, int* plus_at,
                 float* minus, int* minus_at) noexcept nogil
    void add_scaled(float* out, const float* x, float factor, Py_ssize_t n) noexcept nogil


def best_shifts(const float[:, :, ::1] even, const float[:, :, ::1] odd, const float[:, ::1] power,
                float[:, :, ::1] best, int[:, :, ::1] shift):
    """The best shift of every image at every rotation.

    even, odd: (n, n_shifts, n_pairs), products of images and slices. power: (n, n_pairs), of the slices. To best
    (n, m, n_pairs) go the largest log-likelihoods 2 (even + odd) - power and, with m = 2, 2 (even - odd) - power; to
    shift, of that shape, where they are.
    """
    cdef Py_ssize_t n = even.shape[0], n_pairs = even.shape[2], m = best.shape[1], i, j, half
    cdef int n_shifts = <int> even.shape[1]
    with nogil:
        for i in range(n):
            largest(&even[i, 0, 0], &odd[i, 0, 0], n_shifts, n_pairs, &best[i, 0, 0], &shift[i, 0, 0],
                    &best[i, 1, 0] if m == 2 else NULL, &shift[i, 1, 0] if m == 2 else NULL)
            for half in range(m):
                for j in range(n_pairs):
                    best[i, half, j] = 2 * best[i, half, j] - power[i, j]


def spread(const float[:, :, ::1] even, const float[:, :, ::1] odd, const float[:, ::1] power,
           const float[:, :, ::1] best, const float[:, :, ::1] values, const float[:, ::1] squares,
           const long long[:, ::1] rotation, const float[::1] highest, double temperature, double log_negligible,
           double[::1] weight, long long[::1] place, float[:, ::1] numerator, float[:, ::1] denominator,
           double[::1] total):
    """Divide images among poses by their posterior.

    even, odd, power, best: as for `best_shifts`. values: (n, n_shifts, 2 P), filtered images, shifts undone; squares:
    (n, P), squared filters. rotation: (m, n_pairs), which row of numerator (n_rotations, 2 P) and denominator
    (n_rotations, P) is added to. highest: (n,), the largest log-likelihoods. weight, place: room for
    m * n_pairs * n_shifts numbers. To total (n,) goes the sum of likelihoods over that of the best pose. Poses with
    less than exp(log_negligible) of the best pose's weight get nothing.
    """
    cdef Py_ssize_t n = even.shape[0], n_shifts = even.shape[1], n_pairs = even.shape[2], m = best.shape[1]
    cdef Py_ssize_t n_points = squares.shape[1], i, j, k, s, half, count, column, last
    cdef float value, top, sign, share, together
    cdef double least, one
    with nogil:
        for i in range(n):
            top = highest[i]
            least = top + log_negligible * temperature
            count = 0
            total[i] = 0
            for half in range(m):
                sign = 1 - 2 * half
                for j in range(n_pairs):
                    if not best[i, half, j] > least:
                        continue
                    for s in range(n_shifts):
                        value = 2 * (even[i, s, j] + sign * odd[i, s, j]) - power[i, j]
                        if value > least:
                            one = exp((<double> value - top) / temperature)
                            total[i] += one
                            weight[count] = one
                            place[count] = (half * n_pairs + j) * n_shifts + s
                            count += 1
            last = -1
            together = 0
            for k in range(count + 1):
                column = place[k] // n_shifts if k < count else -1
                if column != last:
                    if last >= 0:
                        add_scaled(&denominator[rotation[last // n_pairs, last % n_pairs], 0], &squares[i, 0],
                                   together, n_points)
                    last = column
                    together = 0
                if k < count:
                    share = <float> (weight[k] / total[i])
                    together += share
                    add_scaled(&numerator[rotation[column // n_pairs, column % n_pairs], 0],
                               &values[i, place[k] % n_shifts, 0], share, 2 * n_points)


cdef inline Py_ssize_t _taps(double position, const float[:, ::1] table, float* w, float* d) noexcept nogil:
    """Weights of the taps around `position` and their derivatives; returns the index of the first tap."""
    cdef double below = floor(position)
    cdef double steps = table.shape[0] - 1
    cdef double fine = (position - below) * steps
    cdef Py_ssize_t row = <Py_ssize_t> fine
    if row > table.shape[0] - 2:
        row = table.shape[0] - 2
    cdef float fraction = <float> (fine - row)
    cdef const float* a = &table[row, 0]
    cdef Py_ssize_t j
    for j in range(STRIDE):
        w[j] = a[j] + fraction * (a[STRIDE + j] - a[j])
        d[j] = (a[STRIDE + j] - a[j]) * <float> steps
    return <Py_ssize_t> below - (WIDTH // 2 - 1)


def normal_equations(const float[:, :, ::1] grid, Py_ssize_t margin, Py_ssize_t n_half, const float[:, ::1] table,
                     const double[:, :, ::1] rotations, const double[:, ::1] shifts, const float[:, ::1] values,
                     const float[:, ::1] filters, const double[::1] contrast, const double[:, ::1] points,
                     double step, double per_shift, double[:, :, ::1] hessian, double[:, ::1] gradient,
                     double[:, ::1] sums):
    """Fit of image i, values[i], by contrast[i] * filters[i] * phases of shifts[i] * slice at rotations[i].

    grid, margin, n_half, table: as in `_projection.gather`. values: (n, 2 P), complex numbers as pairs.
    filters: (n, P), or (1, P) for all images alike. points: (P, 2), whole frequencies; `step` grid steps each.
    per_shift: 2 pi / L. With residual r and Jacobian J by (rotation vector on the right, shift), to
    hessian (n, 5, 5) goes Re J* J, to gradient (n, 5) Re J* r, to sums (n, 3) |r|^2, Re <model, values> and
    |model|^2, the last two at contrast 1. A point beyond the grid has no model.
    """
    cdef Py_ssize_t n = values.shape[0], n_points = points.shape[0]
    cdef Py_ssize_t step_y = grid.shape[2], step_z = grid.shape[1] * grid.shape[2]
    cdef Py_ssize_t i, p, ix, iy, iz, a, b, filter_row
    cdef double x, y, z, u, v, angle, bound = n_half - margin
    cdef double c, s, re, im, h0, h1, h2, sign, scale, filtered, model_re, model_im, rest_re, rest_im
    cdef float w[3 * STRIDE]
    cdef float d[3 * STRIDE]
    cdef double read[8]
    cdef double jac[10]
    cdef double total[15]
    cdef double slope[5]
    cdef double error, cross, power
    with nogil:
        for i in range(n):
            for a in range(15):
                total[a] = 0
            for a in range(5):
                slope[a] = 0
            error = 0
            cross = 0
            power = 0
            filter_row = i if filters.shape[0] > 1 else 0
            for p in range(n_points):
                u = step * points[p, 0]
                v = step * points[p, 1]
                # The image, its shift undone.
                angle = per_shift * (points[p, 0] * shifts[i, 0] + points[p, 1] * shifts[i, 1])
                c = cos(angle)
                s = sin(angle)
                re = values[i, 2 * p] * c - values[i, 2 * p + 1] * s
                im = values[i, 2 * p] * s + values[i, 2 * p + 1] * c
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
                    error += re * re + im * im
                    continue
                ix = _taps(x, table, w, d) + margin
                iy = _taps(y, table, w + STRIDE, d + STRIDE) + n_half
                iz = _taps(z, table, w + 2 * STRIDE, d + 2 * STRIDE) + n_half
                read_gradient(&grid[0, 0, 0] + iz * step_z + iy * step_y + 2 * ix, step_y, step_z, w, d, read)
                # F(k) = conj F(-k), and the gradient of the right-hand side is minus the conjugate gradient.
                filtered = filters[filter_row, p]
                scale = contrast[i] * filtered
                model_re = read[0] * filtered
                model_im = sign * read[1] * filtered
                cross += model_re * re + model_im * im
                power += model_re * model_re + model_im * model_im
                model_re *= contrast[i]
                model_im *= contrast[i]
                rest_re = re - model_re
                rest_im = im - model_im
                error += rest_re * rest_re + rest_im * rest_im
                for a in range(2):
                    # h = R^T gradient; the Jacobian by a rotation vector on the right is (u, v, 0) x h
                    h0 = (rotations[i, 0, 0] * read[2 + a] + rotations[i, 1, 0] * read[4 + a]
                          + rotations[i, 2, 0] * read[6 + a])
                    h1 = (rotations[i, 0, 1] * read[2 + a] + rotations[i, 1, 1] * read[4 + a]
                          + rotations[i, 2, 1] * read[6 + a])
                    h2 = (rotations[i, 0, 2] * read[2 + a] + rotations[i, 1, 2] * read[4 + a]
                          + rotations[i, 2, 2] * read[6 + a])
                    if a == 0:
                        h0 *= sign
                        h1 *= sign
                        h2 *= sign
                    jac[a] = scale * (v * h2)
                    jac[2 + a] = scale * (-u * h2)
                    jac[4 + a] = scale * (u * h1 - v * h0)
                # d/dt of exp(-i per_shift k t) model, with the phase undone
                jac[6] = per_shift * points[p, 0] * model_im
                jac[7] = -per_shift * points[p, 0] * model_re
                jac[8] = per_shift * points[p, 1] * model_im
                jac[9] = -per_shift * points[p, 1] * model_re
                for a in range(5):
                    slope[a] += jac[2 * a] * rest_re + jac[2 * a + 1] * rest_im
                    for b in range(a + 1):
                        total[a * (a + 1) // 2 + b] += jac[2 * a] * jac[2 * b] + jac[2 * a + 1] * jac[2 * b + 1]
            for a in range(5):
                gradient[i, a] = slope[a]
                for b in range(a + 1):
                    hessian[i, a, b] = total[a * (a + 1) // 2 + b]
                    hessian[i, b, a] = total[a * (a + 1) // 2 + b]
            sums[i, 0] = error
            sums[i, 1] = cross
            sums[i, 2] = power
