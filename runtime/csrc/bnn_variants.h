/* One loop, compiled twice: for the baseline of the machine and for AVX2.

   A loop is an always-inlined `NAME(context, begin, end)` in plain C or GCC vector types; both
   variants do the same operations in the same order, so their results are the same bits. */
#ifndef BNN_VARIANTS_H
#define BNN_VARIANTS_H

#include "bnn.h"

#include <string.h>

#define BNN_INLINE static inline __attribute__((always_inline))

/* Fewer elements than this run on one thread: to share them takes as long. */
enum { BNN_GRAIN = 1 << 13 };

#if BNN_X86_64
#define BNN_AVX2 __attribute__((target("avx2,fma,popcnt,f16c")))
#define BNN_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt,f16c")))
#define BNN_BOTH(NAME)                                                                     \
    static void NAME##_any(void *context, i64 begin, i64 end, int thread) {                \
        (void)thread;                                                                      \
        NAME(context, begin, end);                                                         \
    }                                                                                      \
    BNN_AVX2 static void NAME##_avx2(void *context, i64 begin, i64 end, int thread) {      \
        (void)thread;                                                                      \
        NAME(context, begin, end);                                                         \
    }
#define BNN_PICK(NAME) (bnn_has_avx2() ? NAME##_avx2 : NAME##_any)
/* And once more for AVX-512, for loops of many operations to a byte. */
#if defined(__clang__)
#define BNN_WIDE BNN_AVX512
#else
#define BNN_WIDE BNN_AVX512 __attribute__((target("prefer-vector-width=512")))
#endif
#define BNN_ALL(NAME)                                                                      \
    BNN_BOTH(NAME)                                                                         \
    BNN_WIDE static void NAME##_avx512(void *context, i64 begin, i64 end, int thread) {    \
        (void)thread;                                                                      \
        NAME(context, begin, end);                                                         \
    }
#define BNN_PICK_ALL(NAME) (bnn_has_avx512() ? NAME##_avx512 : BNN_PICK(NAME))
#else
#define BNN_BOTH(NAME)                                                                     \
    static void NAME##_any(void *context, i64 begin, i64 end, int thread) {                \
        (void)thread;                                                                      \
        NAME(context, begin, end);                                                         \
    }
#define BNN_PICK(NAME) NAME##_any
#define BNN_ALL(NAME) BNN_BOTH(NAME)
#define BNN_PICK_ALL(NAME) BNN_PICK(NAME)
#endif

/* Machines without vectors of 32 bytes get two of 16 for each. */
typedef float v4f __attribute__((vector_size(16)));
typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef int32_t v4i __attribute__((vector_size(16)));
typedef double v4d __attribute__((vector_size(32)));

BNN_INLINE void bnn_load(v4f *v, const float *x) { memcpy(v, x, sizeof *v); }

/* Four floats, widened. */
BNN_INLINE void bnn_load_wide(v4d *v, const float *x) {
    v4f narrow;
    memcpy(&narrow, x, sizeof narrow);
    *v = __builtin_convertvector(narrow, v4d);
}

BNN_INLINE double bnn_sum4(const v4d *v) { return ((*v)[0] + (*v)[1]) + ((*v)[2] + (*v)[3]); }

/* The sum of floats, in float64. */
BNN_INLINE double bnn_sum(const float *x, i64 n) {
    v4d a, b, sums[2] = {{0}};
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        bnn_load_wide(&a, x + i);
        bnn_load_wide(&b, x + i + 4);
        sums[0] += a, sums[1] += b;
    }
    for (; i < n; i++) sums[0][i % 4] += x[i];
    a = sums[0] + sums[1];
    return bnn_sum4(&a);
}

/* The larger of x and another; NaN wins. */
BNN_INLINE float bnn_larger(float x, float most) { return ((x > most) | (x != x)) ? x : most; }

/* Items of `size` elements a chunk should have, so that a chunk is worth a thread. */
BNN_INLINE i64 bnn_grain_of(i64 size) { return bnn_max(1, BNN_GRAIN / bnn_max(size, 1)); }

#endif
