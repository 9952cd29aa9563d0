/* SPDX-License-Identifier: Apache-2.0 */
/* Chooses the one header that knows the machine. */
#ifndef TORPOR_ARCH_H
#define TORPOR_ARCH_H

#if defined(__x86_64__) && defined(__LP64__)
#include "torpor/arch-x86_64.h"
#else
#error "no arch-<machine>.h for this architecture yet"
#endif

#endif
