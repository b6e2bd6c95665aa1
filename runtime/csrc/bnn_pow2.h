/* Signed powers of two in 5 bits: exponents of 4 bits, two to a byte, and behind them the signs of
   the row, 1 for a negative element; every part of a row starts at a byte. Element i is
   +-2^c unit for an exponent c of 1 to 15, and 0 for c = 0; unit is one number a tensor. */
#ifndef BNN_POW2_H
#define BNN_POW2_H

#include "bnn_variants.h"

/* The bytes of the exponents of a row of n elements, and of all of it. */
BNN_INLINE i64 bnn_pow2_exponent_bytes(i64 n) { return (n + 1) / 2; }
BNN_INLINE i64 bnn_pow2_row_bytes(i64 n) { return (n + 1) / 2 + (n + 7) / 8; }

/* y[i] = element begin + i of a row of `length`, n of them, on the caller's thread. */
void bnn_decode_pow2(const uint8_t *row, i64 length, i64 begin, float unit, float *y, i64 n);

#endif
