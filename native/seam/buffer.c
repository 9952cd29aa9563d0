// SPDX-License-Identifier: Apache-2.0
/* Room of our own for the memory of tasks: huge pages, filled before it is needed. */
#include "seam_internal.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SMALL_PAGE ((size_t)4096)
#define CHUNK ((size_t)256 << 10)
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

static int compare_run(const char *buffer, int fd, const uint64_t *run, char *chunk,
		       unsigned char *same)
{
	size_t done, page;

	for (done = 0; done < run[1];) {
		size_t want = run[1] - done < CHUNK ? run[1] - done : CHUNK;
		ssize_t got = pread(fd, chunk, want, (off_t)(run[2] + done));

		if (got < 0)
			return -errno;
		got -= got % (ssize_t)SMALL_PAGE;
		if (!got)
			return -ENODATA; /* the file is too short */
		for (page = 0; page < (size_t)got; page += SMALL_PAGE) {
			size_t at = run[0] + done + page;

			if (!memcmp(buffer + at, chunk + page, SMALL_PAGE))
				same[at / SMALL_PAGE] = 1;
		}
		done += (size_t)got;
	}
	return 0;
}

int seam_same_pages(const char *buffer, int fd, const uint64_t *runs, size_t count,
		    unsigned char *same)
{
	char *chunk = malloc(CHUNK);
	size_t i;
	int error = 0;

	if (!chunk)
		return -ENOMEM;
	for (i = 0; i < count && !error; i++)
		error = compare_run(buffer, fd, runs + 3 * i, chunk, same);
	free(chunk);
	return error;
}

int seam_punch(int fd, int64_t offset, int64_t size)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size) ? -errno : 0;
}
