/*
 * sepal: convolutional networks on a microcontroller, run and learnt in memory that the caller lends.
 *
 * - Nothing is allocated and nothing is kept outside the objects that the caller declares.
 * - Every call that can fail returns 0 (SEPAL_OK) or a code. `detail`, which may be null, takes the
 *   numbers that explain it: what is needed or expected, and what was given or found.
 * - Memory is left alone by the caller for as long as the call that it is given to; what is to stay
 *   for longer is said so. Calls on different objects may run at the same time.
 * - An object begins with zeros (a static one does) or is opened before its first use.
 */
#ifndef SEPAL_H
#define SEPAL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What memory and model files begin at a multiple of. */
#define SEPAL_ALIGN 16
/* The most layers, blocks and tensors of a model. */
#define SEPAL_LAYERS 32
#define SEPAL_BLOCKS 16
#define SEPAL_TENSORS 48
/* Bytes of a sepal_model. */
#define SEPAL_MODEL_BYTES 4096

/* A code. An int32_t and no enum, whose size depends on the compiler's options. */
typedef int32_t sepal_status;

enum {
    SEPAL_OK = 0,
    /* A pointer that must not be null is null. */
    SEPAL_NULL = 1,
    /* The object was not opened, or is closed. */
    SEPAL_NOT_OPEN = 2,
    /* Memory does not begin at a multiple of `needed`; `given` bytes behind one. */
    SEPAL_ALIGNMENT = 3,
    /* Memory is too small: bytes. */
    SEPAL_MEMORY = 4,
    /* An array has another length: elements. */
    SEPAL_LENGTH = 5,
    /* Memory of two arguments overlaps. */
    SEPAL_OVERLAP = 6,
    /* The bytes are no model file, or it is damaged: what a field must have, what it has. */
    SEPAL_FORMAT = 7,
    /* The model has more layers, blocks or tensors (`needed`) than a sepal_model holds (`given`). */
    SEPAL_TOO_MANY = 8,
    /* The layers do not fit each other, or are too large for this machine: `given` is the layer. */
    SEPAL_NET = 9,
    /* Parameters are missing, of another length or of a type that cannot be read: elements. */
    SEPAL_WEIGHTS = 10,
    /* This library cannot run or train that. */
    SEPAL_UNSUPPORTED = 11,
    /* There is no such block: how many there are, which was asked for. */
    SEPAL_RANGE = 12,
    /* A setting is no number that can be used. */
    SEPAL_SETTING = 13,
    /* The callback could not give sample `needed`; `given` is the callback's own code. */
    SEPAL_SAMPLE = 14,
    /* Fewer samples than one batch takes. */
    SEPAL_TOO_FEW = 15,
    /* No sample of the batch has neighbours of its own class and of another. */
    SEPAL_NO_ANCHOR = 16,
    /* The loss is no longer a number; `given` is the step. */
    SEPAL_DIVERGED = 17,
    /* Another block was learnt: its number, then the one asked for. sepal_forget comes first. */
    SEPAL_BUSY = 18,
    /* Number `given` of an embedding is infinite or NaN. */
    SEPAL_NOT_FINITE = 19,
    /* An embedding is too far from its class `given`. */
    SEPAL_FAR = 20,
    /* No class can be added, all rows are taken. */
    SEPAL_FULL = 21,
    /* The embedding belongs to none of the classes. */
    SEPAL_NONE_OF_THESE = 22,
    /* What was kept holds no classes: `given` is the row. */
    SEPAL_KEPT = 23,
    /* The library contradicts itself. */
    SEPAL_INTERNAL = 24
};

/* The numbers of an error. */
typedef struct sepal_detail {
    uint64_t needed;
    uint64_t given;
} sepal_detail;

/* What a code means, for a person. */
const char *sepal_error_text(sepal_status status);

/* ---- A model ---- */

/* An open model. It does not move while it is fine-tuned. */
typedef struct sepal_model {
    uint64_t opaque[SEPAL_MODEL_BYTES / 8];
} sepal_model;

/*
 * Opens the model file of `len` bytes where it lies: in flash, at a multiple of SEPAL_ALIGN. All of
 * it is checked, with its checksums. It stays there, unchanged, for as long as the model is used:
 * weights are read in place. A model that is open already is closed first, whatever comes of this.
 */
sepal_status sepal_open(sepal_model *model, const void *bytes, size_t len, sepal_detail *detail);

/* Bytes of a sample, numbers of its output and of its embedding, blocks; 0 where none is open. */
size_t sepal_input_len(const sepal_model *model);
size_t sepal_classes(const sepal_model *model);
size_t sepal_embedding_len(const sepal_model *model);
size_t sepal_blocks(const sepal_model *model);

/* Bytes of memory that sepal_infer and sepal_embed need: exact; 0 where no model is open. */
size_t sepal_memory_needed(const sepal_model *model);

/*
 * The name of a class: `*len` bytes of UTF-8 in the file, with no zero behind them. Null where there
 * is none.
 */
const char *sepal_class_name(const sepal_model *model, size_t class_index, size_t *len);

/*
 * Runs the model on one sample of raw bytes, as they were when it was trained (images: planes of
 * rows). `memory` begins at a multiple of SEPAL_ALIGN; nothing in it has to be kept between calls.
 */
sepal_status sepal_infer(const sepal_model *model, void *memory, size_t memory_len,
                         const uint8_t *sample, size_t sample_len, float *logits,
                         size_t logits_len, sepal_detail *detail);

/* As sepal_infer, up to the end of the feature blocks: what prototypes take. */
sepal_status sepal_embed(const sepal_model *model, void *memory, size_t memory_len,
                         const uint8_t *sample, size_t sample_len, float *embedding,
                         size_t embedding_len, sepal_detail *detail);

/* The sizes that the library was built with. */
typedef char sepal_model_has_its_size[sizeof(sepal_model) == SEPAL_MODEL_BYTES ? 1 : -1];

#ifdef __cplusplus
}
#endif

#endif
