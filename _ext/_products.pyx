"""Products of matrices in single precision whose bits depend on a row and a column alone, not on their places."""
from libc.string cimport memset

cdef extern from "product_kernels.h":
    ctypedef void (*product_rows)(long, long, long, const float *, long, const float *, long, float *,
                                  long) noexcept nogil

cdef extern from *:
    """
    #define PRODUCT_KERNEL(isa) \
        void product_rows_##isa(long, long, long, const float *, long, const float *, long, float *, long)
    PRODUCT_KERNEL(baseline);
    #ifdef PRODUCT_X86
    PRODUCT_KERNEL(avx2);
    PRODUCT_KERNEL(avx512);
    #endif

    /* NULL where the processor has not got it */
    static product_rows product_kernel(int isa)
    {
        if (isa == 0) return product_rows_baseline;
    #ifdef PRODUCT_X86
        __builtin_cpu_init();
        if (isa == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return product_rows_avx2;
        if (isa == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
                && __builtin_cpu_supports("fma"))
            return product_rows_avx512;
    #endif
        return NULL;
    }
    """
    product_rows product_kernel(int isa)

VARIANTS = ("baseline", "avx2", "avx512")
cdef int _isa = 2
while product_kernel(_isa) == NULL:
    _isa -= 1


def select(int isa=-1):
    """Use another variant; -1: the best that the processor has. Returns which is used, or -1: it has not got it."""
    global _isa
    if isa < 0:
        isa = 2
        while product_kernel(isa) == NULL:
            isa -= 1
    if isa > 2 or product_kernel(isa) == NULL:
        return -1
    _isa = isa
    return isa


def multiply(const float[:, :] a, const float[:, :] b, float[:, :] out):
    """out = a b; elements of a row lie next to each other in each, and out overlaps neither."""
    cdef Py_ssize_t i, n = a.shape[0], depth = a.shape[1], columns = b.shape[1]
    if b.shape[0] != depth or out.shape[0] != n or out.shape[1] != columns:
        raise ValueError("matrices of inconsistent shapes")
    if not n or not columns:
        return
    if ((depth > 1 and a.strides[1] != sizeof(float)) or (columns > 1 and b.strides[1] != sizeof(float))
            or (columns > 1 and out.strides[1] != sizeof(float))):
        raise ValueError("elements of a row must lie next to each other")
    cdef product_rows kernel = product_kernel(_isa)
    with nogil:
        for i in range(n):
            memset(&out[i, 0], 0, columns * sizeof(float))
        if depth:
            kernel(n, depth, columns, &a[0, 0], a.strides[0] // sizeof(float), &b[0, 0], b.strides[0] // sizeof(float),
                   &out[0, 0], out.strides[0] // sizeof(float))
