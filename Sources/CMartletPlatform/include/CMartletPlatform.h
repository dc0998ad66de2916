#ifndef CMARTLET_PLATFORM_H
#define CMARTLET_PLATFORM_H
#include <stddef.h>
#include <stdint.h>

// System interfaces that the Glibc module leaves out or hides behind macros and feature tests.
// Every function returns a value >= 0 on success and -errno on failure: errno itself is thread-local
// state which Swift code may clobber between the call and the look at it. EINTR is retried inside.

/// One buffer of a gathered write; the layout of struct iovec.
struct martlet_buffer {
    const void *base;
    size_t length;
};

// Files.

/// What `martlet_open` is to do with the file; the descriptor is always close-on-exec.
enum martlet_open_mode {
    MARTLET_OPEN_READ = 0,
    /// Read and write an existing file.
    MARTLET_OPEN_WRITE = 1,
    /// Read and write; create when missing.
    MARTLET_OPEN_CREATE = 2,
    /// Read and write; the file must not exist yet.
    MARTLET_OPEN_CREATE_NEW = 3,
    MARTLET_OPEN_DIRECTORY = 4,
};
int martlet_open(const char *path, int mode);
int martlet_close(int descriptor);

/// Writes all buffers at `offset`, going on after short writes and splitting at the kernel's limit on the
/// number of buffers. Returns the number of bytes written, or -errno when not everything could be written.
int64_t martlet_write_all(int descriptor, const struct martlet_buffer *buffers, size_t count, int64_t offset);

/// Reads until `length` bytes or the end of the file. Returns the number of bytes read or -errno.
int64_t martlet_read_all(int descriptor, void *into, size_t length, int64_t offset);

/// Reads what the page cache holds without waiting for the device. Returns the number of bytes read
/// (possibly less than asked for), -EAGAIN when the first byte is not cached. Where the file system or
/// kernel has no RWF_NOWAIT, reads normally.
int64_t martlet_read_cached(int descriptor, void *into, size_t length, int64_t offset);

/// Reserves blocks without changing the file's size (FALLOC_FL_KEEP_SIZE).
int martlet_allocate(int descriptor, int64_t offset, int64_t length);
int martlet_truncate(int descriptor, int64_t size);
/// fdatasync.
int martlet_sync_data(int descriptor);
/// fsync; for directories.
int martlet_sync_all(int descriptor);
/// Takes an exclusive lock without waiting (flock); -EWOULDBLOCK when another process has it.
int martlet_lock(int descriptor);

struct martlet_status {
    int64_t size;
    int64_t modified_milliseconds;
    int32_t is_directory;
};
int martlet_status(const char *path, struct martlet_status *out);
int martlet_descriptor_status(int descriptor, struct martlet_status *out);

struct martlet_space {
    int64_t total;
    /// Bytes that a process without privileges may still use.
    int64_t available;
};
int martlet_space(const char *path, struct martlet_space *out);

/// `text` describing an errno value; thread-safe.
const char *martlet_error_text(int error, char *buffer, size_t length);

/// Lets the allocator of a long-running process keep up to 16 MiB of freed memory per arena instead of giving
/// receive buffers and frames of a megabyte back to the kernel and faulting them in again: 10 to 20 % of the CPU
/// time of 1 MiB produce requests. Does nothing without glibc. Call once, early, in a process of our own.
void martlet_keep_freed_memory(void);

/// Tells the thread sanitizer, where the build has it, that a lock with this address was taken, and that it is about to
/// be given back. Do nothing otherwise.
void martlet_lock_taken(const void *lock);
void martlet_lock_given_back(const void *lock);

#endif
