/* Products of matrices in single precision: one source, compiled once for each instruction set. */
#ifndef PRODUCT_KERNELS_H
#define PRODUCT_KERNELS_H

/* c (n, columns) += a (n, depth) b (depth, columns), rows of each a stride apart */
typedef void (*product_rows)(long n, long depth, long columns, const float *a, long a_stride, const float *b,
                             long b_stride, float *c, long c_stride);

#endif
