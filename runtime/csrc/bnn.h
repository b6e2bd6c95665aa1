/* Shared by all kernels: exported names, sizes, and the thread pool. */
#ifndef BNN_H
#define BNN_H

#include <stddef.h>
#include <stdint.h>

#include "bnn_compilers.h"

#define BNN_EXPORT __attribute__((visibility("default")))

typedef int64_t i64;

/* Machines with code of their own. With BNN_PORTABLE all take the code that any machine can run, and
   the same source gives the same bits everywhere. */
#if defined(__x86_64__) && !defined(BNN_PORTABLE)
#define BNN_X86_64 1
#else
#define BNN_X86_64 0
#endif
#if defined(__aarch64__) && !defined(BNN_PORTABLE)
#define BNN_AARCH64 1
#else
#define BNN_AARCH64 0
#endif

/* Types of elements, as ONNX numbers them; `TYPES` in compiled/calls.py. Of a product's result,
   BNN_U8 asks for packed signs; of a gradient that it reads, it means packed powers of two. */
enum bnn_type { BNN_F32 = 1, BNN_U8 = 2, BNN_I8 = 3, BNN_I16 = 5, BNN_F16 = 10, BNN_I4 = 22 };

/* A piece of work: the indices begin .. end - 1, on thread `thread`, from 0 on, of bnn_threads() or,
   where there are fewer chunks, as many as these. */
typedef void (*bnn_body)(void *context, i64 begin, i64 end, int thread);

/* Run `body` over 0 .. n - 1 in chunks of `grain` or a multiple of it, handed out dynamically; returns
   when all is done. With one thread, or one chunk, it runs in the caller. Bodies must not call it again. */
void bnn_parallel(i64 n, i64 grain, bnn_body body, void *context);

/* Threads that bnn_parallel uses, the caller included, and how many it is to use: for kernels that
   the calling thread runs, and for those of threads that have not said. */
BNN_EXPORT int bnn_threads(void);
BNN_EXPORT void bnn_set_threads(int n);
BNN_EXPORT void bnn_set_default_threads(int n);

/* The instructions that kernels are written for; each set contains the ones before it. */
enum {
    BNN_PORTABLE_KERNELS,
    BNN_AVX2_KERNELS,
    BNN_AVX512_KERNELS,
    BNN_AVX512_POPCOUNT_KERNELS,
};

/* Whether the AVX2, FMA, POPCNT and F16C kernels may run here; 0 on other machines. */
BNN_EXPORT int bnn_has_avx2(void);
/* Whether those with AVX-512 (F, BW, DQ, VL) may. */
BNN_EXPORT int bnn_has_avx512(void);
/* Whether those may that count the bits of words (VPOPCNTDQ). */
BNN_EXPORT int bnn_has_avx512_popcount(void);
/* Leave out all kernels above these; the tests compare the sets with each other. */
BNN_EXPORT void bnn_limit_kernels(int kernels);

/* Bytes of an element of a map, which is no BNN_U8. */
static inline i64 bnn_size_of(i64 type) { return type == BNN_F32 ? 4 : type == BNN_I8 ? 1 : 2; }
static inline i64 bnn_min(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 bnn_max(i64 a, i64 b) { return a > b ? a : b; }
static inline i64 bnn_ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

#endif
