#ifndef CMARTLET_ALLOCATION_COUNTER_H
#define CMARTLET_ALLOCATION_COUNTER_H
#include <stdint.h>

// Counts heap allocations of the test process: a program that links this has its own malloc, calloc, realloc
// and aligned allocation in front of glibc's. Only tests link it.

/// 1 where allocations are counted; 0 under a sanitizer or without glibc, where every count stays 0.
int martlet_counts_allocations(void);

/// Allocations that the calling thread has made so far.
uint64_t martlet_thread_allocation_count(void);

/// Bytes of the largest allocation that the calling thread has asked for since it asked this last.
uint64_t martlet_thread_largest_allocation(void);

/// Allocations that all threads have made while counting for all of them was on.
uint64_t martlet_process_allocation_count(void);
void martlet_count_process_allocations(int on);

#endif
