// SPDX-License-Identifier: Apache-2.0
/*
 * Parts of a file written to another task's memory, by several threads, in the order of the file;
 * each byte is read once, digested while it is in the cache if that is asked for, and written.
 *
 * Huge pages come from a staging area of the task, from where it moves them to their place.
 * Memory that a virtual machine has given back to its host comes back slowly, and it is huge
 * pages that are given back (mm/page_reporting.c, pageblock_order): when the first write to one
 * takes much longer than the zeroing of it should, small pages are written in place for a while.
 * A huge page is wholly in one of the two places, as the first thread that comes to it decides.
 */
#include "seam_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/uio.h>

#define BATCH 256
#define HUGE_PAGE ((uint64_t)2 << 20)
#define CLAIM ((uint64_t)8 << 20) /* so that two threads seldom make one huge page at once */
#define SLOW_NS 2000000 /* of the processor, for one huge page: ten times what is usual */
#define SMALL_AFTER_SLOW 16

enum { UNDECIDED, STAGED, IN_PLACE };

struct share {
	char *local;
	uint64_t from; /* of the file: what `local` begins with */
	struct iovec batch[BATCH];
	size_t count;
	uint64_t batch_from, batch_bytes;
	unsigned int small; /* so many more huge pages are not to be made */
};

struct filler {
	struct seam_fill *asked;
	uint64_t *pieces;
	uint64_t claim;

	pthread_mutex_t lock;
	uint64_t next, written;
	int error;
};

static int64_t processor_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
}

/* First triple whose `word` + length is behind `value`. */
static size_t first_behind(const uint64_t *triples, size_t count, unsigned int word, uint64_t value)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const uint64_t *triple = triples + 3 * middle;

		if (triple[word] + triple[1] <= value)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static int flush(const struct filler *job, struct share *mine)
{
	int result = 0;

	if (mine->count)
		result = move_memory(job->asked->pid, 1, mine->local + (mine->batch_from - mine->from),
				     mine->batch, mine->count);
	mine->count = 0;
	mine->batch_bytes = 0;
	return result;
}

static int put_small(const struct filler *job, struct share *mine, uint64_t address, uint64_t from,
		     uint64_t size)
{
	int result = 0;

	if (mine->count == BATCH || mine->batch_from + mine->batch_bytes != from)
		result = flush(job, mine);
	if (!mine->count)
		mine->batch_from = from;
	mine->batch[mine->count++] = (struct iovec){ (void *)address, size };
	mine->batch_bytes += size;
	return result;
}

/* A part of one huge page. */
static int put_huge(const struct filler *job, struct share *mine, const uint64_t *range,
		    uint64_t address, uint64_t from, uint64_t size)
{
	uint64_t staged = range[2] + (address - range[0]);
	unsigned char *place = job->asked->places + (staged - job->asked->huge[2]) / HUGE_PAGE;
	unsigned char expected = UNDECIDED, wanted = mine->small ? IN_PLACE : STAGED;
	int is_first = __atomic_compare_exchange_n(place, &expected, wanted, 0, __ATOMIC_RELAXED,
						   __ATOMIC_RELAXED);
	struct iovec whole = { (void *)staged, size };
	int64_t begin;
	int result;

	if ((is_first ? wanted : expected) == IN_PLACE) {
		mine->small -= is_first;
		return put_small(job, mine, address, from, size);
	}
	begin = processor_ns();
	result = move_memory(job->asked->pid, 1, mine->local + (from - mine->from), &whole, 1);
	if (is_first && processor_ns() - begin > SLOW_NS)
		mine->small = SMALL_AFTER_SLOW;
	return result;
}

/* A part of a run, all of it in `local`. */
static int put(const struct filler *job, struct share *mine, uint64_t address, uint64_t from,
	       uint64_t size)
{
	const struct seam_fill *asked = job->asked;
	size_t i = first_behind(asked->huge, asked->huge_count, 0, address);
	uint64_t end = address + size;
	int result = 0;

	while (address < end && !result) {
		const uint64_t *range = i < asked->huge_count ? asked->huge + 3 * i : NULL;
		uint64_t until = end;

		if (range && address >= range[0]) {
			until = (address / HUGE_PAGE + 1) * HUGE_PAGE;
			if (until > end)
				until = end;
			result = put_huge(job, mine, range, address, from, until - address);
			i += until == range[0] + range[1];
		} else {
			if (range && until > range[0])
				until = range[0];
			result = put_small(job, mine, address, from, until - address);
		}
		from += until - address;
		address = until;
	}
	return result;
}

