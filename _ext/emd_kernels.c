#include "emd_kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* vectors as wide as the instruction set's; a group of EMD_LANES images takes EMD_LANES / WIDTH of them */
#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef int vi __attribute__((vector_size(4 * WIDTH)));
#define INLINE static inline __attribute__((always_inline))
#define ALIGNED(bytes) aligned_alloc(64, (((bytes) + 63) / 64) * 64)

/* ---------------------------------------------------------------- wavelet transform, WIDTH images at once */

INLINE vf load(const float *x) { vf r; memcpy(&r, x, sizeof(r)); return r; }

INLINE void spline_weights(float t, float w[4])
{
    float f = t, g = 1 - f;
    w[0] = g * g * g / 6;
    w[1] = 2.f / 3 - 0.5f * f * f * (2 - f);
    w[2] = 2.f / 3 - 0.5f * g * g * (2 - g);
    w[3] = f * f * f / 6;
}

/* where in the source does pixel (row i, column j) of the turned image come from; 0 if outside */
INLINE int source_position(int size, double c, double s, int i, int j, int *iy, int *ix, float wy[4], float wx[4])
{
    int centre = size / 2;
    double dx = j - centre, dy = i - centre;
    double x = c * dx + s * dy + centre, y = -s * dx + c * dy + centre;
    if (x < 0 || y < 0 || x > size - 1 || y > size - 1) return 0;
    *iy = (int)y;
    *ix = (int)x;
    spline_weights((float)(y - *iy), wy);
    spline_weights((float)(x - *ix), wx);
    return 1;
}

typedef struct {
    vf *row, *low, *high, *a, *b, *bands;
    int pad;
} workspace;

static int half_length(int n, int taps) { return (n + taps - 1) / 2; }

static void workspace_free(workspace *w)
{
    free(w->row); free(w->low); free(w->high); free(w->a); free(w->b); free(w->bands);
}

static void workspace_make(workspace *w, const emd_plan *p)
{
    long widest = p->size, h = p->size, half = half_length(p->size, p->n_taps);
    for (int l = 0; l < p->n_levels; l++) { h = half_length((int)h, p->n_taps); if (h > widest) widest = h; if (h > half) half = h; }
    w->pad = p->n_taps;
    w->row = ALIGNED(sizeof(vf) * (widest + 2 * w->pad));
    w->low = ALIGNED(sizeof(vf) * widest * half);
    w->high = ALIGNED(sizeof(vf) * widest * half);
    w->a = ALIGNED(sizeof(vf) * widest * widest);
    w->b = ALIGNED(sizeof(vf) * widest * widest);
    w->bands = ALIGNED(sizeof(vf) * 3 * half * half);
    memset(w->row, 0, sizeof(vf) * (widest + 2 * w->pad));
}

/* one image row, in w->row + pad, to its lowpass and highpass halves */
INLINE void filter_row(const vf *row, int out, int taps, const float *lo, const float *hi, vf *low, vf *high)
{
    for (int q = 0; q < out; q++) {
        const vf *x = row + 2 * q + 1;
        vf s = {0}, d = {0};
        for (int j = 0; j < taps; j++) { vf v = x[-j]; s += lo[j] * v; d += hi[j] * v; }
        low[q] = s;
        high[q] = d;
    }
}

/* columns: low, high (h x out) to approximation and the three detail bands (out x out), bands in the order da, ad, dd */
INLINE void filter_columns(const vf *low, const vf *high, int h, int out, int taps, const float *lo, const float *hi,
                           float weight, vf *approximation, vf *bands)
{
    long n = (long)out * out;
    for (int q = 0; q < out; q++) {
        int first = 2 * q + 1 - (h - 1) > 0 ? 2 * q + 1 - (h - 1) : 0, last = 2 * q + 1 < taps - 1 ? 2 * q + 1 : taps - 1;
        for (int c = 0; c < out; c++) {
            vf ll = {0}, hl = {0}, lh = {0}, hh = {0};
            const vf *x = low + (long)(2 * q + 1) * out + c, *y = high + (long)(2 * q + 1) * out + c;
            for (int j = first; j <= last; j++) {
                vf u = x[-(long)j * out], v = y[-(long)j * out];
                ll += lo[j] * u; hl += hi[j] * u; lh += lo[j] * v; hh += hi[j] * v;
            }
            long o = (long)q * out + c;
            approximation[o] = ll;
            bands[o] = hl * weight;
            bands[n + o] = lh * weight;
            bands[2 * n + o] = hh * weight;
        }
    }
}

