/*
 * Bad arguments, one by one: test MODEL SAMPLE. Each is a code, and the model works on.
 */
#include "sepal.h"

#include <math.h>
#include <string.h>

#include "load.h"

static unsigned char flash[LOAD_MOST + SEPAL_ALIGN];
static unsigned char damaged[LOAD_MOST + SEPAL_ALIGN];
static unsigned char memory[(1 << 17) + SEPAL_ALIGN];
static sepal_model model, other;
static int failures;

static void check(int line, long long found, long long expected)
{
    if (found != expected) {
        printf("test.c:%d: %lld, expected %lld\n", line, found, expected);
        failures++;
    }
}

#define CHECK(found, expected) check(__LINE__, (long long)(found), (long long)(expected))

enum { SAMPLE = 784, CLASSES = 10 };

static unsigned char sample[SAMPLE];
static float logits[CLASSES];

static void opening(size_t len)
{
    sepal_detail detail;
    unsigned char *bytes = ALIGNED(flash), *copy = ALIGNED(damaged);
    size_t i, name_len = 7;

    CHECK(sepal_input_len(NULL), 0);
    CHECK(sepal_classes(&model), 0);
    CHECK(sepal_memory_needed(&model), 0);
    CHECK(sepal_embedding_len(&model), 0);
    CHECK(sepal_blocks(&model), 0);
    CHECK(sepal_class_name(&model, 0, &name_len) == NULL, 1);
    CHECK(name_len, 0);
    CHECK(sepal_infer(&model, ALIGNED(memory), 1 << 17, sample, SAMPLE, logits, CLASSES, NULL),
          SEPAL_NOT_OPEN);

    CHECK(sepal_open(NULL, bytes, len, &detail), SEPAL_NULL);
    CHECK(sepal_open(&model, NULL, len, &detail), SEPAL_NULL);
    CHECK(sepal_open((sepal_model *)(void *)((char *)&model + 1), bytes, len, &detail),
          SEPAL_ALIGNMENT);
    CHECK(detail.given, 1);
    CHECK(sepal_open(&model, bytes + 4, len - 4, &detail), SEPAL_ALIGNMENT);
    CHECK(detail.needed, SEPAL_ALIGN);
    CHECK(detail.given, 4);
    CHECK(sepal_open(&model, bytes, 0, &detail), SEPAL_FORMAT);
    CHECK(sepal_open(&model, bytes, (size_t)-1, &detail), SEPAL_LENGTH);
    /* Cut anywhere. */
    for (i = 0; i < len; i += i < 600 ? 1 : 97) {
        CHECK(sepal_open(&model, bytes, i, NULL), SEPAL_FORMAT);
    }
    /* A bit that flipped anywhere. */
    memcpy(copy, bytes, len);
    for (i = 0; i < len; i += i < 600 ? 1 : 97) {
        copy[i] ^= 0x10;
        CHECK(sepal_open(&model, copy, len, NULL) != SEPAL_OK, 1);
        copy[i] ^= 0x10;
    }
    CHECK(sepal_classes(&model), 0);

    CHECK(sepal_open(&model, bytes, len, &detail), SEPAL_OK);
    CHECK(detail.needed, 0);
    CHECK(sepal_input_len(&model), SAMPLE);
    CHECK(sepal_classes(&model), CLASSES);
    CHECK(sepal_blocks(&model), 3);
    CHECK(sepal_class_name(&model, 10, &name_len) == NULL, 1);
    CHECK(sepal_class_name(&model, 9, NULL) == NULL, 1);
    CHECK(memcmp(sepal_class_name(&model, 9, &name_len), "neuf", 4), 0);
    CHECK(name_len, 4);
    /* A failure closes. */
    CHECK(sepal_open(&other, bytes, len, NULL), SEPAL_OK);
    CHECK(sepal_open(&other, bytes, len - 1, NULL), SEPAL_FORMAT);
    CHECK(sepal_classes(&other), 0);
}

