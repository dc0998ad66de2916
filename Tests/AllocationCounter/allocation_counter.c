#include "CMartletAllocationCounter.h"

#include <errno.h>
#include <features.h>
#include <stdatomic.h>
#include <stddef.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif

static _Thread_local uint64_t thread_count;
static _Thread_local uint64_t thread_largest;
static _Atomic uint64_t process_count;
static _Atomic int counts_process;

uint64_t martlet_thread_allocation_count(void) { return thread_count; }
uint64_t martlet_thread_largest_allocation(void) {
    uint64_t largest = thread_largest;
    thread_largest = 0;
    return largest;
}

uint64_t martlet_process_allocation_count(void) { return atomic_load(&process_count); }
void martlet_count_process_allocations(int on) { atomic_store(&counts_process, on); }

#if defined(__GLIBC__) && !defined(SANITIZED)

int martlet_counts_allocations(void) { return 1; }

// glibc's allocator under its second names: what these return is free()d by glibc as usual.
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *pointer, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

static void note(size_t size) {
    thread_count++;
    if (size > thread_largest) thread_largest = size;
    if (atomic_load_explicit(&counts_process, memory_order_relaxed))
        atomic_fetch_add_explicit(&process_count, 1, memory_order_relaxed);
}

void *malloc(size_t size) {
    note(size);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    size_t total;
    note(__builtin_mul_overflow(count, size, &total) ? SIZE_MAX : total);
    return __libc_calloc(count, size);
}

void *realloc(void *pointer, size_t size) {
    note(size);
    return __libc_realloc(pointer, size);
}

void *memalign(size_t alignment, size_t size) {
    note(size);
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    note(size);
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    if (alignment < sizeof(void *) || (alignment & (alignment - 1)) != 0) return EINVAL;
    note(size);
    void *pointer = __libc_memalign(alignment, size);
    if (pointer == NULL) return ENOMEM;
    *out = pointer;
    return 0;
}

#else

int martlet_counts_allocations(void) { return 0; }

#endif
