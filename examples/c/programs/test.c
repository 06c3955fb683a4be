/*
 * Bad arguments, one by one: test MODEL SAMPLE. Each is a code, and the model works on.
 */
#include "sepal.h"

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
    return failures != 0;
}
