/*
 * The C server that martletd is measured against: the same work on the same bytes, and nothing else.
 *
 * Produce (any version whose body has today's shape up to v8): check the CRC-32C of the batch, patch its
 * base offset, gather all batches of a turn into one pwritev per partition, answer each frame.
 * Fetch v4-v6: whole batches from the file by sendfile.
 *
 *   sink --dir DIR [--durable] [--flush-threads N] [--congestion cubic]
 *
 * Prints "ready 127.0.0.1:PORT". Batches of one partition must all have the same size and record count.
 */
#include "bench.h"
#include "../../../Sources/CMartletChecksum/include/CMartletChecksum.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#define INPUT_BYTES (1 << 20)      /* read at most this much at once, as the SwiftNIO recipe does */
#define EXACT_ABOVE (64 << 10)     /* frames larger than this are read to their end and no further */
#define MAX_PARTITIONS 4096
#define MAX_IOVECS 1024

struct partition {
    int fd;
    off_t size;
    int64_t next_offset;
    uint32_t batch_bytes;   /* of the first batch */
    uint32_t batch_records;
    struct iovec *pending;
    int pending_count, pending_capacity;
    int dirty;
};

struct reply_file { int fd; off_t position; size_t count; };

struct connection {
    int fd;
    uint8_t *input;
    size_t capacity, start, end;
    uint8_t *output;
    size_t output_capacity, output_count, output_sent;
    struct reply_file file; /* sent after the output */
    int touched, waiting;
};

static const char *directory;
static struct partition partitions[MAX_PARTITIONS];
static int dirty[MAX_PARTITIONS], dirty_count;
static int epoll_fd;
static int durable;

static struct partition *partition_at(uint32_t index) {
    if (index >= MAX_PARTITIONS) { fprintf(stderr, "partition %u\n", index); exit(1); }
    struct partition *p = &partitions[index];
    if (p->fd == 0) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%u.log", directory, index);
        p->fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0644);
        if (p->fd < 0) die(path);
    }
    return p;
}

static uint8_t *reply_room(struct connection *c, size_t count) {
    if (c->output_count + count > c->output_capacity) {
        c->output_capacity = (c->output_count + count) * 2;
        c->output = must(realloc(c->output, c->output_capacity));
    }
    return c->output + c->output_count;
}

/* One topic with one partition and one batch, as the load generator sends it. */
static void produce(struct connection *c, const uint8_t *frame, size_t count, int version, uint32_t correlation,
                    const uint8_t *body) {
    const uint8_t *p = body;
    int16_t transactional = (int16_t)get16(p);
    p += 2 + (transactional > 0 ? transactional : 0);
    int16_t acks = (int16_t)get16(p);
    p += 2 + 4 + 4; /* acks, timeout, topic count */
    uint16_t name_count = get16(p);
    const uint8_t *name = p + 2;
    p = name + name_count + 4; /* partition count */
    uint32_t index = get32(p);
    uint32_t batch_bytes = get32(p + 4);
    uint8_t *batch = (uint8_t *)p + 8;
    if (batch + batch_bytes > frame + count) { fprintf(stderr, "lying frame\n"); exit(1); }
    int error = 0;
    if (martlet_crc32c(0, batch + 21, batch_bytes - 21) != get32(batch + 17)) error = 2;

    struct partition *part = partition_at(index);
    uint32_t records = get32(batch + 57);
    int64_t base = part->next_offset;
    if (part->batch_bytes == 0) { part->batch_bytes = batch_bytes; part->batch_records = records; }
    put64(batch, (uint64_t)base);
    put32(batch + 12, 0);
    part->next_offset += records;
    if (part->pending_count == part->pending_capacity) {
        part->pending_capacity = part->pending_capacity ? part->pending_capacity * 2 : 64;
        part->pending = must(realloc(part->pending, sizeof(struct iovec) * (size_t)part->pending_capacity));
    }
    part->pending[part->pending_count++] = (struct iovec){batch, batch_bytes};
    if (!part->dirty) { part->dirty = 1; dirty[dirty_count++] = (int)index; }
    if (acks == 0) return;

    uint8_t *start = reply_room(c, 128 + name_count), *q = start + 4;
    q = put32(q, correlation);
    q = put32(q, 1);
    q = put16(q, name_count);
    memcpy(q, name, name_count);
    q = put32(q + name_count, 1);
    q = put32(q, index);
    q = put16(q, (uint16_t)error);
    q = put64(q, (uint64_t)base);
    q = put64(q, (uint64_t)-1);
    if (version >= 5) q = put64(q, 0);
    if (version >= 8) { q = put32(q, 0); q = put16(q, 0xFFFF); }
    q = put32(q, 0);
    put32(start, (uint32_t)(q - start - 4));
    c->output_count += (size_t)(q - start);
}

