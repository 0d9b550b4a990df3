"""Settings of the whole process: a command line's choice, never the library's."""

import ctypes

__all__ = ["reuse_memory"]

# Names of mallopt(3)'s parameters in glibc's malloc.h, with the values set here.
_SETTINGS = {
    -8: 1,  # M_ARENA_MAX: freed memory is found again whichever thread asks
    -4: 0,  # M_MMAP_MAX: large blocks come from the heap, not as fresh pages each time
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the heap keeps what is freed
}


def reuse_memory() -> None:
    """Keeps freed host memory for the next step, instead of returning it to the system.

    XLA on the CPU allocates its temporaries anew in every step, and clearing fresh pages can cost
    as much as the arithmetic on them. To be called before JAX makes its first array. Changes
    nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for name, value in _SETTINGS.items():
        mallopt(name, value)
