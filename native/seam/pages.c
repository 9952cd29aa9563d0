// SPDX-License-Identifier: Apache-2.0
/*
 * The pages of an image, wherever their bytes are: in room of ours, in a task,
 * or in a file (that of a task's memory, /proc/PID/mem, is one).  They go to
 * their own file piece by piece: no more of them than a piece a thread is held,
 * and while one thread writes another one reads.
 */
#include "seam_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define PIECE ((uint64_t)1 << 20) /* some pieces of a digest */
#define BATCH 256
#define PAGE ((uint64_t)4096)

_Static_assert(PIECE % DIGEST_PIECE == 0, "a piece is digested by itself");

enum origin { IN_MEMORY, IN_TASK, IN_FILE };

struct pages {
	const struct seam_extent *extents;
	size_t count;
	int lenient; /* what cannot be read of a task is zeros */
	uint64_t *starts; /* of each extent, and of what is behind the last */
};

static int open_pages(struct pages *pages, const struct seam_extent *extents, size_t count)
{
	size_t i;

	pages->extents = extents;
	pages->count = count;
	pages->starts = malloc((count + 1) * sizeof(*pages->starts));
	if (!pages->starts)
		return -ENOMEM;
	pages->starts[0] = 0;
	for (i = 0; i < count; i++)
		pages->starts[i + 1] = pages->starts[i] + extents[i].size;
	return 0;
}

/* The extent that holds a byte; it must be inside. */
static size_t extent_at(const struct pages *pages, uint64_t offset)
{
	size_t low = 0, high = pages->count;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (pages->starts[middle] <= offset)
			low = middle;
		else
			high = middle;
	}
	return low;
}

/* A part of an extent that holds the byte, as large as wanted at most. */
static struct seam_extent part_at(const struct pages *pages, size_t i, uint64_t offset,
				  uint64_t wanted)
{
	struct seam_extent part = pages->extents[i];
	uint64_t within = offset - pages->starts[i];

	part.address += within;
	part.size -= within;
	if (part.size > wanted)
		part.size = wanted;
	return part;
}

static int gather_from_task(const struct pages *pages, size_t *i, uint64_t offset, uint64_t size,
			    char *local, uint64_t *done)
{
	struct iovec remote[BATCH];
	int pid = pages->extents[*i].number;
	uint64_t bytes = 0;
	size_t count = 0;

	for (; bytes < size && count < BATCH && *i < pages->count; (*i)++) {
		struct seam_extent part = part_at(pages, *i, offset + bytes, size - bytes);

		if (part.origin != IN_TASK || part.number != pid)
			break;
		remote[count++] = (struct iovec){ (void *)(uintptr_t)part.address, part.size };
		bytes += part.size;
	}
	*done = bytes;
	return move_memory(pid, 0, local, remote, count);
}

/* Page by page, zeros for those that are gone. */
static void gather_what_is_there(const struct pages *pages, uint64_t offset, uint64_t size,
				 char *local)
{
	uint64_t done;

	for (done = 0; done < size; done += PAGE) {
		uint64_t step = size - done < PAGE ? size - done : PAGE;
		size_t i = extent_at(pages, offset + done);
		struct seam_extent part = part_at(pages, i, offset + done, step);
		int result;

		if (part.origin == IN_TASK)
			result = gather_from_task(pages, &i, offset + done, step, local + done,
						  &step);
		else
			result = read_file(part.number, local + done, step, part.address);
		if (result < 0)
			memset(local + done, 0, step);
	}
}

/* Copy bytes from an offset on; all of them must be there. */
static int gather(const struct pages *pages, uint64_t offset, uint64_t size, char *local)
{
	size_t i = extent_at(pages, offset);

	while (size) {
		struct seam_extent part = part_at(pages, i, offset, size);
		uint64_t done = part.size;
		int result = 0;

		switch (part.origin) {
		case IN_MEMORY:
			memcpy(local, (const void *)(uintptr_t)part.address, part.size);
			i++;
			break;
		case IN_FILE:
			result = read_file(part.number, local, part.size, part.address);
			i++;
			break;
		default:
			result = gather_from_task(pages, &i, offset, size, local, &done);
		}
		if (result < 0 && pages->lenient)
			gather_what_is_there(pages, offset, done, local);
		else if (result < 0)
			return result;
		local += done;
		offset += done;
		size -= done;
	}
	return 0;
}

/* The bytes themselves where they are ours and in one piece, else gathered. */
static int have(const struct pages *pages, uint64_t offset, uint64_t size, char *room,
		const char **bytes)
{
	struct seam_extent part = part_at(pages, extent_at(pages, offset), offset, size);

	*bytes = room;
	if (part.origin != IN_MEMORY || part.size < size)
		return gather(pages, offset, size, room);
	*bytes = (const char *)(uintptr_t)part.address;
	return 0;
}

