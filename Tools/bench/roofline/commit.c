/*
 * Group commit without a network: the most commits a disk gives to N closed-loop writers.
 *
 * Each round appends one batch for every writer (one write per file), then makes every file durable with
 * fdatasync, spread over a few threads; then all writers go on.
 *
 *   commit --dir DIR --files F --writers W --batch BYTES --seconds S [--threads T]
 *
 * Prints {"commits_per_second":…, "rounds":…, "round_p50_us":…}.
 */
#include "bench.h"

#include <pthread.h>

static int *files;
static long file_count, thread_count;
static pthread_barrier_t begin, done;
static volatile int stop;

static void *flusher(void *argument) {
    long thread = (long)argument;
    for (;;) {
        pthread_barrier_wait(&begin);
        if (stop) return NULL;
        for (long f = thread; f < file_count; f += thread_count)
            if (fdatasync(files[f]) < 0) die("fdatasync");
        pthread_barrier_wait(&done);
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    const char *directory = argument(argc, argv, "--dir", ".");
    file_count = number(argc, argv, "--files", 1);
    long writers = number(argc, argv, "--writers", file_count);
    size_t batch = (size_t)number(argc, argv, "--batch", 200);
    double seconds = (double)number(argc, argv, "--seconds", 3);
    thread_count = number(argc, argv, "--threads", 16);
    if (thread_count > file_count) thread_count = file_count;

    files = must(calloc((size_t)file_count, sizeof *files));
    off_t *sizes = must(calloc((size_t)file_count, sizeof *sizes));
    for (long f = 0; f < file_count; f++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%ld.log", directory, f);
        files[f] = open(path, O_CREAT | O_TRUNC | O_RDWR, 0644);
        if (files[f] < 0) die(path);
    }
    size_t per_file = (size_t)((writers + file_count - 1) / file_count);
    uint8_t *bytes = must(malloc(per_file * batch));
    memset(bytes, 'm', per_file * batch);
    pthread_barrier_init(&begin, NULL, (unsigned)thread_count + 1);
    pthread_barrier_init(&done, NULL, (unsigned)thread_count + 1);
    if (thread_count > 1)
        for (long t = 0; t < thread_count; t++) {
            pthread_t thread;
            pthread_create(&thread, NULL, flusher, (void *)t);
        }

    size_t capacity = 1 << 20, rounds = 0;
    double *took = must(malloc(capacity * sizeof *took));
    double start = now_seconds(), last = start;
    while (last - start < seconds && rounds < capacity) {
        long left = writers;
        for (long f = 0; f < file_count; f++) {
            size_t share = (size_t)((left + file_count - f - 1) / (file_count - f)) * batch;
            if (pwrite(files[f], bytes, share, sizes[f]) != (ssize_t)share) die("pwrite");
            sizes[f] += (off_t)share;
            left -= (long)(share / batch);
        }
        if (thread_count > 1) {
            pthread_barrier_wait(&begin);
            pthread_barrier_wait(&done);
        } else {
            for (long f = 0; f < file_count; f++)
                if (fdatasync(files[f]) < 0) die("fdatasync");
        }
        double now = now_seconds();
        took[rounds++] = now - last;
        last = now;
    }
    qsort(took, rounds, sizeof *took, by_value);
    printf("{\"commits_per_second\":%.0f,\"rounds\":%zu,\"round_p50_us\":%.0f}\n",
           (double)rounds * (double)writers / (last - start), rounds, took[rounds / 2] * 1e6);
    fflush(stdout);
    _exit(0); /* the flushers wait for a round that does not come */
}