/* the kept coefficients of one level, for each lane into its own row */
static void gather(const emd_plan *p, int level, const vf *bands, float *const rows[WIDTH], int n_lanes)
{
    int block = p->n_levels - 1 - level;
    const int *keep = p->keep;
    for (int i = p->offsets[block]; i < p->offsets[block + 1]; i += 16) {
        float t[16][WIDTH];
        for (int q = 0; q < 16; q++) {
            if (keep[i + q] < 0) memset(t[q], 0, sizeof(t[q]));
            else memcpy(t[q], bands + keep[i + q], sizeof(t[q]));
        }
        for (int v = 0; v < n_lanes; v++) {
            float o[16];
            for (int q = 0; q < 16; q++) o[q] = t[q][v];
            memcpy(rows[v] + i, o, sizeof(o));
        }
    }
}

/* the first level's rows stand in low and high; all the rest of the transform */
INLINE void finish(const emd_plan *p, workspace *w, float *const rows[WIDTH], int n_lanes, int taps)
{
    int h = p->size;
    vf *approximation = w->a, *next = w->b;
    for (int l = 0; l < p->n_levels; l++) {
        int out = half_length(h, taps);
        if (l > 0) {
            memset(w->row + w->pad + h, 0, sizeof(vf) * w->pad);
            for (int i = 0; i < h; i++) {
                memcpy(w->row + w->pad, approximation + (long)i * h, sizeof(vf) * h);
                filter_row(w->row + w->pad, out, taps, p->lowpass, p->highpass, w->low + (long)i * out, w->high + (long)i * out);
            }
        }
        filter_columns(w->low, w->high, h, out, taps, p->lowpass, p->highpass, p->weights[l], next, w->bands);
        gather(p, l, w->bands, rows, n_lanes);
        vf *t = approximation; approximation = next; next = t;
        h = out;
    }
}

/* sym5's ten taps as a constant, so that its loops unroll */
static void finish_any(const emd_plan *p, workspace *w, float *const rows[WIDTH], int n_lanes)
{
    if (p->n_taps == 10) finish(p, w, rows, n_lanes, 10);
    else finish(p, w, rows, n_lanes, p->n_taps);
}

static void first_row(const emd_plan *p, workspace *w, int i)
{
    int out = half_length(p->size, p->n_taps);
    vf *low = w->low + (long)i * out, *high = w->high + (long)i * out;
    if (p->n_taps == 10) filter_row(w->row + w->pad, out, 10, p->lowpass, p->highpass, low, high);
    else filter_row(w->row + w->pad, out, p->n_taps, p->lowpass, p->highpass, low, high);
}

static void transform(const emd_plan *p, const float *images, const int *source, const double *cosines,
                      const double *sines, long n, float *rows, int n_threads)
{
    int size = p->size, margin = cosines ? 2 : 0, width = size + 2 * margin;
    long length = p->offsets[p->n_levels], n_blocks = (n + WIDTH - 1) / WIDTH;
    #pragma omp parallel num_threads(n_threads)
    {
        workspace w;
        workspace_make(&w, p);
        #pragma omp for schedule(dynamic, 1)
        for (long b = 0; b < n_blocks; b++) {
            int lanes = (int)(n - b * WIDTH < WIDTH ? n - b * WIDTH : WIDTH);
            float *out[WIDTH];
            for (int v = 0; v < lanes; v++) out[v] = rows + (b * WIDTH + v) * length;
            float *buffer = (float *)(w.row + w.pad);
            for (int i = 0; i < size; i++) {
                memset(w.row + w.pad, 0, sizeof(vf) * (size + w.pad));
                for (int v = 0; v < lanes; v++) {
                    long k = b * WIDTH + v;
                    const float *image = images + (long)source[k] * width * width;
                    if (!cosines) {
                        for (int j = p->extent[2 * i]; j < p->extent[2 * i + 1]; j++)
                            buffer[j * WIDTH + v] = image[(long)i * size + j];
                        continue;
                    }
                    for (int j = p->extent[2 * i]; j < p->extent[2 * i + 1]; j++) {
                        int iy, ix;
                        float wy[4], wx[4], sum = 0;
                        if (!source_position(size, cosines[k], sines[k], i, j, &iy, &ix, wy, wx)) continue;
                        const float *x = image + (long)(iy + 1) * width + ix + 1;
                        for (int a = 0; a < 4; a++) {
                            const float *r = x + (long)a * width;
                            sum += wy[a] * (r[0] * wx[0] + r[1] * wx[1] + r[2] * wx[2] + r[3] * wx[3]);
                        }
                        buffer[j * WIDTH + v] = sum;
                    }
                }
                first_row(p, &w, i);
            }
            finish_any(p, &w, out, lanes);
        }
        workspace_free(&w);
    }
}

