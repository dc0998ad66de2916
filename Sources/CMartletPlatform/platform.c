#define _GNU_SOURCE
#include "CMartletPlatform.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x00000008
#endif

// Linux's UIO_MAXIOV.
#define BUFFERS_PER_CALL 1024

_Static_assert(sizeof(struct martlet_buffer) == sizeof(struct iovec), "martlet_buffer must be an iovec");

int martlet_open(const char *path, int mode) {
    int flags = O_CLOEXEC;
    switch (mode) {
    case MARTLET_OPEN_READ: flags |= O_RDONLY; break;
    case MARTLET_OPEN_WRITE: flags |= O_RDWR; break;
    case MARTLET_OPEN_CREATE: flags |= O_RDWR | O_CREAT; break;
    case MARTLET_OPEN_CREATE_NEW: flags |= O_RDWR | O_CREAT | O_EXCL; break;
    case MARTLET_OPEN_DIRECTORY: flags |= O_RDONLY | O_DIRECTORY; break;
    default: return -EINVAL;
    }
    for (;;) {
        int descriptor = open(path, flags, 0644);
        if (descriptor >= 0) return descriptor;
        if (errno != EINTR) return -errno;
    }
}

int martlet_close(int descriptor) {
    // After EINTR Linux has closed the descriptor all the same: never close twice.
    return close(descriptor) == 0 || errno == EINTR ? 0 : -errno;
}

int64_t martlet_write_all(int descriptor, const struct martlet_buffer *buffers, size_t count, int64_t offset) {
    int64_t total = 0;
    size_t next = 0;
    while (next < count) {
        size_t batch = count - next < BUFFERS_PER_CALL ? count - next : BUFFERS_PER_CALL;
        ssize_t written = pwritev(descriptor, (const struct iovec *)(buffers + next), (int)batch, offset + total);
        if (written < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        total += written;
        size_t left = (size_t)written;
        while (next < count && left >= buffers[next].length) {
            left -= buffers[next].length;
            next++;
        }
        // A short write inside a buffer: finish that buffer alone, then go on with the list.
        if (left > 0) {
            const char *base = (const char *)buffers[next].base;
            size_t length = buffers[next].length;
            while (left < length) {
                ssize_t rest = pwrite(descriptor, base + left, length - left, offset + total);
                if (rest < 0) {
                    if (errno == EINTR) continue;
                    return -errno;
                }
                if (rest == 0) return -ENOSPC;
                left += (size_t)rest;
                total += rest;
            }
            next++;
        } else if (written == 0 && next < count) {
            return -ENOSPC;
        }
    }
    return total;
}

int64_t martlet_read_all(int descriptor, void *into, size_t length, int64_t offset) {
    size_t done = 0;
    while (done < length) {
        ssize_t count = pread(descriptor, (char *)into + done, length - done, offset + (int64_t)done);
        if (count < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        if (count == 0) break;
        done += (size_t)count;
    }
    return (int64_t)done;
}

int64_t martlet_read_cached(int descriptor, void *into, size_t length, int64_t offset) {
    struct iovec part = {into, length};
    for (;;) {
        ssize_t count = preadv2(descriptor, &part, 1, offset, RWF_NOWAIT);
        if (count >= 0) return count;
        if (errno == EINTR) continue;
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)
            return martlet_read_all(descriptor, into, length, offset);
        return -errno;
    }
}

int martlet_allocate(int descriptor, int64_t offset, int64_t length) {
    for (;;) {
        if (fallocate(descriptor, FALLOC_FL_KEEP_SIZE, offset, length) == 0) return 0;
        if (errno != EINTR) return -errno;
    }
}

int martlet_truncate(int descriptor, int64_t size) {
    for (;;) {
        if (ftruncate(descriptor, size) == 0) return 0;
        if (errno != EINTR) return -errno;
    }
}

// EINTR is no failed flush: nothing has been marked clean.
int martlet_sync_data(int descriptor) {
    for (;;) {
        if (fdatasync(descriptor) == 0) return 0;
        if (errno != EINTR) return -errno;
    }
}

int martlet_sync_all(int descriptor) {
    for (;;) {
        if (fsync(descriptor) == 0) return 0;
        if (errno != EINTR) return -errno;
    }
}

int martlet_lock(int descriptor) { return flock(descriptor, LOCK_EX | LOCK_NB) == 0 ? 0 : -errno; }

static void convert(const struct stat *in, struct martlet_status *out) {
    out->size = in->st_size;
    out->modified_milliseconds = (int64_t)in->st_mtim.tv_sec * 1000 + in->st_mtim.tv_nsec / 1000000;
    out->is_directory = S_ISDIR(in->st_mode);
}

int martlet_status(const char *path, struct martlet_status *out) {
    struct stat status;
    if (stat(path, &status) != 0) return -errno;
    convert(&status, out);
    return 0;
}

int martlet_descriptor_status(int descriptor, struct martlet_status *out) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return -errno;
    convert(&status, out);
    return 0;
}

int martlet_space(const char *path, struct martlet_space *out) {
    struct statvfs status;
    if (statvfs(path, &status) != 0) return -errno;
    out->total = (int64_t)status.f_blocks * (int64_t)status.f_frsize;
    out->available = (int64_t)status.f_bavail * (int64_t)status.f_frsize;
    return 0;
}

const char *martlet_error_text(int error, char *buffer, size_t length) {
    return strerror_r(error, buffer, length);
}

#if defined(__GLIBC__)
#include <malloc.h>
#endif

void martlet_keep_freed_memory(void) {
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, 4 * 1024 * 1024);
    mallopt(M_TRIM_THRESHOLD, 16 * 1024 * 1024);
#endif
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#include <sanitizer/tsan_interface.h>
#define MARTLET_THREAD_SANITIZER 1
#endif
#endif

void martlet_lock_taken(const void *lock) {
#ifdef MARTLET_THREAD_SANITIZER
    __tsan_acquire((void *)lock);
#else
    (void)lock;
#endif
}

void martlet_lock_given_back(const void *lock) {
#ifdef MARTLET_THREAD_SANITIZER
    __tsan_release((void *)lock);
#else
    (void)lock;
#endif
}
