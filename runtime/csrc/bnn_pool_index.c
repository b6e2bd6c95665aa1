/* Indices of max pooling as places in their windows, 1 to 8 bits each, and back.

   A sample's places follow one another, least bit first, without gaps; samples start at a byte. */
#include "bnn_variants.h"

struct places {
    i64 *indices;
    uint8_t *packed;
    const int32_t *origin;
    i64 channels, outputs, row_bytes; /* planes a sample, outputs a plane, bytes a sample */
    i64 plane, width, kernel_width, row_dilation, column_dilation, n_bits;
    int32_t offsets[256]; /* place to offset from the window's first element */
};

/* n / d by a multiplication: `inverse` is ceil(2^32 / d), which gives at most 1 too much. */
BNN_INLINE uint32_t quotient(uint32_t n, uint32_t d, uint64_t inverse) {
    uint64_t q = n * inverse >> 32;
    return (uint32_t)(q - (q * d > n));
}

static uint64_t inverse_of(i64 d) { return ((UINT64_C(1) << 32) + (uint64_t)d - 1) / (uint64_t)d; }

struct divisors {
    uint32_t width, down, along;
    uint64_t by_width, by_down, by_along;
};

/* The place in its window of what lies `offset` elements behind the window's first. */
BNN_INLINE uint32_t place_of(uint32_t offset, const struct divisors *d, uint32_t kernel_width,
                             int dilated) {
    uint32_t row = quotient(offset, d->width, d->by_width), column = offset - row * d->width;
    if (!dilated) return row * kernel_width + column;
    return quotient(row, d->down, d->by_down) * kernel_width +
           quotient(column, d->along, d->by_along);
}

BNN_INLINE void pack_sample(const struct places *p, const i64 *indices, i64 first_plane,
                            uint8_t *out, int dilated) {
    const uint32_t width = (uint32_t)p->width, down = (uint32_t)p->row_dilation;
    const uint32_t along = (uint32_t)p->column_dilation, mask = (1u << p->n_bits) - 1;
    const struct divisors d = {width,             down,             along,
                               inverse_of(width), inverse_of(down), inverse_of(along)};
    const int step = (int)p->n_bits;
    uint64_t bits = 0;
    int n_bits = 0;
    for (i64 c = 0; c < p->channels; c++) {
        const i64 start = (first_plane + c) * p->plane;
        for (i64 j = 0; j < p->outputs; j++) {
            i64 at = *indices++ - start;
            if (at < 0 || at >= p->plane) at = (at + start) % p->plane; /* from a cut batch */
            uint32_t offset = (uint32_t)(at - p->origin[j]);
            uint32_t place = place_of(offset, &d, (uint32_t)p->kernel_width, dilated);
            bits |= (uint64_t)(place & mask) << n_bits;
            n_bits += step;
            if (n_bits < 32) continue;
            uint32_t word = (uint32_t)bits; /* little-endian, as all supported machines are */
            memcpy(out, &word, sizeof word);
            out += sizeof word, bits >>= 32, n_bits -= 32;
        }
    }
    for (; n_bits > 0; n_bits -= 8, bits >>= 8) *out++ = (uint8_t)bits;
}

static void pool_index_pack_i64(void *context, i64 begin, i64 end, int thread) {
    const struct places *p = context;
    (void)thread;
    const int dilated = p->row_dilation > 1 || p->column_dilation > 1;
    for (i64 n = begin; n < end; n++) {
        const i64 *indices = p->indices + n * p->channels * p->outputs;
        uint8_t *out = p->packed + n * p->row_bytes;
        if (dilated) pack_sample(p, indices, n * p->channels, out, 1);
        else pack_sample(p, indices, n * p->channels, out, 0);
    }
}

static void unpack_sample(const struct places *p, const uint8_t *packed, i64 first_plane,
                          i64 *indices) {
    const unsigned mask = (1u << p->n_bits) - 1;
    unsigned bits = 0, n_bits = 0;
    for (i64 c = 0; c < p->channels; c++) {
        const i64 start = (first_plane + c) * p->plane;
        for (i64 j = 0; j < p->outputs; j++) {
            if (n_bits < p->n_bits) bits |= (unsigned)*packed++ << n_bits, n_bits += 8;
            *indices++ = start + p->origin[j] + p->offsets[bits & mask];
            bits >>= p->n_bits;
            n_bits -= (unsigned)p->n_bits;
        }
    }
}

static void pool_index_unpack_i64(void *context, i64 begin, i64 end, int thread) {
    const struct places *p = context;
    (void)thread;
    for (i64 n = begin; n < end; n++)
        unpack_sample(p, p->packed + n * p->row_bytes, n * p->channels,
                      p->indices + n * p->channels * p->outputs);
}

static void run(struct places *p, bnn_body body, i64 samples) {
    const i64 elements = p->channels * p->outputs;
    p->row_bytes = bnn_ceil_div(elements * p->n_bits, 8);
    bnn_parallel(samples, bnn_grain_of(2 * elements), body, p);
}

/* indices: samples x channels x outputs, each in its own plane or that plane of an earlier sample.
   plane must fit 31 bits; a dilated kernel is not wider than `width`; 1 <= n_bits <= 8. */
BNN_EXPORT void bnn_pool_index_pack_i64(const i64 *indices, const int32_t *origin, uint8_t *packed,
                                        i64 samples, i64 channels, i64 outputs, i64 plane,
                                        i64 width, i64 kernel_width, i64 row_dilation,
                                        i64 column_dilation, i64 n_bits) {
    struct places p = {.indices = (i64 *)indices, .packed = packed, .origin = origin,
                       .channels = channels, .outputs = outputs, .plane = plane, .width = width,
                       .kernel_width = kernel_width, .row_dilation = row_dilation,
                       .column_dilation = column_dilation, .n_bits = n_bits};
    run(&p, pool_index_pack_i64, samples);
}

BNN_EXPORT void bnn_pool_index_unpack_i64(const uint8_t *packed, const int32_t *origin,
                                          i64 *indices, i64 samples, i64 channels, i64 outputs,
                                          i64 plane, i64 width, i64 kernel_width, i64 row_dilation,
                                          i64 column_dilation, i64 n_bits) {
    struct places p = {.indices = indices, .packed = (uint8_t *)packed, .origin = origin,
                       .channels = channels, .outputs = outputs, .plane = plane,
                       .n_bits = n_bits};
    for (i64 place = 0; place < 1 << n_bits; place++)
        p.offsets[place] = (int32_t)(place / kernel_width * row_dilation * width +
                                     place % kernel_width * column_dilation);
    run(&p, pool_index_unpack_i64, samples);
}
