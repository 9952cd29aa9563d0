// SPDX-License-Identifier: Apache-2.0
/* Room of our own for the memory of tasks: huge pages, filled before it is needed. */
#include "seam_internal.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define POPULATE_WRITE 23 /* MADV_POPULATE_WRITE, Linux 5.14 */

int seam_buffer_map(size_t size, void **buffer)
{
	size_t span = size + HUGE_PAGE;
	char *raw = mmap(NULL, span, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before, after;

	if (raw == MAP_FAILED)
		return -errno;
	before = (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE;
	after = span - before - size;
	if (before)
		munmap(raw, before);
	if (after)
		munmap(raw + before + size, after);
	*buffer = raw + before;
	madvise(*buffer, size, MADV_HUGEPAGE); /* best effort: small pages do as well */
	madvise(*buffer, size, MADV_DONTFORK);
	return 0;
}

struct populate_job {
	char *buffer;
	size_t size;
	unsigned int threads;
};

static void populate_share(void *argument, unsigned int index)
{
	struct populate_job *job = argument;
	size_t pages = job->size / HUGE_PAGE + 1;
	size_t first = pages * index / job->threads * HUGE_PAGE;
	size_t last = pages * (index + 1) / job->threads * HUGE_PAGE;
	size_t i;

	if (last > job->size)
		last = job->size;
	if (first >= last)
		return;
	if (!madvise(job->buffer + first, last - first, POPULATE_WRITE))
		return;
	for (i = first; i < last; i += 4096)
		((volatile char *)job->buffer)[i] = job->buffer[i];
}

int seam_buffer_populate(void *buffer, size_t size, unsigned int threads)
{
	struct populate_job job = { buffer, size, threads };

	return run_threads(threads, populate_share, &job);
}

int seam_buffer_unmap(void *buffer, size_t size)
{
	return munmap(buffer, size) ? -errno : 0;
}

int seam_punch(int fd, int64_t offset, int64_t size)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size) ? -errno : 0;
}
