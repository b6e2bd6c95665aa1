/* Floats to bits, for kernels that make the floats themselves. */
#ifndef BNN_PACK_H
#define BNN_PACK_H

#include "bnn.h"

/* x > 0; or !(x < 0), which NaN passes; or low <= x <= high. */
enum bnn_test { BNN_GREATER, BNN_NOT_LESS, BNN_RANGE };

/* n floats into ceil(n / 8) bytes, on the caller's thread; the spare bits are 0. */
void bnn_pack_floats(const float *x, uint8_t *packed, i64 n, enum bnn_test test, float low,
                     float high);

#endif
