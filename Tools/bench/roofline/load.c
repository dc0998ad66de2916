/*
 * The load generator: one binary for martletd and for the C sink, so that both see the same bytes.
 *
 *   load produce --to HOST:PORT --topic T [--partitions P] [--connections C] [--in-flight K]
 *                [--batch BYTES] [--record BYTES] [--batch-file FILE] [--acks A]
 *                (--bytes TOTAL | --seconds S) [--warm BYTES]
 *   load fetch   --to HOST:PORT --topic T [--partitions P] [--connections C] [--max-bytes M]
 *                (--bytes TOTAL | --seconds S)
 *
 * produce: Produce v7 with one prebuilt batch; connection c with K in flight writes to partitions
 * (c*K + i) mod P. Batches consist of records of --record value bytes unless a file gives one (its checksum
 * is made right here). fetch: Fetch v4, one request in flight per connection, from offset 0 to the end and
 * again. Prints one JSON object. Any error code in a reply ends the run with a message.
 */
#include "bench.h"
#include "../../../Sources/CMartletChecksum/include/CMartletChecksum.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define MAX_IN_FLIGHT 1024
#define HEAD_BYTES 512

struct connection {
    int fd, index;
    /* sending */
    uint8_t head[HEAD_BYTES];
    size_t head_count, frame_sent;
    int sending;
    uint32_t next_correlation, next_reply;
    long in_flight;
    double sent_at[MAX_IN_FLIGHT];
    /* receiving */
    uint8_t *input;
    size_t capacity, end;
    int64_t offset;
};

static const char *topic;
static long partition_count, connection_count, in_flight_limit, acks, max_bytes;
static uint8_t *batch;
static size_t batch_bytes;
static double end_at;
static uint64_t byte_goal, bytes_started, bytes_done, requests_done;
static int fetching;
static double *latencies;
static size_t latency_count, latency_capacity = 1 << 22;

static size_t put_varint(uint8_t *p, int64_t value) {
    uint64_t raw = ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
    size_t n = 0;
    while (raw >= 0x80) { p[n++] = (uint8_t)(raw | 0x80); raw >>= 7; }
    p[n++] = (uint8_t)raw;
    return n;
}

static void seal(void) {
    put32(batch + 8, (uint32_t)(batch_bytes - 12));
    put32(batch + 17, martlet_crc32c(0, batch + 21, batch_bytes - 21));
}

static void build_batch(size_t target, size_t record) {
    batch = must(calloc(1, target + record + 128));
    uint8_t *p = batch + HEADER_BYTES;
    uint8_t body[64];
    int64_t base = (int64_t)time(NULL) * 1000;
    int32_t count = 0;
    while (count == 0 || (size_t)(p - batch) + record + 32 <= target) {
        size_t n = 0;
        body[n++] = 0;
        n += put_varint(body + n, 0);
        n += put_varint(body + n, count);
        n += put_varint(body + n, -1);
        n += put_varint(body + n, (int64_t)record);
        p += put_varint(p, (int64_t)(n + record + 1));
        memcpy(p, body, n);
        p += n;
        for (size_t i = 0; i < record; i++) p[i] = (uint8_t)(i * 31 + (size_t)count * 7);
        p += record;
        *p++ = 0;
        count++;
    }
    batch_bytes = (size_t)(p - batch);
    batch[16] = 2;
    put32(batch + 12, 0xFFFFFFFF);
    put32(batch + 23, (uint32_t)count - 1);
    put64(batch + 27, (uint64_t)base);
    put64(batch + 35, (uint64_t)base);
    put64(batch + 43, (uint64_t)-1);
    put16(batch + 51, 0xFFFF);
    put32(batch + 53, 0xFFFFFFFF);
    put32(batch + 57, (uint32_t)count);
    seal();
}

static void read_batch(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) < 0) die(path);
    batch_bytes = (size_t)info.st_size;
    batch = must(malloc(batch_bytes));
    if (read(fd, batch, batch_bytes) != (ssize_t)batch_bytes) die(path);
    close(fd);
    seal();
}

static int want_more(void) { return byte_goal ? bytes_started < byte_goal : now_seconds() < end_at; }