static void fetch(struct connection *c, int version, uint32_t correlation, const uint8_t *body) {
    const uint8_t *p = body + 4 + 4 + 4 + 4 + 1; /* replica, wait, minimum, maximum, isolation */
    p += 4;
    uint16_t name_count = get16(p);
    const uint8_t *name = p + 2;
    p = name + name_count + 4;
    uint32_t index = get32(p);
    int64_t offset = (int64_t)get64(p + 4);
    uint32_t limit = get32(p + 12 + (version >= 5 ? 8 : 0));
    struct partition *part = partition_at(index);
    size_t count = 0;
    off_t position = 0;
    if (part->batch_bytes && offset < part->next_offset) {
        position = offset / part->batch_records * part->batch_bytes;
        count = limit / part->batch_bytes * part->batch_bytes;
        if (count == 0) count = part->batch_bytes;
        if (position + (off_t)count > part->size) count = (size_t)(part->size - position);
    }
    uint8_t *start = reply_room(c, 128 + name_count), *q = start + 4;
    q = put32(q, correlation);
    q = put32(q, 0);
    q = put32(q, 1);
    q = put16(q, name_count);
    memcpy(q, name, name_count);
    q = put32(q + name_count, 1);
    q = put32(q, index);
    q = put16(q, 0);
    q = put64(q, (uint64_t)part->next_offset);
    q = put64(q, (uint64_t)part->next_offset);
    if (version >= 5) q = put64(q, 0);
    q = put32(q, 0);
    q = put32(q, (uint32_t)count);
    put32(start, (uint32_t)(q - start - 4 + (long)count));
    c->output_count += (size_t)(q - start);
    c->file = (struct reply_file){part->fd, position, count};
}

static void close_connection(struct connection *c) {
    close(c->fd);
    free(c->input);
    free(c->output);
    free(c);
}