/* Where the last run ends that has a byte before `end`. */
static uint64_t end_of_runs(const struct seam_fill *asked, uint64_t end)
{
	size_t i = first_behind(asked->runs, asked->count, 2, end - 1);

	if (i < asked->count && asked->runs[3 * i + 2] < end)
		return end;
	return i ? asked->runs[3 * i - 1] + asked->runs[3 * i - 2] : 0;
}

/* Read [from, end) of the file and write what runs have of it; without a digest, only that. */
static int fill_piece(struct filler *job, struct share *mine, uint64_t from, uint64_t end)
{
	const struct seam_fill *asked = job->asked;
	size_t i = first_behind(asked->runs, asked->count, 2, from);
	uint64_t written = 0;
	int result;

	if (!job->pieces) {
		if (i < asked->count && asked->runs[3 * i + 2] > from)
			from = asked->runs[3 * i + 2];
		end = end_of_runs(asked, end);
		if (i == asked->count || from >= end)
			return 0;
	}
	mine->from = from;
	result = read_file(asked->fd, mine->local, end - from, from);
	if (!result && job->pieces)
		job->pieces[from / DIGEST_PIECE] = seam_xxh64(mine->local, end - from);
	for (; !result && i < asked->count && asked->runs[3 * i + 2] < end; i++) {
		const uint64_t *run = asked->runs + 3 * i;
		uint64_t low = run[2] > from ? run[2] : from, high = run[2] + run[1];

		if (high > end)
			high = end;
		if (low < high)
			result = put(job, mine, run[0] + (low - run[2]), low, high - low);
		written += high - low;
	}
	if (!result)
		result = flush(job, mine);
	__atomic_fetch_add(&job->written, written, __ATOMIC_RELAXED);
	return result;
}

static int next_claim(struct filler *job, uint64_t *from)
{
	pthread_mutex_lock(&job->lock);
	*from = job->error ? job->asked->size : job->next;
	job->next = *from + job->claim;
	pthread_mutex_unlock(&job->lock);
	return *from < job->asked->size;
}

static void fill_share(void *argument, unsigned int index)
{
	struct filler *job = argument;
	struct share *mine = calloc(1, sizeof(*mine));
	int result = mine && (mine->local = malloc(DIGEST_PIECE)) ? 0 : -ENOMEM;
	uint64_t from;

	(void)index;
	while (!result && next_claim(job, &from)) {
		uint64_t end = from + job->claim;

		if (end > job->asked->size)
			end = job->asked->size;
		for (; from < end && !result; from += DIGEST_PIECE)
			result = fill_piece(job, mine, from,
					    end - from > DIGEST_PIECE ? from + DIGEST_PIECE : end);
	}
	if (result < 0) {
		pthread_mutex_lock(&job->lock);
		job->error = result;
		pthread_mutex_unlock(&job->lock);
	}
	if (mine)
		free(mine->local);
	free(mine);
}

int64_t seam_fill(struct seam_fill *asked)
{
	size_t pieces = (asked->size + DIGEST_PIECE - 1) / DIGEST_PIECE;
	struct filler job = { .asked = asked, .claim = DIGEST_PIECE };
	unsigned int threads = asked->size > DIGEST_PIECE ? asked->threads : 1;
	int result;

	if (asked->size > 8 * CLAIM)
		job.claim = CLAIM;
	if (!asked->with_digest && asked->count)
		job.next = asked->runs[2] / DIGEST_PIECE * DIGEST_PIECE;
	if (asked->with_digest) {
		job.pieces = calloc(pieces + 1, sizeof(*job.pieces));
		if (!job.pieces)
			return -ENOMEM;
	}
	pthread_mutex_init(&job.lock, NULL);
	result = run_threads(threads, fill_share, &job);
	pthread_mutex_destroy(&job.lock);
	if (job.pieces)
		asked->digest = seam_xxh64(job.pieces, pieces * sizeof(*job.pieces));
	free(job.pieces);
	if (!result)
		result = job.error;
	return result < 0 ? result : (int64_t)job.written;
}