static void make_produce(struct connection *c) {
    uint8_t *p = c->head + 4;
    uint32_t slot = c->next_correlation % (uint32_t)in_flight_limit;
    p = put16(p, 0);
    p = put16(p, 7);
    p = put32(p, c->next_correlation);
    p = put_text(p, "bench");
    p = put16(p, 0xFFFF); /* no transaction */
    p = put16(p, (uint16_t)acks);
    p = put32(p, 30000);
    p = put32(p, 1);
    p = put_text(p, topic);
    p = put32(p, 1);
    p = put32(p, (uint32_t)(((long)c->index * in_flight_limit + slot) % partition_count));
    p = put32(p, (uint32_t)batch_bytes);
    c->head_count = (size_t)(p - c->head);
    put32(c->head, (uint32_t)(c->head_count - 4 + batch_bytes));
}

static void make_fetch(struct connection *c) {
    uint8_t *p = c->head + 4;
    p = put16(p, 1);
    p = put16(p, 4);
    p = put32(p, c->next_correlation);
    p = put_text(p, "bench");
    p = put32(p, 0xFFFFFFFF);
    p = put32(p, 0); /* no long poll: at the end of the log the reader starts again at once */
    p = put32(p, 1);
    p = put32(p, (uint32_t)max_bytes);
    *p++ = 0;
    p = put32(p, 1);
    p = put_text(p, topic);
    p = put32(p, 1);
    p = put32(p, (uint32_t)(c->index % partition_count));
    p = put64(p, (uint64_t)c->offset);
    p = put32(p, (uint32_t)max_bytes);
    c->head_count = (size_t)(p - c->head);
    put32(c->head, (uint32_t)(c->head_count - 4));
}

/* Sends as much as the socket takes. Requests of one connection are never interleaved. */
static void pump(struct connection *c) {
    for (;;) {
        if (!c->sending) {
            if (c->in_flight >= in_flight_limit || !want_more()) return;
            if (fetching) make_fetch(c); else { make_produce(c); bytes_started += batch_bytes; }
            c->sending = 1;
            c->frame_sent = 0;
            c->sent_at[c->next_correlation % (uint32_t)in_flight_limit] = now_seconds();
            c->next_correlation++;
            c->in_flight++;
        }
        size_t body = fetching ? 0 : batch_bytes;
        struct iovec parts[2];
        int count = 0;
        if (c->frame_sent < c->head_count)
            parts[count++] = (struct iovec){c->head + c->frame_sent, c->head_count - c->frame_sent};
        size_t into = c->frame_sent > c->head_count ? c->frame_sent - c->head_count : 0;
        if (into < body) parts[count++] = (struct iovec){batch + into, body - into};
        ssize_t sent = writev(c->fd, parts, count);
        if (sent < 0) {
            if (errno == EAGAIN) return;
            die("send");
        }
        c->frame_sent += (size_t)sent;
        if (c->frame_sent == c->head_count + body) {
            c->sending = 0;
            if (acks == 0 && !fetching) {
                c->in_flight--;
                requests_done++;
                bytes_done += batch_bytes;
            }
        }
    }
}

static void fail(int error) {
    fprintf(stderr, "the broker answered error %d\n", error);
    exit(1);
}

static void take_reply(struct connection *c, const uint8_t *frame, size_t count) {
    uint32_t correlation = get32(frame);
    if (correlation != c->next_reply) { fprintf(stderr, "replies out of order\n"); exit(1); }
    c->next_reply++;
    c->in_flight--;
    requests_done++;
    if (latency_count < latency_capacity)
        latencies[latency_count++] = now_seconds() - c->sent_at[correlation % (uint32_t)in_flight_limit];
    if (!fetching) {
        const uint8_t *p = frame + 4 + 4; /* correlation, topic count */
        p += 2 + get16(p) + 4 + 4;
        if (get16(p)) fail((int16_t)get16(p));
        bytes_done += batch_bytes;
        return;
    }
    const uint8_t *p = frame + 4 + 4 + 4;
    p += 2 + get16(p) + 4 + 4;
    if (get16(p)) fail((int16_t)get16(p));
    p += 2 + 8 + 8;
    int32_t aborted = (int32_t)get32(p);
    p += 4 + (aborted > 0 ? aborted * 16 : 0);
    int32_t records = (int32_t)get32(p);
    p += 4;
    const uint8_t *end = p + (records > 0 ? records : 0);
    if (end > frame + count) { fprintf(stderr, "lying fetch reply\n"); exit(1); }
    if (records <= 0) c->offset = 0; /* the end: again from the beginning */
    while (end - p >= HEADER_BYTES) {
        size_t bytes = 12 + (size_t)get32(p + 8);
        if ((size_t)(end - p) < bytes) break;
        c->offset = (int64_t)get64(p) + (int32_t)get32(p + 23) + 1;
        bytes_done += bytes;
        bytes_started += bytes;
        p += bytes;
    }
}