static sepal_status infer(size_t memory_len, sepal_detail *detail)
{
    return sepal_infer(&model, ALIGNED(memory), memory_len, sample, SAMPLE, logits, CLASSES,
                       detail);
}

static void running(void)
{
    sepal_detail detail;
    unsigned char *room = ALIGNED(memory);
    size_t needed = sepal_memory_needed(&model);
    float *shared = (float *)(void *)room;

    CHECK(infer(needed, &detail), SEPAL_OK);
    CHECK(infer(needed - 1, &detail), SEPAL_MEMORY);
    CHECK(detail.needed > needed - SEPAL_ALIGN && detail.needed <= needed, 1);
    CHECK(detail.given, needed - SEPAL_ALIGN);
    CHECK(infer(0, &detail), SEPAL_MEMORY);
    CHECK(infer((size_t)-1, &detail) != SEPAL_OK, 1);
    CHECK(sepal_infer(NULL, room, needed, sample, SAMPLE, logits, CLASSES, NULL), SEPAL_NULL);
    CHECK(sepal_infer(&model, NULL, needed, sample, SAMPLE, logits, CLASSES, NULL), SEPAL_NULL);
    CHECK(sepal_infer(&model, room, needed, NULL, SAMPLE, logits, CLASSES, NULL), SEPAL_NULL);
    CHECK(sepal_infer(&model, room, needed, sample, SAMPLE, NULL, CLASSES, NULL), SEPAL_NULL);
    CHECK(sepal_infer(&model, room + 8, needed, sample, SAMPLE, logits, CLASSES, &detail),
          SEPAL_ALIGNMENT);
    CHECK(detail.given, 8);
    CHECK(sepal_infer(&model, room, needed, sample, SAMPLE - 1, logits, CLASSES, &detail),
          SEPAL_LENGTH);
    CHECK(detail.needed, SAMPLE);
    CHECK(detail.given, SAMPLE - 1);
    CHECK(sepal_infer(&model, room, needed, sample, 0, logits, CLASSES, NULL), SEPAL_LENGTH);
    CHECK(sepal_infer(&model, room, needed, sample, SAMPLE, logits, CLASSES + 1, NULL),
          SEPAL_LENGTH);
    CHECK(sepal_infer(&model, room, needed, sample, SAMPLE, (float *)(void *)(room + 1), CLASSES,
                      NULL),
          SEPAL_ALIGNMENT);
    CHECK(sepal_infer(&model, room, needed, room, SAMPLE, logits, CLASSES, NULL), SEPAL_OVERLAP);
    CHECK(sepal_infer(&model, room, needed, sample, SAMPLE, shared, CLASSES, NULL), SEPAL_OVERLAP);
    CHECK(sepal_infer(&model, ALIGNED(flash), needed, sample, SAMPLE, logits, CLASSES, NULL),
          SEPAL_OVERLAP);
    CHECK(sepal_embed(&model, room, needed, sample, SAMPLE, logits, CLASSES, NULL), SEPAL_LENGTH);
    CHECK(sepal_error_text(99) != NULL, 1);
    CHECK(strcmp(sepal_error_text(SEPAL_OK), "all is well"), 0);
}

static int32_t give(void *context, uint32_t index, uint8_t *into, size_t len, uint16_t *label)
{
    size_t i;
    int32_t *calls = context;
    if (calls != NULL && --*calls < 0) {
        return -7;
    }
    for (i = 0; i < len; i++) {
        into[i] = (uint8_t)(i * (index % 3 + 1) + index * 31);
    }
    *label = (uint16_t)(index % 3);
    return 0;
}

static int32_t one_class(void *context, uint32_t index, uint8_t *into, size_t len, uint16_t *label)
{
    int32_t code = give(context, index, into, len, label);
    *label = 5;
    return code;
}

