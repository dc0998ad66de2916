#include "CMartletChecksum.h"

#include <string.h>

#define POLYNOMIAL 0x82F63B78u /* CRC-32C, least significant bit first */

/* ---- Arithmetic modulo the polynomial; bit 31 is x^0, bit 30 is x^1, and so on. ---- */

static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int bit = 31; bit >= 0; bit--) {
        if ((a >> bit) & 1) product ^= b;
        b = (b >> 1) ^ ((b & 1) ? POLYNOMIAL : 0); /* b := b * x */
    }
    return product;
}

/* x^n modulo the polynomial. */
static uint32_t power_of_x(uint64_t n) {
    uint32_t result = 0x80000000u; /* 1 */
    uint32_t square = 0x40000000u; /* x */
    for (; n != 0; n >>= 1) {
        if (n & 1) result = multiply(result, square);
        square = multiply(square, square);
    }
    return result;
}

/* ---- Portable: eight bytes a step. ---- */

static uint32_t tables[8][256];

static void make_tables(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) ? POLYNOMIAL : 0);
        tables[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int t = 1; t < 8; t++)
            tables[t][i] = (tables[t - 1][i] >> 8) ^ tables[0][tables[t - 1][i] & 0xFF];
}

static inline uint32_t load_little_32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint32_t martlet_crc32c_table(uint32_t crc, const void *data, size_t length) {
    const uint8_t *p = data;
    crc = ~crc;
    while (length >= 8) {
        uint32_t low = crc ^ load_little_32(p);
        uint32_t high = load_little_32(p + 4);
        crc = tables[7][low & 0xFF] ^ tables[6][(low >> 8) & 0xFF] ^ tables[5][(low >> 16) & 0xFF] ^
              tables[4][low >> 24] ^ tables[3][high & 0xFF] ^ tables[2][(high >> 8) & 0xFF] ^
              tables[1][(high >> 16) & 0xFF] ^ tables[0][high >> 24];
        p += 8;
        length -= 8;
    }
    while (length-- > 0) crc = (crc >> 8) ^ tables[0][(crc ^ *p++) & 0xFF];
    return ~crc;
}

/*
 * ---- Processor instructions: three streams at once. ----
 *
 * The instruction has a latency of three cycles and a throughput of one, so three independent streams
 * keep it busy. A block is cut into three equal stripes; the checksums of the first two are then moved
 * over the bytes that follow them (a multiplication by a fixed power of x) and added.
 */
#define STRIPE_LONG 4096
#define STRIPE_SHORT 256

#if defined(__x86_64__)
#include <immintrin.h>

#define HARDWARE_TARGET __attribute__((target("sse4.2,pclmul")))

static uint32_t shift_long_1, shift_long_2, shift_short_1, shift_short_2;

static void make_shifts(void) {
    /* A carry-less product of two reflected words carries one factor x, and the reduction by the crc32
       instruction another x^32: hence the 33. */
    shift_long_1 = power_of_x(8 * STRIPE_LONG - 33);
    shift_long_2 = power_of_x(16 * STRIPE_LONG - 33);
    shift_short_1 = power_of_x(8 * STRIPE_SHORT - 33);
    shift_short_2 = power_of_x(16 * STRIPE_SHORT - 33);
}

HARDWARE_TARGET static inline uint64_t carryless(uint32_t crc, uint32_t factor) {
    __m128i product =
        _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)crc), _mm_cvtsi32_si128((int)factor), 0);
    return (uint64_t)_mm_cvtsi128_si64(product);
}

static inline uint64_t load_64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

HARDWARE_TARGET static inline uint32_t three_stripes(
    uint32_t crc, const uint8_t *p, size_t stripe, uint32_t shift_1, uint32_t shift_2
) {
    uint64_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < stripe; i += 16) {
        a = _mm_crc32_u64(a, load_64(p + i));
        b = _mm_crc32_u64(b, load_64(p + stripe + i));
        c = _mm_crc32_u64(c, load_64(p + 2 * stripe + i));
        a = _mm_crc32_u64(a, load_64(p + i + 8));
        b = _mm_crc32_u64(b, load_64(p + stripe + i + 8));
        c = _mm_crc32_u64(c, load_64(p + 2 * stripe + i + 8));
    }
    uint64_t moved = carryless((uint32_t)a, shift_2) ^ carryless((uint32_t)b, shift_1);
    return (uint32_t)_mm_crc32_u64(0, moved) ^ (uint32_t)c;
}