static void receive(struct connection *c) {
    for (;;) {
        if (c->end >= 4) {
            size_t frame = 4 + (size_t)get32(c->input);
            if (frame > c->capacity) {
                c->capacity = frame + (64 << 10);
                c->input = must(realloc(c->input, c->capacity));
            }
        }
        ssize_t got = recv(c->fd, c->input + c->end, c->capacity - c->end, 0);
        if (got == 0) { fprintf(stderr, "the broker closed the connection\n"); exit(1); }
        if (got < 0) {
            if (errno == EAGAIN) return;
            die("recv");
        }
        c->end += (size_t)got;
        size_t start = 0;
        while (c->end - start >= 4 && c->end - start >= 4 + (size_t)get32(c->input + start)) {
            size_t count = get32(c->input + start);
            take_reply(c, c->input + start + 4, count);
            start += 4 + count;
        }
        memmove(c->input, c->input + start, c->end - start);
        c->end -= start;
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) { fprintf(stderr, "load produce|fetch --to HOST:PORT --topic T ...\n"); return 2; }
    fetching = strcmp(argv[1], "fetch") == 0;
    topic = argument(argc, argv, "--topic", "bench");
    partition_count = number(argc, argv, "--partitions", 1);
    connection_count = number(argc, argv, "--connections", 4);
    in_flight_limit = fetching ? 1 : number(argc, argv, "--in-flight", 8);
    if (in_flight_limit > MAX_IN_FLIGHT) in_flight_limit = MAX_IN_FLIGHT;
    acks = number(argc, argv, "--acks", 1);
    max_bytes = number(argc, argv, "--max-bytes", 1 << 20);
    byte_goal = (uint64_t)number(argc, argv, "--bytes", 0);
    double seconds = (double)number(argc, argv, "--seconds", 3);
    const char *congestion = argument(argc, argv, "--congestion", "cubic");
    const char *file = argument(argc, argv, "--batch-file", NULL);
    if (file) read_batch(file);
    else build_batch((size_t)number(argc, argv, "--batch", 16384), (size_t)number(argc, argv, "--record", 100));
    latencies = must(malloc(latency_capacity * sizeof *latencies));

    char host[64] = "127.0.0.1";
    const char *to = argument(argc, argv, "--to", "127.0.0.1:9092"), *colon = strrchr(to, ':');
    if (!colon || colon - to >= 64) { fprintf(stderr, "--to HOST:PORT\n"); return 2; }
    memcpy(host, to, (size_t)(colon - to));
    host[colon - to] = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1))};
    inet_pton(AF_INET, host, &address.sin_addr);

    int epoll_fd = epoll_create1(0);
    struct connection **connections = must(calloc((size_t)connection_count, sizeof *connections));
    for (long i = 0; i < connection_count; i++) {
        struct connection *c = connections[i] = must(calloc(1, sizeof *c));
        c->index = (int)i;
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
        tune(c->fd, congestion);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        c->capacity = fetching ? (size_t)max_bytes + (64 << 10) : 64 << 10;
        c->input = must(malloc(c->capacity));
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
    }
    double start = now_seconds();
    end_at = start + seconds;
    struct epoll_event events[256];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, 256, 1000);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            receive(c);
            pump(c);
        }
        if (!want_more()) {
            long open = 0;
            for (long i = 0; i < connection_count; i++) open += connections[i]->in_flight;
            if (open == 0) break;
        }
    }
    double took = now_seconds() - start;
    qsort(latencies, latency_count, sizeof *latencies, by_value);
    double p50 = latency_count ? latencies[latency_count / 2] : 0;
    double p99 = latency_count ? latencies[latency_count * 99 / 100] : 0;
    printf("{\"requests\":%llu,\"bytes\":%llu,\"seconds\":%.4f,\"batch_bytes\":%zu,\"gb_per_second\":%.3f,"
           "\"requests_per_second\":%.0f,\"p50_us\":%.0f,\"p99_us\":%.0f}\n",
           (unsigned long long)requests_done, (unsigned long long)bytes_done, took, batch_bytes,
           (double)bytes_done / took / 1e9, (double)requests_done / took, p50 * 1e6, p99 * 1e6);
    return 0;
}