static void transform_rotations(const emd_plan *p, const float *splines, long n_blocks, const double *cosines,
                                const double *sines, long n_angles, float *rows, int n_threads)
{
    int size = p->size, width = size + 4;
    long length = p->offsets[p->n_levels];
    #pragma omp parallel num_threads(n_threads)
    {
        workspace w;
        workspace_make(&w, p);
        #pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < n_blocks * n_angles; task++)
            for (int lane = 0; lane < EMD_LANES; lane += WIDTH) {
                long b = task / n_angles, t = task % n_angles;
                const float *image = splines + b * width * width * EMD_LANES + lane;
                float *out[WIDTH];
                for (int v = 0; v < WIDTH; v++) out[v] = rows + ((b * EMD_LANES + lane + v) * n_angles + t) * length;
                vf *row = w.row + w.pad;
                for (int i = 0; i < size; i++) {
                    memset(row, 0, sizeof(vf) * (size + w.pad));
                    for (int j = p->extent[2 * i]; j < p->extent[2 * i + 1]; j++) {
                        int iy, ix;
                        float wy[4], wx[4];
                        if (!source_position(size, cosines[t], sines[t], i, j, &iy, &ix, wy, wx)) continue;
                        const float *x = image + ((long)(iy + 1) * width + ix + 1) * EMD_LANES;
                        vf sum = {0};
                        for (int a = 0; a < 4; a++) {
                            const float *r = x + (long)a * width * EMD_LANES;
                            sum += wy[a] * (load(r) * wx[0] + load(r + EMD_LANES) * wx[1] + load(r + 2 * EMD_LANES) * wx[2]
                                            + load(r + 3 * EMD_LANES) * wx[3]);
                        }
                        row[j] = sum;
                    }
                    first_row(p, &w, i);
                }
                finish_any(p, &w, out, WIDTH);
            }
        workspace_free(&w);
    }
}

/* ---------------------------------------------------------------- l1 distances */

INLINE vf absolute(vf x)
{
    vi bits = (vi)x & 0x7fffffff;
    return (vf)bits;
}

/* sum of EMD_ROW partial sums, always in the same order */
INLINE float total(const vf *partial)
{
    float s[EMD_ROW];
    memcpy(s, partial, sizeof(s));
    for (int i = 0; i < 16; i++) s[i] = (s[i] + s[16 + i]) + (s[32 + i] + s[48 + i]);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) s[i] += s[i + step];
    return s[0];
}

/* the one definition of the distance within a level: EMD_ROW interleaved partial sums, then their sum */
INLINE float level_distance(const float *x, const float *y, int n)
{
    vf partial[EMD_ROW / WIDTH];
    for (int q = 0; q < EMD_ROW / WIDTH; q++) partial[q] = (vf){0};
    for (int k = 0; k < n; k += EMD_ROW)
        for (int q = 0; q < EMD_ROW / WIDTH; q++)
            partial[q] += absolute(load(x + k + q * WIDTH) - load(y + k + q * WIDTH));
    return total(partial);
}

INLINE float level_norm(const float *x, int n)
{
    vf partial[EMD_ROW / WIDTH];
    for (int q = 0; q < EMD_ROW / WIDTH; q++) partial[q] = (vf){0};
    for (int k = 0; k < n; k += EMD_ROW)
        for (int q = 0; q < EMD_ROW / WIDTH; q++) partial[q] += absolute(load(x + k + q * WIDTH));
    return total(partial);
}

static void norms(int n_levels, const int *offsets, const float *rows, long n, float *out, int n_threads)
{
    long length = offsets[n_levels];
    #pragma omp parallel for schedule(static) num_threads(n_threads)
    for (long i = 0; i < n; i++)
        for (int l = 0; l < n_levels; l++)
            out[i * n_levels + l] = level_norm(rows + i * length + offsets[l], offsets[l + 1] - offsets[l]);
}

