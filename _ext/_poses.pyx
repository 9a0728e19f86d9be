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

    /* Eight and four numbers at once. Without vector types they are loops: the same sums in the same order. */
    #if defined(__GNUC__)
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    #define ADD_SCALED(acc, x, w) (acc) += (x) * (w)
    #define ADD_PRODUCT(acc, x, y) (acc) += (x) * (y)
    #else
    typedef struct { float v[8]; } eight;
    typedef struct { float v[4]; } four;
    #define LANES(x) ((int) (sizeof (x) / sizeof (float)))
    #define ADD_SCALED(acc, x, w) do { for (int q = 0; q < LANES(acc); q++) (acc).v[q] += (x).v[q] * (w); } while (0)
    #define ADD_PRODUCT(acc, x, y) \
        do { for (int q = 0; q < LANES(acc); q++) (acc).v[q] += (x).v[q] * (y).v[q]; } while (0)
    #endif

    /* out: value, d/dx, d/dy, d/dz, each (re, im). Weights w and their derivatives d, of x, y, z in turn. */
    #define READ_GRADIENT \
    { \
        const float *wy = w + STRIDE, *wz = w + 2 * STRIDE, *dy = d + STRIDE, *dz = d + 2 * STRIDE; \
        eight head[3], line; \
        four tail[3], rest, turned[2][3], parts[3]; \
        float pairs[2][2 * WIDTH]; \
        memset(head, 0, sizeof head); \
        memset(tail, 0, sizeof tail); \
        for (int a = 0; a < WIDTH; a++) { \
            eight part, slope; \
            four part_tail, slope_tail; \
            memset(&part, 0, sizeof part); \
            memset(&part_tail, 0, sizeof part_tail); \
            slope = part; \
            slope_tail = part_tail; \
            for (int b = 0; b < WIDTH; b++) { \
                memcpy(&line, start + a * step_z + b * step_y, sizeof line); \
                memcpy(&rest, start + a * step_z + b * step_y + 8, sizeof rest); \
                ADD_SCALED(part, line, wy[b]); \
                ADD_SCALED(part_tail, rest, wy[b]); \
                ADD_SCALED(slope, line, dy[b]); \
                ADD_SCALED(slope_tail, rest, dy[b]); \
            } \
            ADD_SCALED(head[0], part, wz[a]); \
            ADD_SCALED(tail[0], part_tail, wz[a]); \
            ADD_SCALED(head[1], slope, wz[a]); \
            ADD_SCALED(tail[1], slope_tail, wz[a]); \
            ADD_SCALED(head[2], part, dz[a]); \
            ADD_SCALED(tail[2], part_tail, dz[a]); \
        } \
        for (int j = 0; j < WIDTH; j++) { \
            pairs[0][2 * j] = pairs[0][2 * j + 1] = w[j]; \
            pairs[1][2 * j] = pairs[1][2 * j + 1] = d[j]; \
        } \
        memcpy(turned, pairs, sizeof pairs); \
        for (int which = 0; which < 4; which++) { \
            const int from = which < 2 ? 0 : which - 1; \
            float sums[4]; \
            four total; \
            memcpy(parts, &head[from], sizeof head[0]); \
            parts[2] = tail[from]; \
            memset(&total, 0, sizeof total); \
            for (int j = 0; j < 3; j++) \
                ADD_PRODUCT(total, parts[j], turned[which == 1][j]); \
            memcpy(sums, &total, sizeof sums); \
            out[2 * which] = sums[0] + sums[2]; \
            out[2 * which + 1] = sums[1] + sums[3]; \
        } \
    }
    #define READER(name) static void name(const float *start, Py_ssize_t step_y, Py_ssize_t step_z, const float *w, \
                                          const float *d, float *out) READ_GRADIENT
    typedef void (*reader)(const float *, Py_ssize_t, Py_ssize_t, const float *, const float *, float *);

    READER(read_gradient)
    #if defined(__GNUC__) && defined(__x86_64__)
    __attribute__((target("avx2"))) READER(read_gradient_avx2)
    #endif

    /* The same bits from either. */
    static reader choose_reader(int wide)
    {
    #if defined(__GNUC__) && defined(__x86_64__)
        __builtin_cpu_init();
        if (wide && __builtin_cpu_supports("avx2"))
            return read_gradient_avx2;
    #endif
        return read_gradient;
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
    ctypedef void (*reader)(const float* start, Py_ssize_t step_y, Py_ssize_t step_z, const float* w, const float* d,
                            float* out) noexcept nogil
    reader choose_reader(int wide) noexcept nogil
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
                     double step, double per_shift, double[:, :, ::1] phases, double[:, :, ::1] hessian,
                     double[:, ::1] gradient, double[:, ::1] slopes, double[:, ::1] sums, bint wide=True):
    """Fit of image i, values[i], by contrast[i] * filters[i] * phases of shifts[i] * slice at rotations[i].

    grid, margin, n_half, table: as in `_projection.gather`. values: (n, 2 P), complex numbers as pairs.
    filters: (n, P), or (1, P) for all images alike. points: (P, 2), whole frequencies; `step` grid steps each.
    per_shift: 2 pi / L. phases: (2, K + 1, 2), room for those of frequencies up to K. With residual r and Jacobian J by
    (rotation vector on the right, shift), to hessian (n, 5, 5) goes Re J* J, to gradient (n, 5) Re J* r, to slopes
    (n, 3) Re J* model for the rotation vector (a shift leaves the model's power alone), to sums (n, 3) |r|^2,
    Re <model, values> and |model|^2, the last two at contrast 1. A point beyond the grid has no model.
    wide: whether instructions beyond the baseline are used where the processor has them; no bit depends on it.
    """
    cdef Py_ssize_t n = values.shape[0], n_points = points.shape[0]
    cdef Py_ssize_t step_y = grid.shape[2], step_z = grid.shape[1] * grid.shape[2]
    cdef Py_ssize_t i, p, ix, iy, iz, a, b, kx, ky, filter_row
    cdef double x, y, z, u, v, angle, bound = n_half - margin
    cdef double c, s, re, im, h0, h1, h2, sign, scale, filtered, model_re, model_im, rest_re, rest_im
    cdef double cx, sx, cy, sy
    cdef float w[3 * STRIDE]
    cdef float d[3 * STRIDE]
    cdef float read[8]
    cdef double jac[10]
    cdef double total[15]
    cdef double slope[5]
    cdef double along[3]
    cdef reader read_at = choose_reader(wide)
    cdef double error, cross, power
    with nogil:
        for i in range(n):
            for a in range(15):
                total[a] = 0
            for a in range(5):
                slope[a] = 0
            for a in range(3):
                along[a] = 0
            error = 0
            cross = 0
            power = 0
            filter_row = i if filters.shape[0] > 1 else 0
            for a in range(2):
                for b in range(phases.shape[1]):
                    angle = per_shift * shifts[i, a] * b
                    phases[a, b, 0] = cos(angle)
                    phases[a, b, 1] = sin(angle)
            for p in range(n_points):
                u = step * points[p, 0]
                v = step * points[p, 1]
                # The image, its shift undone.
                kx = <Py_ssize_t> points[p, 0]
                ky = <Py_ssize_t> points[p, 1]
                cx = phases[0, kx if kx >= 0 else -kx, 0]
                sx = phases[0, kx, 1] if kx >= 0 else -phases[0, -kx, 1]
                cy = phases[1, ky if ky >= 0 else -ky, 0]
                sy = phases[1, ky, 1] if ky >= 0 else -phases[1, -ky, 1]
                c = cx * cy - sx * sy
                s = cx * sy + sx * cy
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
                read_at(&grid[0, 0, 0] + iz * step_z + iy * step_y + 2 * ix, step_y, step_z, w, d, read)
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
                for a in range(3):
                    along[a] += jac[2 * a] * model_re + jac[2 * a + 1] * model_im
                for a in range(5):
                    slope[a] += jac[2 * a] * rest_re + jac[2 * a + 1] * rest_im
                    for b in range(a + 1):
                        total[a * (a + 1) // 2 + b] += jac[2 * a] * jac[2 * b] + jac[2 * a + 1] * jac[2 * b + 1]
            for a in range(5):
                gradient[i, a] = slope[a]
                for b in range(a + 1):
                    hessian[i, a, b] = total[a * (a + 1) // 2 + b]
                    hessian[i, b, a] = total[a * (a + 1) // 2 + b]
            for a in range(3):
                slopes[i, a] = along[a]
            sums[i, 0] = error
            sums[i, 1] = cross
            sums[i, 2] = power
