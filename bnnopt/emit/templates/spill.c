/* The values of a bitmap: where they are planned or, if there are more of them, behind one another in
   `spill` until the step is done. */
struct values {
    float *at;
    i64 n;
};
static float spill[BNN_SPILL_BYTES / 4 + 1];
static i64 spilled;

static int spills(struct values *v, const i64 *found) {
    const i64 n = *found + 1; /* and a 0 in front */
    if (n > BNN_SPILL_BYTES / 4 - spilled) return 0;
    v->at = spill + spilled, v->n = n;
    spilled += n;
    return 1;
}

