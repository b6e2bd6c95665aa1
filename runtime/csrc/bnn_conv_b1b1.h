/* A binary convolution in progress, whether by nibbles or by words. */
#ifndef BNN_CONV_B1B1_H
#define BNN_CONV_B1B1_H

#include "bnn_words.h"

typedef struct {
    const bnn_conv *g;
    const bnn_cores *cores;
    const bnn_word_cores *words; /* NULL: by nibbles */
    const uint8_t *x, *x_end, *w;
    void *y;
    i64 y_type;
    uint8_t *indices;            /* (filters / 4, n_steps, 4): weight nibbles times 16, or words */
    bnn_scratch *per_thread;
    i64 group, channel, filter;  /* the present block: first channel and filter within the group */
    i64 n_channels, n_filters, n_steps;
    i64 part, n_parts;           /* filters that a thread takes of a band, and how often */
    i64 in_rows, phase, pitch;   /* rows of x: how many; columns of a stride phase, of all phases */
} bnn_forward;

/* What goes by words of 64 channels. The scratch of nibbles is twice as large. */
void bnn_index_words(void *context, i64 begin, i64 end, int thread);
void bnn_word_planes(const bnn_forward *f, bnn_band b, uint64_t *planes);

/* Panel (n_steps, 64) of a tile, and the lanes (n_steps) whose tap lies inside. */
void bnn_fill_words(const bnn_forward *f, bnn_band b, const bnn_run *runs, i64 n_runs,
                    const uint64_t *planes, uint64_t *panel, uint64_t *masks);

#endif
