/*
 * A model in use: main MODEL SAMPLE LOGITS
 * Opens the model, classifies the sample and compares the logits, bit by bit, with those in the
 * file LOGITS, which the Rust library wrote.
 */
#include "sepal.h"

#include <string.h>

#include "load.h"

static unsigned char flash[LOAD_MOST + SEPAL_ALIGN];
static unsigned char memory[(1 << 16) + SEPAL_ALIGN];
static sepal_model model;

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
    return 0;
}