static void paired(int n_levels, const int *offsets, const float *x, const float *y, long n, float *out, int n_threads)
{
    long length = offsets[n_levels];
    #pragma omp parallel for schedule(static) num_threads(n_threads)
    for (long i = 0; i < n; i++) {
        float s = 0;
        for (int l = 0; l < n_levels; l++)
            s += level_distance(x + i * length + offsets[l], y + i * length + offsets[l], offsets[l + 1] - offsets[l]);
        out[i] = s;
    }
}

static void all_pairs(int n_levels, const int *offsets, long length, const float *x, long nx, const float *y, long ny,
                      float *out, int n_threads)
{
    #pragma omp parallel for schedule(dynamic, 8) num_threads(n_threads)
    for (long i = 0; i < nx; i++)
        for (long j = 0; j < ny; j++) {
            float s = 0;
            for (int l = 0; l < n_levels; l++)
                s += level_distance(x + i * length + offsets[l], y + j * length + offsets[l], offsets[l + 1] - offsets[l]);
            out[i * ny + j] = s;
        }
}

/* ---------------------------------------------------------------- the exact search */

#define TILE_X 2
#define TILE_Y 5
#define IMAGE_BLOCK 32

INLINE float lanes_total(vf a)
{
    float s[WIDTH], sum = 0;
    memcpy(s, &a, sizeof(s));
    for (int i = 0; i < WIDTH; i++) sum += s[i];
    return sum;
}

/* coarse distances of a tile; the order of summation is free here, for these only bound */
INLINE void coarse_tile(const float *x, long sx, const float *y, long sy, int n, float *out, long so)
{
    vf acc[TILE_X][TILE_Y];
    for (int a = 0; a < TILE_X; a++) for (int b = 0; b < TILE_Y; b++) acc[a][b] = (vf){0};
    for (int k = 0; k < n; k += WIDTH) {
        vf v[TILE_Y];
        for (int b = 0; b < TILE_Y; b++) v[b] = load(y + b * sy + k);
        for (int a = 0; a < TILE_X; a++) {
            vf u = load(x + a * sx + k);
            for (int b = 0; b < TILE_Y; b++) acc[a][b] += absolute(u - v[b]);
        }
    }
    for (int a = 0; a < TILE_X; a++) for (int b = 0; b < TILE_Y; b++) out[a * so + b] = lanes_total(acc[a][b]);
}

static void coarse_distances(const emd_images *im, const emd_centres *c, const float *copies, long first, long last,
                             int n_base, float *out)
{
    int n = c->offsets[c->n_coarse];
    long length = c->row_length, sy = c->stride * length;
    for (long i = first; i < last; i += TILE_X)
        for (int j = 0; j < n_base; j += TILE_Y) {
            const float *x = im->rows + i * length, *y = copies + j * sy;
            float *o = out + (i - first) * n_base + j;
            if (i + TILE_X <= last && j + TILE_Y <= n_base) coarse_tile(x, length, y, sy, n, o, n_base);
            else
                for (long a = i; a < last && a < i + TILE_X; a++)
                    for (int b = j; b < n_base && b < j + TILE_Y; b++)
                        out[(a - first) * n_base + b] = level_distance(im->rows + a * length, copies + b * sy, n);
        }
}

static void tables(const emd_centres *c, float *norms_out, float *below, float *above, int n_threads)
{
    int na = c->n_angles, nl = c->n_levels, coarse = c->offsets[c->n_coarse];
    #pragma omp parallel for schedule(static) num_threads(n_threads)
    for (long i = 0; i < (long)c->n * na; i++) {
        long k = i / na, t = i % na, base = t / c->stride * c->stride, next = base + c->stride < na ? base + c->stride : 0;
        const float *copies = c->rows + k * na * c->row_length, *x = copies + t * c->row_length;
        for (int l = 0; l < nl; l++)
            norms_out[(k * nl + l) * na + t] = level_norm(x + c->offsets[l], c->offsets[l + 1] - c->offsets[l]);
        below[i] = t == base ? 0 : level_distance(x, copies + base * c->row_length, coarse);
        above[i] = level_distance(x, copies + next * c->row_length, coarse);
    }
}

/* candidates are ordered by (distance + bias, label, angle, shift): ties have one answer */
INLINE int better(const emd_images *im, long i, float value, int label, int angle)
{
    if (value != im->best[i]) return value < im->best[i];
    if (label != im->labels[i]) return label < im->labels[i];
    if (angle != im->angles[i]) return angle < im->angles[i];
    return im->shift < im->shifts[i];
}

/* what the search of one image among one centre's copies needs beside them */
typedef struct { float *coarse, *tail, *bound; } scratch;

