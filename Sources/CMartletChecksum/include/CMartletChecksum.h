#ifndef CMARTLET_CHECKSUM_H
#define CMARTLET_CHECKSUM_H
#include <stddef.h>
#include <stdint.h>
#endif
