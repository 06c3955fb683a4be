/*
 * A model in use: main MODEL SAMPLE LOGITS
 * Opens the model, classifies the sample and compares the logits, bit by bit, with those in the
 * file LOGITS, which the Rust library wrote. Then learns a block of features on stripes,
 * classifies again, and learns classes of their own from a few samples.
 */
#include "sepal.h"

#include <string.h>

#include "load.h"

static unsigned char flash[LOAD_MOST + SEPAL_ALIGN];
static unsigned char memory[(1 << 16) + SEPAL_ALIGN];
static sepal_model model;

/* A sensor: stripes of four directions, that lie elsewhere in each sample. */
enum { STRIPES = 4, SIDE = 28, SAMPLES = 32 };

static int32_t stripes(void *context, uint32_t index, uint8_t *sample, size_t len, uint16_t *label)
{
    static const int across[STRIPES][2] = {{1, 0}, {0, 1}, {1, 1}, {1, -1}};
    int kind = (int)(index % STRIPES), x, y;
    uint32_t noise = index * 2654435761u + 1;
    (void)context;
    if (len != SIDE * SIDE) {
        return 1;
    }
    for (y = 0; y < SIDE; y++) {
        for (x = 0; x < SIDE; x++) {
            int at = across[kind][0] * x + across[kind][1] * y + (int)(index / STRIPES) + SIDE;
            noise = noise * 1664525u + 1013904223u;
            sample[y * SIDE + x] = (uint8_t)((at % 8 < 4 ? 150 : 20) + (noise >> 24) / 4);
        }
    }
    *label = (uint16_t)kind;
    return 0;
}

static int failed(const char *what, sepal_status status, const sepal_detail *detail)
{
    printf("%s: %s (needed %lu, given %lu)\n", what, sepal_error_text(status),
           (unsigned long)detail->needed, (unsigned long)detail->given);
    return 1;
}

/* Classifies a sample, and prints the class. */
static sepal_status classify(const uint8_t *sample, size_t len, float *logits, sepal_detail *detail)
{
    size_t classes = sepal_classes(&model), best = 0, name_len, i;
    const char *name;
    sepal_status status = sepal_infer(&model, ALIGNED(memory), 1 << 16, sample, len, logits,
                                      classes, detail);
    if (status != SEPAL_OK) {
        return status;
    }
    for (i = 1; i < classes; i++) {
        if (logits[i] > logits[best]) {
            best = i;
        }
    }
    name = sepal_class_name(&model, best, &name_len);
    printf("class %lu, \"%.*s\", logit %f\n", (unsigned long)best, name ? (int)name_len : 1,
           name ? name : "?", (double)logits[best]);
    return SEPAL_OK;
}

static uint32_t learnt_block = 1;
/* Whether it can be learnt: a block of integers cannot. */
static int learns;

/* Moves a block, so that what it gives of stripes is apart. */
static int learn(sepal_detail *detail)
{
    static float parameters[1 << 12];
    static sepal_tuning tuning;
    sepal_settings settings = {0};
    sepal_score first = {0, 0}, score = {0, 0};
    sepal_status status;
    size_t bytes, len;
    int step;

    settings.seed = 1;
    settings.block = learnt_block;
    settings.batch = 16;
    settings.samples = SAMPLES;
    settings.adam = 1;
    settings.rate = 0.003f;
    settings.margin = 1.0f;
    len = sepal_parameters(&model, learnt_block);
    status = sepal_tune_memory(&model, &settings, &bytes, detail);
    if (status == SEPAL_UNSUPPORTED) {
        printf("block %lu cannot be learnt\n", (unsigned long)learnt_block);
        return 0;
    }
    learns = 1;
    if (status != SEPAL_OK || len > sizeof parameters / sizeof *parameters) {
        return failed("tune_memory", status, detail);
    }
    status = sepal_tune_begin(&tuning, &model, &settings, ALIGNED(memory), 1 << 16, detail);
    for (step = 0; status == SEPAL_OK && step < 60; step++) {
        status = sepal_tune_step(&tuning, stripes, NULL, step == 0 ? &first : &score, detail);
    }
    if (status == SEPAL_OK) {
        status = sepal_tune_end(&tuning, parameters, len, detail);
    }
    if (status != SEPAL_OK) {
        return failed("tune", status, detail);
    }
    printf("block %lu learnt in %lu bytes: loss %f, then %f\n", (unsigned long)learnt_block,
           (unsigned long)bytes, (double)first.loss, (double)score.loss);
    return score.loss < first.loss ? 0 : 1;
}

