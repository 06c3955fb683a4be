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
/* Bytes of a sepal_tuning. */
#define SEPAL_TUNING_BYTES 2048

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
    /* Of a whole pass, no sample has neighbours of its own class and of another. */
    SEPAL_NO_ANCHOR = 16,
    /* The loss is no longer a number; `given` is the step. */
    SEPAL_DIVERGED = 17,
    /* Number `given` of an embedding is infinite or NaN. */
    SEPAL_NOT_FINITE = 18,
    /* An embedding is too far from its class `given`. */
    SEPAL_FAR = 19,
    /* No class can be added, all rows are taken. */
    SEPAL_FULL = 20,
    /* The embedding belongs to none of the classes. */
    SEPAL_NONE_OF_THESE = 21,
    /* What was kept holds no classes: `given` is the row. */
    SEPAL_KEPT = 22,
    /* The library contradicts itself. */
    SEPAL_INTERNAL = 23
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

/* ---- Learning one block ---- */

/* How a block is learnt. */
typedef struct sepal_settings {
    uint64_t seed;
    /* Which one, from 0. It is one convolution or dense layer, with what is fused with it: norm,
     * activation, pool. Blocks of features learn to separate the classes, by their nearest
     * neighbours within a batch; those of the classifier learn the labels, by cross-entropy. */
    uint32_t block;
    /* Samples of a step, and of the whole set. */
    uint32_t batch;
    uint32_t samples;
    /* 0: gradient descent with `momentum`, 0 for none; 1: Adam. */
    uint32_t adam;
    float rate;
    float momentum;
    /* By how much a neighbour of another class must be farther; distances lie in 0 to 4. */
    float margin;
} sepal_settings;

/* What came of a step. */
typedef struct sepal_score {
    float loss;
    /* The share of the batch whose nearest neighbour, or whose class, is the right one. */
    float right;
} sepal_score;

/*
 * Writes sample `index` and its label; returns 0, or a code of its own. The same index gives the same
 * sample. It calls nothing that uses the memory of the fine-tuning.
 */
typedef int32_t (*sepal_sample)(void *context, uint32_t index, uint8_t *sample, size_t len,
                                uint16_t *label);

/* A fine-tuning under way. */
typedef struct sepal_tuning {
    uint64_t opaque[SEPAL_TUNING_BYTES / 8];
} sepal_tuning;

/* Parameters of a block: numbers. 0 where there is no such block. */
size_t sepal_parameters(const sepal_model *model, uint32_t block);

/* Bytes of memory that the fine-tuning needs. */
sepal_status sepal_tune_memory(const sepal_model *model, const sepal_settings *settings,
                               size_t *bytes, sepal_detail *detail);

/*
 * Begins. Until sepal_tune_end the memory belongs to the fine-tuning, and the model stays where it
 * is, open, with the parameters that it has; sepal_infer works meanwhile, in other memory.
 */
sepal_status sepal_tune_begin(sepal_tuning *tuning, sepal_model *model,
                              const sepal_settings *settings, void *memory, size_t memory_len,
                              sepal_detail *detail);

/* One step over one batch. Where it fails, the block is as it was before. `score` may be null. */
sepal_status sepal_tune_step(sepal_tuning *tuning, sepal_sample sample, void *context,
                             sepal_score *score, sepal_detail *detail);

/*
 * Ends, and copies the block's parameters to `parameters`, which the model uses from now on as
 * sepal_use says. To throw away what was learnt, do not call it.
 */
sepal_status sepal_tune_end(sepal_tuning *tuning, float *parameters, size_t len,
                            sepal_detail *detail);

/*
 * Uses these parameters, where they lie, in place of a block's in the file: what a fine-tuning gave
 * once, in flash for instance. They stay, unchanged, until others are used. Null: the file's.
 */
sepal_status sepal_use(sepal_model *model, uint32_t block, const float *parameters, size_t len,
                       sepal_detail *detail);

/* ---- New classes from a few samples ---- */

/* The mean embedding of each class. */
typedef struct sepal_prototypes {
    /* Open or not. */
    uint32_t mark;
    /* Numbers of an embedding. */
    uint32_t dim;
    /* Classes that there is room for, and that there are: the first rows. */
    uint32_t capacity;
    uint32_t classes;
    void *memory;
} sepal_prototypes;

/* Scales an embedding to length 1, so that a sample with more contrast is not farther from all. */
sepal_status sepal_unit_length(float *embedding, size_t len, sepal_detail *detail);

/* Bytes of memory for so many classes; 0 where that is past the address space. */
size_t sepal_prototypes_memory(uint32_t dim, uint32_t capacity);

/*
 * Opens prototypes in memory that begins at a multiple of 4 and belongs to them from now on. The
 * first `classes` are there already: memory and `classes` as they were kept. 0 for none.
 */
sepal_status sepal_prototypes_open(sepal_prototypes *prototypes, uint32_t dim, uint32_t capacity,
                                   uint32_t classes, void *memory, size_t memory_len,
                                   sepal_detail *detail);

/* Adds a sample to its class, which may be a new one. */
sepal_status sepal_prototypes_add(sepal_prototypes *prototypes, const float *embedding, size_t len,
                                  uint16_t label, sepal_detail *detail);

/* Removes a class; `samples`, which may be null, takes how many it had: 0 where there was none. */
sepal_status sepal_prototypes_remove(sepal_prototypes *prototypes, uint16_t label,
                                     uint32_t *samples, sepal_detail *detail);

/*
 * The class with the nearest mean, and the squared distance, which may be null. SEPAL_NONE_OF_THESE
 * where there is none, or the embedding lies farther from it than the class's own samples do by so
 * many `deviations` (3, for instance; infinity never refuses).
 */
sepal_status sepal_prototypes_classify(const sepal_prototypes *prototypes, const float *embedding,
                                       size_t len, float deviations, uint16_t *label,
                                       float *distance, sepal_detail *detail);

/* The sizes that the library was built with. */
typedef char sepal_model_has_its_size[sizeof(sepal_model) == SEPAL_MODEL_BYTES ? 1 : -1];
typedef char sepal_tuning_has_its_size[sizeof(sepal_tuning) == SEPAL_TUNING_BYTES ? 1 : -1];

#ifdef __cplusplus
}
#endif

#endif