/* Returns 0 when the connection is gone. */
static int receive(struct connection *c) {
    size_t room = c->capacity - c->end;
    if (c->end - c->start >= 4) {
        size_t frame = 4 + (size_t)get32(c->input + c->start);
        if (frame > c->capacity) { /* only at the start of the buffer: see compact() */
            c->capacity = frame + INPUT_BYTES;
            c->input = must(realloc(c->input, c->capacity));
        }
        room = c->capacity - c->end;
        if (frame >= EXACT_ABOVE) room = frame - (c->end - c->start);
    }
    ssize_t got = recv(c->fd, c->input + c->end, room, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return 0;
    if (got < 0) return 1;
    c->end += (size_t)got;
    while (c->end - c->start >= 4) {
        size_t count = get32(c->input + c->start);
        if (c->end - c->start < 4 + count) break;
        const uint8_t *frame = c->input + c->start + 4;
        int key = (int)get16(frame), version = (int)get16(frame + 2);
        uint32_t correlation = get32(frame + 4);
        int16_t client = (int16_t)get16(frame + 8);
        const uint8_t *body = frame + 10 + (client > 0 ? client : 0);
        if (key == 0) produce(c, frame, count, version, correlation, body);
        else if (key == 1) fetch(c, version, correlation, body);
        else { fprintf(stderr, "unknown key %d\n", key); return 0; }
        c->start += 4 + count;
    }
    return 1;
}

static void compact(struct connection *c) {
    if (c->start == c->end) { c->start = c->end = 0; return; }
    if (c->start == 0) return;
    memmove(c->input, c->input + c->start, c->end - c->start);
    c->end -= c->start;
    c->start = 0;
}

static void watch(struct connection *c, int writing) {
    if (c->waiting == writing) return;
    c->waiting = writing;
    struct epoll_event e = {.events = EPOLLIN | (writing ? (uint32_t)EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static int reply(struct connection *c) {
    while (c->output_sent < c->output_count) {
        ssize_t sent = send(c->fd, c->output + c->output_sent, c->output_count - c->output_sent,
                            MSG_NOSIGNAL | (c->file.count ? MSG_MORE : 0));
        if (sent < 0) {
            if (errno == EAGAIN) { watch(c, 1); return 1; }
            return 0;
        }
        c->output_sent += (size_t)sent;
    }
    c->output_sent = c->output_count = 0;
    while (c->file.count) {
        ssize_t sent = sendfile(c->fd, c->file.fd, &c->file.position, c->file.count);
        if (sent < 0) {
            if (errno == EAGAIN) { watch(c, 1); return 1; }
            return 0;
        }
        c->file.count -= (size_t)sent;
    }
    watch(c, 0);
    return 1;
}

/* ---- Durable: fdatasync of every dirty file by a few threads, then the replies. ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static int flush_next, flush_end, flush_open;
static int flush_files[MAX_PARTITIONS];

static void *flusher(void *unused) {
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (flush_next == flush_end) pthread_cond_wait(&work, &lock);
        int fd = flush_files[flush_next++];
        pthread_mutex_unlock(&lock);
        if (fdatasync(fd) < 0) die("fdatasync");
        pthread_mutex_lock(&lock);
        if (--flush_open == 0) pthread_cond_signal(&finished);
    }
    return NULL;
}

static void write_pending(void) {
    for (int d = 0; d < dirty_count; d++) {
        struct partition *part = &partitions[dirty[d]];
        for (int i = 0; i < part->pending_count;) {
            int count = part->pending_count - i < MAX_IOVECS ? part->pending_count - i : MAX_IOVECS;
            size_t want = 0;
            for (int k = 0; k < count; k++) want += part->pending[i + k].iov_len;
            ssize_t put = pwritev(part->fd, part->pending + i, count, part->size);
            if (put != (ssize_t)want) die("pwritev");
            part->size += put;
            i += count;
        }
        part->pending_count = 0;
        part->dirty = 0;
    }
    if (durable && dirty_count) {
        if (dirty_count == 1) {
            if (fdatasync(partitions[dirty[0]].fd) < 0) die("fdatasync");
        } else {
            pthread_mutex_lock(&lock);
            for (int d = 0; d < dirty_count; d++) flush_files[d] = partitions[dirty[d]].fd;
            flush_next = 0;
            flush_end = flush_open = dirty_count;
            pthread_cond_broadcast(&work);
            while (flush_open) pthread_cond_wait(&finished, &lock);
            pthread_mutex_unlock(&lock);
        }
    }
    dirty_count = 0;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    directory = argument(argc, argv, "--dir", ".");
    const char *congestion = argument(argc, argv, "--congestion", "cubic");
    durable = flag(argc, argv, "--durable");
    if (durable)
        for (long i = 0; i < number(argc, argv, "--flush-threads", 16); i++) {
            pthread_t thread;
            pthread_create(&thread, NULL, flusher, NULL);
        }
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_count = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1024) < 0) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &address_count);
    printf("ready 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);

    epoll_fd = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int count = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == NULL) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                tune(fd, congestion);
                c = must(calloc(1, sizeof *c));
                c->fd = fd;
                c->capacity = INPUT_BYTES;
                c->input = must(malloc(c->capacity));
                struct epoll_event added = {.events = EPOLLIN, .data.ptr = c};
                epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &added);
                events[i].data.ptr = NULL;
                continue;
            }
            /* A connection that still waits for room to reply is not read from. */
            if (!c->waiting && !receive(c)) {
                write_pending(); /* its bytes may be among the pending */
                close_connection(c);
                events[i].data.ptr = NULL;
            }
        }
        write_pending();
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == NULL) continue;
            compact(c);
            if (!reply(c)) close_connection(c);
        }
    }
}