/* The embedding of a stripe, of length 1. */
static sepal_status embed(uint32_t index, float *embedding, size_t len, uint16_t *label,
                          sepal_detail *detail)
{
    static uint8_t sample[SIDE * SIDE];
    sepal_status status;
    stripes(NULL, index, sample, sizeof sample, label);
    status = sepal_embed(&model, ALIGNED(memory), 1 << 16, sample, sizeof sample, embedding, len,
                         detail);
    return status != SEPAL_OK ? status : sepal_unit_length(embedding, len, detail);
}

/* Stripes as classes, from half of the samples; the other half is classified. */
static int add_classes(sepal_detail *detail)
{
    static float embedding[1 << 10];
    static float room[1 << 12];
    sepal_prototypes prototypes;
    sepal_status status;
    size_t len = sepal_embedding_len(&model);
    uint16_t label, found;
    uint32_t i, right = 0;

    if (len > sizeof embedding / sizeof *embedding) {
        return 1;
    }
    status = sepal_prototypes_open(&prototypes, (uint32_t)len, STRIPES, 0, room, sizeof room,
                                   detail);
    for (i = 0; status == SEPAL_OK && i < SAMPLES / 2; i++) {
        status = embed(i, embedding, len, &label, detail);
        if (status == SEPAL_OK) {
            status = sepal_prototypes_add(&prototypes, embedding, len, label, detail);
        }
    }
    for (; status == SEPAL_OK && i < SAMPLES; i++) {
        status = embed(i, embedding, len, &label, detail);
        if (status == SEPAL_OK) {
            status = sepal_prototypes_classify(&prototypes, embedding, len, 1e9f, &found, NULL,
                                               detail);
            right += found == label;
        }
    }
    if (status != SEPAL_OK) {
        return failed("prototypes", status, detail);
    }
    printf("%lu of %d stripes as labelled, by %lu prototypes\n", (unsigned long)right,
           SAMPLES / 2, (unsigned long)prototypes.classes);
    return right >= SAMPLES / 2 * 3 / 4 ? 0 : 1;
}

int main(int arguments, char **argument)
{
    static unsigned char sample[1 << 16], expected[1 << 10];
    static float logits[1 << 8];
    sepal_detail detail;
    sepal_status status;
    size_t len, sample_len, expected_len;

    if (arguments != 4) {
        puts("main MODEL SAMPLE LOGITS");
        return 1;
    }
    len = load(argument[1], ALIGNED(flash), LOAD_MOST);
    sample_len = load(argument[2], sample, sizeof sample);
    expected_len = load(argument[3], expected, sizeof expected);
    status = sepal_open(&model, ALIGNED(flash), len, &detail);
    if (status != SEPAL_OK) {
        return failed("open", status, &detail);
    }
    printf("model of %lu blocks, %lu classes; %lu bytes of memory\n",
           (unsigned long)sepal_blocks(&model), (unsigned long)sepal_classes(&model),
           (unsigned long)sepal_memory_needed(&model));
    if (sepal_classes(&model) > sizeof logits / sizeof *logits) {
        return 1;
    }
    status = classify(sample, sample_len, logits, &detail);
    if (status != SEPAL_OK) {
        return failed("infer", status, &detail);
    }
    if (expected_len != sepal_classes(&model) * sizeof *logits ||
        memcmp(logits, expected, expected_len) != 0) {
        puts("the Rust library computes other logits");
        return 1;
    }
    if (learn(&detail) != 0 || add_classes(&detail) != 0) {
        return 1;
    }
    status = classify(sample, sample_len, logits, &detail);
    if (status != SEPAL_OK) {
        return failed("infer", status, &detail);
    }
    if ((memcmp(logits, expected, expected_len) != 0) != learns) {
        puts(learns ? "nothing was learnt" : "something was learnt");
        return 1;
    }
    /* Back to the file. */
    sepal_use(&model, learnt_block, NULL, 0, &detail);
    status = classify(sample, sample_len, logits, &detail);
    return status != SEPAL_OK || memcmp(logits, expected, expected_len) != 0;
}
