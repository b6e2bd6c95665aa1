/* Where in its window each maximum of a max pooling was, in a few bits each.

   A sample's places follow one another, least bit first; samples start at a byte. */
#ifndef BNN_PLACES_H
#define BNN_PLACES_H

#include "bnn_variants.h"

enum {
    MAX_PLACES = 256,  /* in a window */
    MAX_SUMS = 1 << 15 /* elements of a plane of halves whose gradients are added up */
};

/* Places, from bit `first` of a sample's on. */
struct reader {
    const uint8_t *next;
    unsigned bits, left;
};

BNN_INLINE struct reader reader_at(const uint8_t *packed, i64 first) {
    const unsigned skipped = (unsigned)(first % 8);
    if (!skipped) return (struct reader){packed + first / 8, 0, 0};
    return (struct reader){packed + first / 8 + 1, (unsigned)packed[first / 8] >> skipped,
                           8 - skipped};
}

BNN_INLINE unsigned take(struct reader *r, unsigned n_bits) {
    if (r->left < n_bits) r->bits |= (unsigned)*r->next++ << r->left, r->left += 8;
    const unsigned place = r->bits & ((1u << n_bits) - 1);
    r->bits >>= n_bits;
    r->left -= n_bits;
    return place;
}

/* The next n places; two of 4 bits are a byte, where they start at one. */
BNN_INLINE void take_places(struct reader *r, unsigned n_bits, int32_t *place, i64 n) {
    i64 j = 0;
    for (; n_bits == 4 && r->left == 0 && j + 2 <= n; j += 2, r->next++) {
        place[j] = *r->next & 15;
        place[j + 1] = *r->next >> 4;
    }
    for (; j < n; j++) place[j] = (int32_t)take(r, n_bits);
}

/* From a window's first element to each of its places, in a plane with rows of w. */
BNN_INLINE void bnn_place_offsets(int32_t *offsets, i64 n_bits, i64 w, i64 kernel_w,
                                  i64 dilation_h, i64 dilation_w) {
    for (i64 place = 0; place < 1 << n_bits; place++)
        offsets[place] = (int32_t)(place / kernel_w * dilation_h * w +
                                   place % kernel_w * dilation_w);
}

#endif
