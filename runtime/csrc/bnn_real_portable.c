/* Inner loops of real-valued convolutions for any machine, with its own multiply-add where that is
   part of every one (aarch64). */
#include "bnn_real.h"

#define CORES bnn_real_cores_portable
#define BYTES 16
#if BNN_AARCH64
#include <arm_neon.h>
#define ROWS 8
#define MULTIPLY_ADD(x, b, c) (vf) vfmaq_n_f32((float32x4_t)(c), (float32x4_t)(b), x)
#define MULTIPLY_ADD_VECTORS(a, b, c)                                                              \
    (vf) vfmaq_f32((float32x4_t)(c), (float32x4_t)(b), (float32x4_t)(a))
#else
#define ROWS 4
#define MULTIPLY_ADD(x, b, c) ((c) + (x) * (b))
#define MULTIPLY_ADD_VECTORS MULTIPLY_ADD
#endif
#include "bnn_real_cores.inc"
