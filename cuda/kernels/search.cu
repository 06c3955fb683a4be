// Kernels of this room.
