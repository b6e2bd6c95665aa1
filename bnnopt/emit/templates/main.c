/* Trains on a file of samples, batch by batch, and tests on another; README.md says how they are
   made.

       ./bnn_train [TRAIN [TEST [EPOCHS [RATE]]]]

   Where there is no command line, the macros say the same. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bnn_model.h"

#ifndef TRAIN_FILE
#define TRAIN_FILE "train.bin"
#endif
#ifndef TEST_FILE
#define TEST_FILE "test.bin"
#endif
#ifndef EPOCHS
#define EPOCHS 1
#endif

#if {{scored}}
static {{labels}} labels[BNN_PREDICT_SIZE]; /* of the batch that is tested */
#else
static char labels[BNN_PREDICT_SIZE * 8];
#endif

/* A batch from the file to where the step reads it; the samples that there were. */
static int read_training(FILE *file) {
    int i = 0;
    for (; i < BNN_BATCH_SIZE; i++) {
{{read_training}}
    }
    return i;
}

static int read_test(FILE *file) {
    int i = 0;
    (void)labels;
    for (; i < BNN_PREDICT_SIZE; i++) {
{{read_evaluation}}
    }
    return i;
}

static int train(FILE *file, float rate) {
    double sum = 0;
    int steps = 0;
    rewind(file);
    while (read_training(file) == BNN_BATCH_SIZE) { /* a rest is left out */
        const float loss = bnn_train_step({{train_arguments}}rate);
        if (bnn_error) {
            printf("failed in %s\n", bnn_error);
            return 0;
        }
        sum += loss;
        steps++;
    }
    printf("%d steps, mean loss %.6f\n", steps, steps ? sum / steps : 0.0);
    return 1;
}

#if {{scored}}
static void test(FILE *file) {
    long hits = 0, all = 0;
    rewind(file);
    for (int n; (n = read_test(file)) > 0; all += n) {
        const float *scores = bnn_predict({{predict_arguments}});
        for (int i = 0; scores && i < n; i++, scores += BNN_CLASSES) {
            int best = 0;
            for (int c = 1; c < BNN_CLASSES; c++)
                if (scores[c] > scores[best]) best = c;
            hits += best == (int)labels[i];
        }
    }
    printf("%ld of %ld right, %.2f %%\n", hits, all, all ? 100.0 * (double)hits / (double)all : 0.0);
}
#else
static void test(FILE *file) {
    int n = read_test(file);
    if (n && bnn_predict({{predict_arguments}})) printf("predicted a batch\n");
}
#endif

static FILE *opened(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) printf("%s: cannot be read\n", path);
    return file;
}

static int reset(void) {
#ifdef BNN_INITIAL_STATE
    FILE *file = opened(BNN_INITIAL_STATE);
    if (!file || fread(bnn_state, BNN_STATE_BYTES, 1, file) != 1) return 0;
    fclose(file);
#else
    bnn_reset();
#endif
    return 1;
}

int main(int argc, char **argv) {
    FILE *training = opened(argc > 1 ? argv[1] : TRAIN_FILE);
    FILE *testing = opened(argc > 2 ? argv[2] : TEST_FILE);
    const int epochs = argc > 3 ? atoi(argv[3]) : EPOCHS;
    const float rate = argc > 4 ? (float)atof(argv[4]) : BNN_LEARNING_RATE;
    if (!training || !reset()) return 1;
    for (int epoch = 0; epoch < epochs; epoch++) {
        if (!train(training, rate)) return 1;
        if (testing) test(testing);
    }
    return 0;
}
