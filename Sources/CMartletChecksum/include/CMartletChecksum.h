#ifndef CMARTLET_CHECKSUM_H
#define CMARTLET_CHECKSUM_H
#include <stddef.h>
#include <stdint.h>

/*
 * CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), as iSCSI (RFC 3720, appendix B.4) and the record
 * batch define it. `crc` is the checksum of the bytes before `data`, 0 at the beginning; the results
 * are final values, so a checksum can be continued piece by piece.
 */

/* The fastest implementation of this processor, chosen once when the program is loaded. */
uint32_t martlet_crc32c(uint32_t crc, const void *data, size_t length);

/* The portable implementation (eight tables), for the equality test and processors without instruction. */
uint32_t martlet_crc32c_table(uint32_t crc, const void *data, size_t length);

/* Name of the implementation behind martlet_crc32c: "sse4.2+pclmul", "armv8-crc" or "table". */
const char *martlet_crc32c_implementation(void);

#endif
