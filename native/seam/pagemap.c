// SPDX-License-Identifier: Apache-2.0
/* PAGEMAP_SCAN (Linux 6.7): which pages of a task have what property. */
#include "seam_internal.h"

#include <sys/ioctl.h>

/* struct pm_scan_arg */
struct scan_request {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t inverted, required, any_of, returned;
};

_Static_assert(sizeof(struct scan_request) == 96, "pm_scan_arg");

#define SCAN _IOWR('f', 16, struct scan_request)

static uint64_t later(uint64_t one, uint64_t other)
{
	return one > other ? one : other;
}

/*
 * Scan from *position to end until the room is full; *position is where to go
 * on.  masks are inverted, required, any_of, returned.  Gives the number of
 * ranges, three words each.
 */
int64_t seam_scan_pages(int pagemap_fd, uint64_t *position, uint64_t end, const uint64_t *masks,
			uint64_t flags, uint64_t *ranges, size_t room)
{
	size_t found = 0;

	while (*position < end && found < room) {
		struct scan_request request = {
			.size = sizeof(request),
			.flags = flags,
			.start = *position,
			.end = end,
			.vec = (uintptr_t)(ranges + 3 * found),
			.vec_len = room - found,
			.inverted = masks[0],
			.required = masks[1],
			.any_of = masks[2],
			.returned = masks[3],
		};
		int got = ioctl(pagemap_fd, SCAN, &request);

		if (got < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		/* walk_end is that of an earlier round when the last one came to the end
		 * (fs/proc/task_mmu.c, do_pagemap_scan, v6.18): only a full room needs it */
		if ((size_t)got < room - found)
			*position = end;
		else
			*position = later(request.walk_end, ranges[3 * (found + (size_t)got) - 2]);
		found += (size_t)got;
	}
	return (int64_t)found;
}