static void learning(void)
{
    static float parameters[1 << 12], again[1 << 12];
    static float before[CLASSES], after[CLASSES];
    static sepal_tuning tuning;
    sepal_settings good = {0}, bad;
    sepal_detail detail;
    sepal_score score;
    unsigned char *room = ALIGNED(memory);
    size_t bytes = 0, len = sepal_parameters(&model, 1);
    int32_t calls = 3;

    good.block = 1;
    good.batch = 6;
    good.samples = 12;
    good.rate = 0.01f;
    good.margin = 1.0f;
    CHECK(sepal_parameters(&model, 3), 0);
    CHECK(sepal_tune_memory(&model, &good, &bytes, NULL), SEPAL_OK);
    CHECK(sepal_tune_memory(&model, &good, NULL, NULL), SEPAL_NULL);
    CHECK(sepal_tune_memory(&model, NULL, &bytes, NULL), SEPAL_NULL);
    bad = good, bad.block = 3;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, &detail), SEPAL_RANGE);
    CHECK(detail.needed, 3);
    /* A classifier that begins with a layer of another kind. */
    bad = good, bad.block = 2;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, NULL), SEPAL_UNSUPPORTED);
    bad = good, bad.batch = 0;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, NULL), SEPAL_SETTING);
    bad = good, bad.rate = 0;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, NULL), SEPAL_SETTING);
    bad = good, bad.rate = (float)NAN;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, NULL), SEPAL_SETTING);
    bad = good, bad.momentum = 1;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, NULL), SEPAL_SETTING);
    bad = good, bad.adam = 2;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, NULL), SEPAL_SETTING);
    bad = good, bad.samples = 5;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, &detail), SEPAL_TOO_FEW);
    CHECK(detail.needed, 6);
    CHECK(detail.given, 5);
    bad = good, bad.batch = bad.samples = UINT32_MAX;
    CHECK(sepal_tune_memory(&model, &bad, &bytes, NULL) != SEPAL_OK, 1);

    CHECK(sepal_tune_memory(&model, &good, &bytes, NULL), SEPAL_OK);
    CHECK(sepal_tune_step(&tuning, give, NULL, &score, NULL), SEPAL_NOT_OPEN);
    CHECK(sepal_tune_end(&tuning, parameters, len, NULL), SEPAL_NOT_OPEN);
    CHECK(sepal_tune_begin(NULL, &model, &good, room, bytes, NULL), SEPAL_NULL);
    CHECK(sepal_tune_begin(&tuning, NULL, &good, room, bytes, NULL), SEPAL_NULL);
    CHECK(sepal_tune_begin(&tuning, &model, NULL, room, bytes, NULL), SEPAL_NULL);
    CHECK(sepal_tune_begin(&tuning, &model, &good, NULL, bytes, NULL), SEPAL_NULL);
    CHECK(sepal_tune_begin(&tuning, &model, &good, room + 4, bytes, NULL), SEPAL_ALIGNMENT);
    CHECK(sepal_tune_begin(&tuning, &model, &good, room, bytes - SEPAL_ALIGN, &detail),
          SEPAL_MEMORY);
    CHECK(detail.given, bytes - SEPAL_ALIGN);
    CHECK(sepal_tune_step(&tuning, give, NULL, &score, NULL), SEPAL_NOT_OPEN);

    CHECK(sepal_infer(&model, room, 1 << 17, sample, SAMPLE, before, CLASSES, NULL), SEPAL_OK);
    CHECK(sepal_tune_begin(&tuning, &model, &good, room, bytes, NULL), SEPAL_OK);
    CHECK(sepal_tune_step(&tuning, NULL, NULL, &score, NULL), SEPAL_NULL);
    CHECK(sepal_tune_step(&tuning, give, &calls, &score, &detail), SEPAL_SAMPLE);
    CHECK((int32_t)(uint32_t)detail.given, -7);
    /* One batch of one class is passed by; a pass of such batches is an error. */
    for (uint32_t left = good.samples / good.batch - 1; left > 0; left--) {
        CHECK(sepal_tune_step(&tuning, one_class, NULL, &score, NULL), SEPAL_OK);
    }
    CHECK(sepal_tune_step(&tuning, one_class, NULL, &score, NULL), SEPAL_NO_ANCHOR);
    CHECK(sepal_tune_end(&tuning, NULL, len, NULL), SEPAL_NULL);
    CHECK(sepal_tune_end(&tuning, parameters, len - 1, &detail), SEPAL_LENGTH);
    CHECK(detail.needed, len);
    CHECK(sepal_tune_end(&tuning, (float *)(void *)room, len, NULL), SEPAL_OVERLAP);
    CHECK(sepal_tune_end(&tuning, (float *)(void *)ALIGNED(flash), len, NULL), SEPAL_OVERLAP);
    CHECK(sepal_tune_end(&tuning, (float *)(void *)&model, len, NULL), SEPAL_OVERLAP);
    /* Steps that failed changed nothing. */
    CHECK(sepal_tune_end(&tuning, parameters, len, NULL), SEPAL_OK);
    CHECK(sepal_tune_end(&tuning, parameters, len, NULL), SEPAL_NOT_OPEN);
    CHECK(sepal_infer(&model, room, 1 << 17, sample, SAMPLE, after, CLASSES, NULL), SEPAL_OK);
    CHECK(memcmp(before, after, sizeof before), 0);

    /* Once more, on top, with a step that counts. */
    CHECK(sepal_tune_begin(&tuning, &model, &good, room, bytes, NULL), SEPAL_OK);
    CHECK(sepal_tune_step(&tuning, give, NULL, NULL, NULL), SEPAL_OK);
    CHECK(sepal_tune_end(&tuning, again, len, NULL), SEPAL_OK);
    CHECK(sepal_infer(&model, room, 1 << 17, sample, SAMPLE, after, CLASSES, NULL), SEPAL_OK);
    CHECK(memcmp(before, after, sizeof before) != 0, 1);
    /* In the same place. */
    CHECK(sepal_tune_begin(&tuning, &model, &good, room, bytes, NULL), SEPAL_OK);
    CHECK(sepal_tune_end(&tuning, again, len, NULL), SEPAL_OK);
    CHECK(sepal_use(&model, 1, again, len + 1, NULL), SEPAL_LENGTH);
    CHECK(sepal_use(&model, 3, again, len, NULL), SEPAL_RANGE);
    CHECK(sepal_use(&model, 1, parameters, len, NULL), SEPAL_OK);
    CHECK(sepal_infer(&model, room, 1 << 17, sample, SAMPLE, after, CLASSES, NULL), SEPAL_OK);
    CHECK(memcmp(before, after, sizeof before), 0);
    CHECK(sepal_infer(&model, room, 1 << 17, sample, SAMPLE, parameters, CLASSES, NULL),
          SEPAL_OVERLAP);
    CHECK(sepal_use(&model, 1, NULL, 0, NULL), SEPAL_OK);
}

