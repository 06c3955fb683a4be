/* Files on the host, in place of flash. */
#ifndef LOAD_H
#define LOAD_H

#include <stdint.h>
#include <stdio.h>

enum { LOAD_MOST = 1 << 20 };

/* Memory of `bytes` that begins at a multiple of SEPAL_ALIGN within a larger array. */
#define ALIGNED(array) \
    ((unsigned char *)(array) + (SEPAL_ALIGN - (uintptr_t)(array) % SEPAL_ALIGN) % SEPAL_ALIGN)

/* The length of a file, which is read to `into`; 0 where it cannot be. */
static size_t load(const char *path, unsigned char *into, size_t most)
{
    FILE *file = fopen(path, "rb");
    size_t len = 0;
    if (file != NULL) {
        len = fread(into, 1, most, file);
        fclose(file);
    } else {
        perror(path);
    }
    return len;
}

#endif