HARDWARE_TARGET static uint32_t crc32c_hardware(uint32_t crc, const void *data, size_t length) {
    const uint8_t *p = data;
    crc = ~crc;
    while (length >= 3 * STRIPE_LONG) {
        crc = three_stripes(crc, p, STRIPE_LONG, shift_long_1, shift_long_2);
        p += 3 * STRIPE_LONG;
        length -= 3 * STRIPE_LONG;
    }
    while (length >= 3 * STRIPE_SHORT) {
        crc = three_stripes(crc, p, STRIPE_SHORT, shift_short_1, shift_short_2);
        p += 3 * STRIPE_SHORT;
        length -= 3 * STRIPE_SHORT;
    }
    uint64_t wide = crc;
    for (; length >= 8; p += 8, length -= 8) wide = _mm_crc32_u64(wide, load_64(p));
    crc = (uint32_t)wide;
    for (; length > 0; p++, length--) crc = _mm_crc32_u8(crc, *p);
    return ~crc;
}

static int hardware_present(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}
static const char *const hardware_name = "sse4.2+pclmul";

#elif defined(__aarch64__)
#include <arm_acle.h>
#if defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

#if defined(__clang__)
#define HARDWARE_TARGET __attribute__((target("crc")))
#else
#define HARDWARE_TARGET __attribute__((target("+crc")))
#endif

static uint32_t shift_long_1, shift_long_2;

static void make_shifts(void) {
    shift_long_1 = power_of_x(8 * STRIPE_LONG);
    shift_long_2 = power_of_x(16 * STRIPE_LONG);
}

static inline uint64_t load_64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

HARDWARE_TARGET static uint32_t crc32c_hardware(uint32_t crc, const void *data, size_t length) {
    const uint8_t *p = data;
    crc = ~crc;
    while (length >= 3 * STRIPE_LONG) {
        uint32_t a = crc, b = 0, c = 0;
        for (size_t i = 0; i < STRIPE_LONG; i += 8) {
            a = __crc32cd(a, load_64(p + i));
            b = __crc32cd(b, load_64(p + STRIPE_LONG + i));
            c = __crc32cd(c, load_64(p + 2 * STRIPE_LONG + i));
        }
        crc = multiply(a, shift_long_2) ^ multiply(b, shift_long_1) ^ c;
        p += 3 * STRIPE_LONG;
        length -= 3 * STRIPE_LONG;
    }
    for (; length >= 8; p += 8, length -= 8) crc = __crc32cd(crc, load_64(p));
    for (; length > 0; p++, length--) crc = __crc32cb(crc, *p);
    return ~crc;
}

static int hardware_present(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#else
    return 1; /* every 64-bit Apple processor has it */
#endif
}
static const char *const hardware_name = "armv8-crc";

#else
static void make_shifts(void) {}
static uint32_t crc32c_hardware(uint32_t crc, const void *data, size_t length) {
    return martlet_crc32c_table(crc, data, length);
}
static int hardware_present(void) { return 0; }
static const char *const hardware_name = "table";
#endif

static int use_hardware;

/* Runs before main and before any thread, so the tables need no lock. */
__attribute__((constructor)) static void prepare(void) {
    make_tables();
    make_shifts();
    use_hardware = hardware_present();
}

uint32_t martlet_crc32c(uint32_t crc, const void *data, size_t length) {
    return use_hardware ? crc32c_hardware(crc, data, length) : martlet_crc32c_table(crc, data, length);
}

const char *martlet_crc32c_implementation(void) { return use_hardware ? hardware_name : "table"; }
