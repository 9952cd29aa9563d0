// SPDX-License-Identifier: Apache-2.0
/* What the processor says of itself: features, and where each part of its XSAVE area lies. */
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

/* Length of the standard area for what the kernel has enabled; the enabled features. */
unsigned int seam_xsave_size(uint64_t *features)
{
	unsigned int eax, ebx, ecx, edx, low, high;

	*features = 0;
	if (!__get_cpuid_count(LEAF_XSAVE, 0, &eax, &ebx, &ecx, &edx))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	*features = (uint64_t)high << 32 | low;
	return ebx;
}

/* The answer in the order eax, ebx, ecx, edx; zeros for a leaf that there is not. */
void seam_cpuid(unsigned int leaf, unsigned int subleaf, unsigned int *answer)
{
	answer[0] = answer[1] = answer[2] = answer[3] = 0;
	__get_cpuid_count(leaf, subleaf, &answer[0], &answer[1], &answer[2], &answer[3]);
}