static void classes(void)
{
    static float room[64];
    float a[2] = {1, 0}, b[2] = {0, 2}, bad[2] = {0, 0}, distance;
    sepal_prototypes prototypes = {0};
    sepal_detail detail;
    uint16_t label = 0;
    uint32_t samples = 9;
    size_t bytes = sepal_prototypes_memory(2, 2);

    bad[1] = (float)NAN;
    CHECK(bytes, 2 * (2 * 4 + 14));
    CHECK(sizeof(void *) > 4 || sepal_prototypes_memory(UINT32_MAX, UINT32_MAX) == 0, 1);
    CHECK(sepal_prototypes_add(&prototypes, a, 2, 4, NULL), SEPAL_NOT_OPEN);
    CHECK(sepal_prototypes_open(&prototypes, 2, 2, 0, room, bytes - 1, &detail), SEPAL_MEMORY);
    CHECK(detail.needed, bytes);
    CHECK(sepal_prototypes_open(&prototypes, 0, 2, 0, room, bytes, NULL), SEPAL_LENGTH);
    CHECK(sepal_prototypes_open(&prototypes, 2, 2, 0, NULL, bytes, NULL), SEPAL_NULL);
    CHECK(sepal_prototypes_open(&prototypes, 2, 2, 0, (char *)room + 2, bytes, NULL),
          SEPAL_ALIGNMENT);
    CHECK(sepal_prototypes_open(&prototypes, 2, 2, 1, room, bytes, NULL), SEPAL_KEPT);
    CHECK(sepal_prototypes_open(&prototypes, 2, 2, 3, room, bytes, NULL), SEPAL_MEMORY);
    CHECK(sepal_prototypes_open(&prototypes, 2, 2, 0, room, bytes, NULL), SEPAL_OK);
    CHECK(sepal_prototypes_classify(&prototypes, a, 2, 3, &label, &distance, NULL),
          SEPAL_NONE_OF_THESE);
    CHECK(sepal_prototypes_add(&prototypes, a, 3, 4, NULL), SEPAL_LENGTH);
    CHECK(sepal_prototypes_add(&prototypes, NULL, 2, 4, NULL), SEPAL_NULL);
    CHECK(sepal_prototypes_add(&prototypes, bad, 2, 4, &detail), SEPAL_NOT_FINITE);
    CHECK(detail.given, 1);
    CHECK(sepal_prototypes_add(&prototypes, room, 2, 4, NULL), SEPAL_OVERLAP);
    CHECK(sepal_unit_length(b, 2, NULL), SEPAL_OK);
    CHECK(b[1] == 1.0f, 1);
    CHECK(sepal_unit_length(NULL, 2, NULL), SEPAL_NULL);
    CHECK(sepal_prototypes_add(&prototypes, a, 2, 4, NULL), SEPAL_OK);
    CHECK(sepal_prototypes_add(&prototypes, b, 2, 9, NULL), SEPAL_OK);
    CHECK(sepal_prototypes_add(&prototypes, b, 2, 5, NULL), SEPAL_FULL);
    CHECK(prototypes.classes, 2);
    CHECK(sepal_prototypes_classify(&prototypes, b, 2, 3, &label, &distance, NULL), SEPAL_OK);
    CHECK(label, 9);
    CHECK(distance == 0.0f, 1);
    CHECK(sepal_prototypes_classify(&prototypes, bad, 2, 3, &label, NULL, NULL),
          SEPAL_NONE_OF_THESE);
    CHECK(sepal_prototypes_classify(&prototypes, b, 1, 3, &label, NULL, NULL), SEPAL_LENGTH);
    CHECK(sepal_prototypes_classify(&prototypes, b, 2, 3, NULL, NULL, NULL), SEPAL_NULL);
    /* Kept, and gone on with. */
    CHECK(sepal_prototypes_open(&prototypes, 2, 2, 2, room, bytes, NULL), SEPAL_OK);
    CHECK(sepal_prototypes_remove(&prototypes, 7, &samples, NULL), SEPAL_OK);
    CHECK(samples, 0);
    CHECK(sepal_prototypes_remove(&prototypes, 9, &prototypes.classes, NULL), SEPAL_OVERLAP);
    CHECK(prototypes.classes, 2);
    CHECK(sepal_prototypes_remove(&prototypes, 9, &samples, NULL), SEPAL_OK);
    CHECK(samples, 1);
    CHECK(prototypes.classes, 1);
    CHECK(sepal_prototypes_classify(&prototypes, b, 2, 3, &label, NULL, NULL), SEPAL_OK);
    CHECK(label, 4);
}

int main(int arguments, char **argument)
{
    size_t len;
    if (arguments != 3) {
        puts("test MODEL SAMPLE");
        return 1;
    }
    len = load(argument[1], ALIGNED(flash), LOAD_MOST);
    if (load(argument[2], sample, SAMPLE) != SAMPLE) {
        return 1;
    }
    opening(len);
    running();
    learning();
    classes();
    return failures != 0;
}
