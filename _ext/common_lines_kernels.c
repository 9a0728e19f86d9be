#include "common_lines_kernels.h"

#include <math.h>
#include <stddef.h>
#include <string.h>
#if defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
#endif

/* vectors as wide as the instruction set's; sums over lines are kept in CL_LANES parts on all of them: the same bits */
#if defined(__AVX512F__)
enum { WIDTH = 16, ROWS = 8 };
#elif defined(__AVX__)
enum { WIDTH = 8, ROWS = 4 };
#else
enum { WIDTH = 4, ROWS = 4 };
#endif
/* logarithm of a likelihood ratio, from the highest on, that counts for nothing; a slope's product beyond which single
   precision would end */
#define NEGLIGIBLE (-10.f)
#define STEEPEST 25.f
enum { TOGETHER = 4 }; /* groups of lines whose slopes are multiplied at a time */
enum { PARTS = CL_LANES / WIDTH };
typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef int vi __attribute__((vector_size(4 * WIDTH)));
typedef float v4 __attribute__((vector_size(16)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define PASTE(a, b) a##b
#define NAME(isa) PASTE(cl_detect_, isa)

INLINE vf load(const float *x) { vf v; memcpy(&v, x, sizeof v); return v; }
INLINE void store(float *x, vf v) { memcpy(x, &v, sizeof v); }
INLINE vf splat(float x) { return (vf){0} + x; }
/* no NaN comes here */
#if defined(__AVX512F__)
INLINE vf larger(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf smaller(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE int equal_lanes(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE int any_larger(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
#elif defined(__AVX__)
INLINE vf larger(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf smaller(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE int equal_lanes(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
INLINE int any_larger(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
#elif defined(__SSE2__)
INLINE vf larger(vf a, vf b) { return _mm_max_ps(a, b); }
INLINE vf smaller(vf a, vf b) { return _mm_min_ps(a, b); }
INLINE int equal_lanes(vf a, vf b) { return _mm_movemask_ps(_mm_cmpeq_ps(a, b)); }
INLINE int any_larger(vf a, vf b) { return _mm_movemask_ps(_mm_cmpgt_ps(a, b)); }
#else
INLINE vf choose(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf smaller(vf a, vf b) { return choose(a < b, a, b); }
INLINE int equal_lanes(vf a, vf b)
{
    vi same = a == b;
    int lanes = 0;
    for (int k = 0; k < WIDTH; k++) lanes |= (same[k] & 1) << k;
    return lanes;
}
INLINE int any_larger(vf a, vf b) { return largest(a - b) > 0; }
#endif
INLINE float largest(vf v)
{
    float x[WIDTH], best;
    store(x, v);
    best = x[0];
    for (int k = 1; k < WIDTH; k++) best = x[k] > best ? x[k] : best;
    return best;
}
INLINE float total(const vf v[PARTS])
{
    float x[CL_LANES];
    for (int k = 0; k < PARTS; k++) store(x + k * WIDTH, v[k]);
    for (int step = CL_LANES / 2; step; step /= 2)
        for (int k = 0; k < step; k++) x[k] += x[k + step];
    return x[0];
}

/* x = n log 2 + f: e^f as even and odd part, 2^n as what to add to the bits of a float. Relative error 1e-4. */
INLINE void split_exponential(vf x, vf *even, vf *odd, vi *exponent)
{
    const vf shift = splat(12582912.f);
    vf t = x * 1.44269504f + shift;
    vf f = x - (t - shift) * 0.693147181f;
    vf g = f * f;
    *even = 1.f + g * (0.5f + g * 0.0416666667f);
    *odd = f * (1.f + g * 0.1668f);
    *exponent = (vi)t << 23;
}

INLINE vf exponential(vf x)
{
    vf even, odd;
    vi exponent;
    split_exponential(x, &even, &odd, &exponent);
    return (vf)((vi)(even + odd) + exponent);
}

INLINE vf twice_cosine(vf x)
{
    vf even, odd;
    vi exponent;
    split_exponential(x, &even, &odd, &exponent);
    return (vf)((vi)(even + odd) + exponent) + (vf)((vi)(even - odd) - exponent);
}

/* lines of a row image as `products` reads them: (n_lines / ROWS, n_coordinates, even and odd, ROWS) */
INLINE void pack(const cl_plan *p, const float *columns, float *packed)
{
    const int m = p->n_coordinates;
    for (int r = 0; r < p->n_lines; r++)
        for (int k = 0; k < m; k++)
            for (int part = 0; part < 2; part++)
                packed[((r / ROWS * m + k) * 2 + part) * ROWS + r % ROWS] = columns[(part * m + k) * p->n_padded + r];
}

/* products of ROWS lines of one image with WIDTH of another */
INLINE void products(int n_padded, int m, const float *packed, const float *columns, vf even[ROWS], vf odd[ROWS])
{
    UNROLL for (int q = 0; q < ROWS; q++) even[q] = odd[q] = (vf){0};
    for (int k = 0; k < m; k++, packed += 2 * ROWS, columns += n_padded) {
        const vf e = load(columns), o = load(columns + (long)m * n_padded);
        UNROLL for (int q = 0; q < ROWS; q++) {
            even[q] += e * packed[q];
            odd[q] += o * packed[ROWS + q];
        }
    }
}

/* scores of all lines of one image with all of another: even + odd in the first half of the table, even - odd in the
   second, each (n_lines, n_padded); returns the largest */
INLINE float fill_scores(const cl_plan *p, const float *packed, const float *columns, const float *penalty,
                         const float *column_penalty, float *table)
{
    const int n_padded = p->n_padded, half = p->n_lines * n_padded;
    vf even[ROWS], odd[ROWS], highest[2] = {splat(-1e30f), splat(-1e30f)};
    for (int c = 0; c < n_padded; c += WIDTH) {
        const vf own = load(column_penalty + c);
        for (int r = 0; r < p->n_lines; r += ROWS) {
            products(n_padded, p->n_coordinates, packed + r * 2 * p->n_coordinates, columns + c, even, odd);
            UNROLL for (int q = 0; q < ROWS; q++) {
                const vf both = even[q] - (own + penalty[r + q]), as_they_are = both + odd[q], turned = both - odd[q];
                highest[0] = larger(as_they_are, highest[0]);
                highest[1] = larger(turned, highest[1]);
                store(table + (r + q) * n_padded + c, as_they_are);
                store(table + half + (r + q) * n_padded + c, turned);
            }
        }
    }
    return largest(larger(highest[0], highest[1]));
}

/* Where any of CL_LANES scores, or of those of the turned lines, counts: such groups are listed, others become 0.
   Without branches: whether one counts is next to chance where there is much noise. Returns their number. */
INLINE int list_groups(const cl_plan *p, float highest, float *table, int *groups)
{
    const int half = p->n_lines * p->n_padded;
    const vf least = splat(highest + NEGLIGIBLE);
    int n = 0;
    for (int c = 0; c < p->n_padded; c += CL_LANES)
        for (int at = c; at < half; at += p->n_padded) {
            int any = 0;
            for (int k = 0; k < PARTS; k++) {
                const float *scores = table + at + k * WIDTH;
                any |= any_larger(larger(load(scores), load(scores + half)), least);
            }
            groups[n] = at;
            any = any != 0;
            n += any;
            const vi mask = (vi){0} - any;
            for (int k = 0; k < 2 * PARTS; k++) {
                float *scores = table + at + k / 2 * WIDTH + (k % 2) * half;
                store(scores, (vf)((vi)load(scores) & mask));
            }
        }
    return n;
}

/* the listed scores become likelihood ratios over the highest; returns their sum */
INLINE float fill_ratios(const cl_plan *p, float highest, const int *groups, int n_groups, float *table)
{
    const int half = p->n_lines * p->n_padded;
    vf all[PARTS] = {{0}};
    for (int g = 0; g < n_groups; g++)
        for (int k = 0; k < 2 * PARTS; k++) {
            float *scores = table + groups[g] + k / 2 * WIDTH + (k % 2) * half;
            const vf ratio = exponential(larger(load(scores) - highest, splat(NEGLIGIBLE)));
            all[k / 2] += ratio;
            store(scores, ratio);
        }
    return total(all);
}

/* The same with the likelihood of the slopes: z = even +- odd, averaged over cosines c between the planes, is
   sum exp(-c^2 penalty) cosh(c z). Of the two cosines one is three times the other; the smaller one's penalty is in the
   scores, `weights` are what remains of the larger one's. */
INLINE float fill_ratios_with_slopes(const cl_plan *p, float highest, const int *groups, int n_groups, const float *packed,
                                     const float *columns, const float *weights, const float *column_weights, float *table)
{
    const int n_padded = p->n_padded, half = p->n_lines * n_padded, m = p->n_coordinates;
    vf all[PARTS] = {{0}};
    for (int g = 0, n; g < n_groups; g += n) {
        /* those of the same columns together, as many as fit; the last one stands for those that are missing */
        const int column = groups[g] % n_padded;
        int row[TOGETHER];
        for (n = 1; n < TOGETHER && g + n < n_groups && groups[g + n] % n_padded == column; n++) ;
        for (int q = 0; q < TOGETHER; q++) row[q] = groups[g + (q < n ? q : n - 1)] / n_padded;
        const float *slopes[TOGETHER];
        for (int q = 0; q < TOGETHER; q++) slopes[q] = packed + row[q] / ROWS * ROWS * 2 * m + row[q] % ROWS;
        for (int k = 0; k < PARTS; k++) {
            const int at = column + k * WIDTH;
            vf even[TOGETHER] = {{0}}, odd[TOGETHER] = {{0}};
            for (int c = 0; c < m; c++) {
                const vf e = load(columns + c * n_padded + at), o = load(columns + (m + c) * n_padded + at);
                UNROLL for (int q = 0; q < TOGETHER; q++) {
                    even[q] += e * slopes[q][2 * c * ROWS];
                    odd[q] += o * slopes[q][(2 * c + 1) * ROWS];
                }
            }
            const vf column_weight = load(column_weights + at);
            for (int q = 0; q < n; q++) {
                const vf weight = column_weight * weights[row[q]];
                UNROLL for (int sign = 0; sign < 2; sign++) {
                    float *scores = table + sign * half + row[q] * n_padded + at;
                    const vf z = sign ? even[q] - odd[q] : even[q] + odd[q];
                    const vf cosine = twice_cosine(larger(smaller(z, splat(STEEPEST)), splat(-STEEPEST)));
                    vf ratio = exponential(larger(load(scores) - highest, splat(NEGLIGIBLE))) * cosine;
                    ratio *= 1.f + weight * (cosine * cosine - 3.f);
                    all[k] += ratio;
                    store(scores, ratio);
                }
            }
        }
    }
    return total(all);
}

/* the largest ratio of the listed groups */
INLINE float largest_of(const cl_plan *p, const int *groups, int n_groups, const float *table)
{
    const int half = p->n_lines * p->n_padded;
    vf best[2 * PARTS] = {{0}};
    for (int g = 0; g < n_groups; g++)
        for (int k = 0; k < 2 * PARTS; k++)
            best[k] = larger(load(table + groups[g] + k / 2 * WIDTH + (k % 2) * half), best[k]);
    for (int k = 1; k < 2 * PARTS; k++) best[0] = larger(best[k], best[0]);
    return largest(best[0]);
}

/* the first of equals */
INLINE int place_in_groups(const cl_plan *p, const int *groups, int n_groups, const float *table, float value)
{
    const int half = p->n_lines * p->n_padded;
    const vf wanted = splat(value);
    for (int g = 0; g < n_groups; g++)
        for (int k = 0; k < 2 * PARTS; k++) {
            const int at = groups[g] + (k % PARTS) * WIDTH + k / PARTS * half;
            int lanes = equal_lanes(load(table + at), wanted);
            for (int lane = 0; lanes; lane++, lanes >>= 1)
                if (lanes & 1) return at + lane;
        }
    return 0;
}

/* the first of equals */
INLINE int place_of(const float *x, int n, float value)
{
    const vf wanted = splat(value);
    for (int at = 0; at < n; at += WIDTH) {
        int lanes = equal_lanes(load(x + at), wanted);
        for (int k = 0; lanes; k++, lanes >>= 1)
            if (lanes & 1) return at + k;
    }
    return 0;
}

/* lines around one, either way: where they are, and whether beyond half a circle, where a line is turned */
typedef struct {
    int at[2 * CL_MOST_WINDOW + 1], turned[2 * CL_MOST_WINDOW + 1];
} neighbours;

INLINE void around(int line, int n_lines, int window, int step, neighbours *found)
{
    for (int k = 0; k <= 2 * window; k++) {
        int at = line + k - window, turned = 0;
        while (at < 0) { at += n_lines; turned ^= 1; }
        while (at >= n_lines) { at -= n_lines; turned ^= 1; }
        found->at[k] = at * step;
        found->turned[k] = turned;
    }
}

/* a square of the table (2, n_lines, n_padded); the second half is of turned lines */
typedef struct {
    neighbours rows, columns;
    int half, size;
} square;

INLINE void square_around(const cl_plan *p, int row, int column, square *s)
{
    around(row, p->n_lines, p->window, p->n_padded, &s->rows);
    around(column, p->n_lines, p->window, 1, &s->columns);
    s->half = p->n_lines * p->n_padded;
    s->size = 2 * p->window + 1;
}

INLINE int cell(const square *s, int a, int b)
{
    return (s->rows.turned[a] ^ s->columns.turned[b]) * s->half + s->rows.at[a] + s->columns.at[b];
}

typedef struct {
    float mass, row, column, spread;
} window_sums;

/* sum over the window, its centre of mass, and the variance about it */
INLINE window_sums sum_window(const cl_plan *p, const float *table, int row, int column)
{
    square s;
    float mass = 0, by_row = 0, by_column = 0, squares = 0;
    square_around(p, row, column, &s);
    for (int a = 0; a < s.size; a++) {
        const float *own[2] = {table + s.rows.at[a] + s.rows.turned[a] * s.half,
                               table + s.rows.at[a] + !s.rows.turned[a] * s.half};
        float sum = 0, first = 0, second = 0;
        for (int b = 0; b < s.size; b++) {
            const float value = own[s.columns.turned[b]][s.columns.at[b]], dc = b - p->window;
            sum += value;
            first += value * dc;
            second += value * (dc * dc);
        }
        const float dr = a - p->window;
        mass += sum;
        by_row += sum * dr;
        by_column += first;
        squares += second + sum * (dr * dr);
    }
    by_row /= mass;
    by_column /= mass;
    return (window_sums){mass, row + by_row, column + by_column, squares / mass - by_row * by_row - by_column * by_column};
}

INLINE void clear_window(const cl_plan *p, float *table, int row, int column)
{
    square s;
    square_around(p, row, column, &s);
    for (int a = 0; a < s.size; a++)
        for (int b = 0; b < s.size; b++) table[cell(&s, a, b)] = 0;
}

/* score of two fine lines */
INLINE float fine_score(const cl_plan *p, const cl_lines *rows, long i, const cl_lines *columns, long j, int row, int column)
{
    const int m = p->n_coordinates, n = p->n_lines * p->n_fine;
    float sign = 1;
    while (row < 0) { row += n; sign = -sign; }
    while (row >= n) { row -= n; sign = -sign; }
    while (column < 0) { column += n; sign = -sign; }
    while (column >= n) { column -= n; sign = -sign; }
    const float *x = rows->fine + (i * n + row) * 2 * m, *y = columns->fine + (j * n + column) * 2 * m;
    v4 even = {0}, odd = {0}, a, b;
    for (int k = 0; k < m; k += 4) {
        memcpy(&a, x + k, sizeof a);
        memcpy(&b, y + k, sizeof b);
        even += a * b;
        memcpy(&a, x + m + k, sizeof a);
        memcpy(&b, y + m + k, sizeof b);
        odd += a * b;
    }
    even += sign * odd;
    return (even[0] + even[1]) + (even[2] + even[3]) - rows->fine_penalty[i * n + row] - columns->fine_penalty[j * n + column];
}

/* the nearest maximum among fine lines, and a parabola through its neighbours; angles in fine lines */
static void climb(const cl_plan *p, const cl_lines *rows, long i, const cl_lines *columns, long j, int row, int column,
                  float *fine_row, float *fine_column)
{
    float s[3][3] = {{0}}, before[3][3];
    int moved_row = 3, moved_column = 3; /* nothing is known yet */
    for (int move = 0; move < 4 * p->n_fine; move++) {
        int best_row = 0, best_column = 0;
        memcpy(before, s, sizeof s);
        for (int a = 0; a < 3; a++)
            for (int b = 0; b < 3; b++) {
                const int c = a + moved_row, d = b + moved_column;
                s[a][b] = c >= 0 && c < 3 && d >= 0 && d < 3
                    ? before[c][d] : fine_score(p, rows, i, columns, j, row + a - 1, column + b - 1);
            }
        for (int a = -1; a <= 1; a++)
            for (int b = -1; b <= 1; b++)
                if (s[a + 1][b + 1] > s[best_row + 1][best_column + 1]) { best_row = a; best_column = b; }
        if (best_row == 0 && best_column == 0) break;
        row += moved_row = best_row;
        column += moved_column = best_column;
    }
    *fine_row = row;
    *fine_column = column;
    float gr = (s[2][1] - s[0][1]) / 2, gc = (s[1][2] - s[1][0]) / 2;
    float hrr = s[2][1] + s[0][1] - 2 * s[1][1], hcc = s[1][2] + s[1][0] - 2 * s[1][1];
    float hrc = (s[2][2] + s[0][0] - s[2][0] - s[0][2]) / 4, det = hrr * hcc - hrc * hrc;
    if (hrr < 0 && det > 0) {
        float dr = (hrc * gc - hcc * gr) / det, dc = (hrc * gr - hrr * gc) / det;
        if (fabsf(dr) <= 1 && fabsf(dc) <= 1) { *fine_row += dr; *fine_column += dc; }
    }
}

static void detect_pair(const cl_plan *p, const cl_lines *rows, long i, const float *packed, const cl_lines *columns,
                        long j, const cl_found *found, long at, float *work)
{
    const int n = p->n_lines, np = p->n_padded, m = p->n_coordinates, half = n * np;
    const float *y = columns->columns + j * 4 * m * np;
    float *score = work;
    int *groups = (int *)(work + 2 * half);
    const float highest = fill_scores(p, packed, y, rows->penalty + i * np, columns->penalty + j * np, score);
    float fine_row, fine_column;
    if (p->peak) {
        int place = place_of(score, 2 * half, highest), row = place % half / np, column = place % np + (place >= half) * n;
        climb(p, rows, i, columns, j, row * p->n_fine, column * p->n_fine, &fine_row, &fine_column);
        found->row_angle[at] = fine_row / p->n_fine;
        found->column_angle[at] = fine_column / p->n_fine;
        found->log_best[at] = found->log_all[at] = highest;
        return;
    }
    const int n_groups = list_groups(p, highest, score, groups);
    const float all = p->slopes ? fill_ratios_with_slopes(p, highest, groups, n_groups, packed + 2 * m * n,
                                                          y + 2 * m * np, rows->weights + i * np,
                                                          columns->weights + j * np, score)
                                : fill_ratios(p, highest, groups, n_groups, score);
    window_sums best = {0};
    for (int candidate = 0; candidate < p->n_candidates; candidate++) {
        const float most = largest_of(p, groups, n_groups, score);
        const int place = place_in_groups(p, groups, n_groups, score, most);
        if (most * (2 * p->window + 1) * (2 * p->window + 1) < best.mass) break;
        window_sums sums = sum_window(p, score, place % half / np, place % np + (place >= half) * n);
        const int row = (int)rintf(sums.row), column = (int)rintf(sums.column);
        sums = sum_window(p, score, row, column);
        if (sums.mass > best.mass) best = sums;
        clear_window(p, score, row, column);
        score[place] = 0;
    }
    found->row_angle[at] = best.row;
    found->column_angle[at] = best.column;
    if (best.spread < p->narrow) {
        climb(p, rows, i, columns, j, (int)rintf(best.row * p->n_fine), (int)rintf(best.column * p->n_fine), &fine_row, &fine_column);
        found->row_angle[at] = fine_row / p->n_fine;
        found->column_angle[at] = fine_column / p->n_fine;
    }
    found->log_best[at] = highest + (float)log(best.mass);
    found->log_all[at] = highest + (float)log(all);
}

void NAME(CL_ISA)(const cl_plan *p, const cl_lines *rows, long i, const cl_lines *columns, long first, long last,
                  const cl_found *found, float *work)
{
    const int size = 2 * p->n_coordinates;
    const float *own = rows->columns + i * 2 * size * p->n_padded;
    float *packed = work + 2 * p->n_lines * p->n_padded + p->n_lines * p->n_padded / CL_LANES;
    pack(p, own, packed);
    pack(p, own + size * p->n_padded, packed + size * p->n_lines);
    for (long j = first; j < last; j++) detect_pair(p, rows, i, packed, columns, j, found, j - first, work);
}
