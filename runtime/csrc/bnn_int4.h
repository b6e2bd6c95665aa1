/* Integers of -7 to 7, two to a byte, 8 more than each; every row starts at a byte. */
#ifndef BNN_INT4_H
#define BNN_INT4_H

#include "bnn_variants.h"

BNN_INLINE i64 bnn_int4_row_bytes(i64 n) { return (n + 1) / 2; }

/* y[i] = element begin + i of a row, n of them. */
BNN_INLINE void bnn_decode_int4(const uint8_t *row, i64 begin, int8_t *y, i64 n) {
    i64 i = 0;
    if (begin % 2 && n > 0) y[i++] = (int8_t)((row[begin / 2] >> 4) - 8);
    const uint8_t *pairs = row + (begin + 1) / 2;
    const i64 n_pairs = (n - i) / 2;
    for (i64 k = 0; k < n_pairs; k++) {
        y[i + 2 * k] = (int8_t)((pairs[k] & 15) - 8);
        y[i + 2 * k + 1] = (int8_t)((pairs[k] >> 4) - 8);
    }
    i += 2 * n_pairs;
    if (i < n) y[i] = (int8_t)((pairs[n_pairs] & 15) - 8);
}

#endif