static int put(int fd, const char *from, uint64_t size, uint64_t offset)
{
	while (size) {
		ssize_t done = pwrite(fd, from, size, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EIO;
		from += done;
		offset += (uint64_t)done;
		size -= (uint64_t)done;
	}
	return 0;
}

struct write_job {
	struct pages pages;
	int fd;
	uint64_t end, *digests; /* one for each DIGEST_PIECE of the file */

	pthread_mutex_t lock;
	pthread_mutex_t writing; /* a file has one writer at a time; the kernel would spin for it */
	uint64_t next;
	int error, failed_call;
};

static void fail(struct write_job *job, int error, int call)
{
	pthread_mutex_lock(&job->lock);
	if (!job->error) {
		job->error = error;
		job->failed_call = call;
	}
	pthread_mutex_unlock(&job->lock);
}

static uint64_t claim_piece(struct write_job *job, uint64_t *offset)
{
	uint64_t size = 0;

	pthread_mutex_lock(&job->lock);
	*offset = job->next;
	if (!job->error && job->next < job->end) {
		size = job->end - job->next < PIECE ? job->end - job->next : PIECE;
		job->next += size;
	}
	pthread_mutex_unlock(&job->lock);
	return size;
}

static void write_share(void *argument, unsigned int index)
{
	struct write_job *job = argument;
	char *room = malloc(PIECE);
	uint64_t offset, size, at;

	(void)index;
	if (!room)
		fail(job, -ENOMEM, 0);
	while (room && (size = claim_piece(job, &offset))) {
		const char *bytes;
		int result = have(&job->pages, offset, size, room, &bytes);

		if (result < 0) {
			fail(job, result, 0);
			break;
		}
		for (at = 0; at < size; at += DIGEST_PIECE)
			job->digests[(offset + at) / DIGEST_PIECE] = seam_xxh64(
				bytes + at, size - at < DIGEST_PIECE ? size - at : DIGEST_PIECE);
		pthread_mutex_lock(&job->writing);
		result = put(job->fd, bytes, size, offset);
		pthread_mutex_unlock(&job->writing);
		if (result < 0) {
			fail(job, result, 1);
			break;
		}
	}
	free(room);
}

int seam_write_pages(const struct seam_extent *extents, size_t count, int fd,
		     unsigned int threads, int lenient, uint64_t start, uint64_t size,
		     uint64_t *digests, int *failed_call)
{
	struct write_job job = { .fd = fd, .next = start, .digests = digests };
	int result = open_pages(&job.pages, extents, count);

	if (result < 0)
		return result;
	job.pages.lenient = lenient;
	job.end = start + size;
	if (start % PIECE || job.end > job.pages.starts[count]) {
		free(job.pages.starts);
		return -EINVAL;
	}
	pthread_mutex_init(&job.lock, NULL);
	pthread_mutex_init(&job.writing, NULL);
	result = run_threads(size > PIECE ? threads : 1, write_share, &job);
	pthread_mutex_destroy(&job.writing);
	pthread_mutex_destroy(&job.lock);
	*failed_call = job.failed_call;
	free(job.pages.starts);
	return result < 0 ? result : job.error;
}

int seam_read_pages(const struct seam_extent *extents, size_t count, uint64_t offset,
		    uint64_t size, char *room)
{
	struct pages pages = { .lenient = 0 };
	int result = open_pages(&pages, extents, count);

	if (result < 0)
		return result;
	if (size)
		result = size > pages.starts[count] - offset ? -EINVAL :
							       gather(&pages, offset, size, room);
	free(pages.starts);
	return result;
}

static int compare(const struct pages *pages, int fd, const uint64_t *run, char *room,
		   unsigned char *same)
{
	char *filed = room + DIGEST_PIECE;
	uint64_t done, page;

	for (done = 0; done < run[1];) {
		uint64_t left = run[1] - done, size = left < DIGEST_PIECE ? left : DIGEST_PIECE;
		const char *live;
		int result = have(pages, run[0] + done, size, room, &live);

		if (!result)
			result = read_file(fd, filed, size, run[2] + done);
		if (result < 0)
			return result;
		for (page = 0; page < size; page += PAGE)
			if (!memcmp(live + page, filed + page, PAGE))
				same[(run[0] + done + page) / PAGE] = 1;
		done += size;
	}
	return 0;
}

int seam_same_pages(const struct seam_extent *extents, size_t count, int fd, const uint64_t *runs,
		    size_t run_count, unsigned char *same)
{
	struct pages pages = { .lenient = 0 };
	int result = open_pages(&pages, extents, count);
	char *room;
	size_t i;

	if (result < 0)
		return result;
	room = malloc(2 * DIGEST_PIECE);
	if (!room)
		result = -ENOMEM;
	for (i = 0; i < run_count && !result; i++)
		result = compare(&pages, fd, runs + 3 * i, room, same);
	free(room);
	free(pages.starts);
	return result;
}
