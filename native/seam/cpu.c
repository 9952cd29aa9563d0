// SPDX-License-Identifier: Apache-2.0
/* What the processor says of its XSAVE area: where each component lies. */
#include "seam_internal.h"

#include <cpuid.h>

#define LEAF_XSAVE 0xd

int seam_xsave_component(unsigned int number, unsigned int *offset, unsigned int *size)
{
	unsigned int ecx, edx;

	*offset = *size = 0;
	if (!__get_cpuid_count(LEAF_XSAVE, number, size, offset, &ecx, &edx))
		return -1;
	return 0;
}
