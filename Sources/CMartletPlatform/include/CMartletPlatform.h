#ifndef CMARTLET_PLATFORM_H
#define CMARTLET_PLATFORM_H
#include <stddef.h>
#include <stdint.h>
#endif