static double search_one(const emd_images *im, const emd_centres *c, int k, long i, const float *d, scratch *w)
{
    int na = c->n_angles, nl = c->n_levels, n_base = na / c->stride, nc = c->n_coarse, label = c->first + k;
    const float *copies = c->rows + (long)k * na * c->row_length, *norms_k = c->norms + (long)k * nl * na;
    const float *below = c->below + (long)k * na, *above = c->above + (long)k * na;
    const float *x = im->rows + i * c->row_length, *nx = im->norms + i * nl;
    float *tail = w->tail, *bound = w->bound, *least_here = im->all ? im->all + i * im->n_all + label : NULL;
    float size = 0, bias = c->bias[k];
    double read = 0;
    for (int l = 0; l < nl; l++) size += nx[l];
    /* rounding: sums of absolute values err by at most about 1e-6 of the norms */
    float limit = least_here ? *least_here : im->best[i] - bias;
    limit += 1e-5f * fabsf(limit) + 4e-6f * size;
    /* tail[l][t]: least that levels l, l+1, ... can add (reverse triangle inequality) */
    for (int t = 0; t < na; t++) tail[nl * na + t] = 0;
    for (int l = nl - 1; l >= nc; l--) {
        const float *ny = norms_k + (long)l * na;
        float q = nx[l];
        for (int t = 0; t < na; t++) tail[l * na + t] = tail[(l + 1) * na + t] + fabsf(q - ny[t]);
    }
    const float *rest = tail + (long)nc * na;
    int any = 0;
    for (int g = 0; g < n_base; g++) {
        float lo = d[g], hi = d[g + 1 < n_base ? g + 1 : 0];
        for (int t = g * c->stride; t < (g + 1) * c->stride; t++) {
            float p = lo - below[t], q = hi - above[t];
            bound[t] = (p > q ? p : q) + rest[t];
            any |= bound[t] <= limit;
        }
    }
    while (any) {  /* the most promising first, so that the limit falls early */
        int t = -1, l = 0;
        float least = limit < FLT_MAX ? limit : FLT_MAX, sum = 0;
        for (int a = 0; a < na; a++) if (bound[a] <= least) { least = bound[a]; t = a; }
        if (t < 0) break;
        bound[t] = INFINITY;
        const float *y = copies + t * c->row_length;
        for (; l < nl; l++) {
            int n = c->offsets[l + 1] - c->offsets[l];
            sum += level_distance(x + c->offsets[l], y + c->offsets[l], n);
            read += n;
            if (l + 1 < nl && sum + (l + 1 >= nc ? tail[(l + 1) * na + t] : rest[t]) > limit) break;
        }
        if (l < nl) continue;
        if (least_here && sum < *least_here) *least_here = sum;
        float value = sum + bias;
        if (better(im, i, value, label, t)) {
            im->best[i] = value;
            im->labels[i] = label;
            im->angles[i] = t;
            im->shifts[i] = im->shift;
        }
        limit = least_here ? *least_here : im->best[i] - bias;
        limit += 1e-5f * fabsf(limit) + 4e-6f * size;
    }
    return read;
}

static double search(const emd_images *im, const emd_centres *c, int n_threads)
{
    int na = c->n_angles, n_base = na / c->stride;
    double read = 0;
    #pragma omp parallel num_threads(n_threads) reduction(+ : read)
    {
        scratch w = {malloc(sizeof(float) * IMAGE_BLOCK * n_base), malloc(sizeof(float) * (c->n_levels + 1) * na),
                     malloc(sizeof(float) * na)};
        #pragma omp for schedule(dynamic, 1)
        for (long first = 0; first < im->n; first += IMAGE_BLOCK) {
            long last = first + IMAGE_BLOCK < im->n ? first + IMAGE_BLOCK : im->n;
            for (int k = 0; k < c->n; k++) {
                coarse_distances(im, c, c->rows + (long)k * na * c->row_length, first, last, n_base, w.coarse);
                for (long i = first; i < last; i++) read += search_one(im, c, k, i, w.coarse + (i - first) * n_base, &w);
            }
        }
        free(w.coarse); free(w.tail); free(w.bound);
    }
    return read;
}

#define PASTE(a, b) a##b
#define NAME(suffix) PASTE(emd_kernels_, suffix)
extern const emd_kernels NAME(EMD_ISA);
const emd_kernels NAME(EMD_ISA) = {transform, transform_rotations, norms, paired, all_pairs, tables, search};
