/* Packed bits as the lanes of a vector. */
#ifndef BNN_LANES_H
#define BNN_LANES_H

#include "bnn_variants.h"

/* Eight bits of a row, from any on; zeros behind its last byte. */
BNN_INLINE unsigned eight_bits(const uint8_t *row, i64 first, i64 row_bytes, int aligned) {
    const i64 byte = first / 8, shift = first % 8;
    unsigned bits = row[byte];
    if (aligned) return bits;
    if (shift && byte + 1 < row_bytes) bits |= (unsigned)row[byte + 1] << 8;
    return bits >> shift & 255;
}

BNN_INLINE void lanes_of(v8i *lanes, unsigned bits) {
    const v8i one = {1, 2, 4, 8, 16, 32, 64, 128};
    const int32_t b = (int32_t)bits;
    const v8i all = {b, b, b, b, b, b, b, b};
    *lanes = (all & one) == one;
}

#endif
