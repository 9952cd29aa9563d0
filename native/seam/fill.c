// SPDX-License-Identifier: Apache-2.0
/*
 * Parts of a file written to another task's memory, by several threads, in the order of the file;
 * each byte is read once, digested while it is in the cache if that is asked for, and written.
 *
 * Huge pages come from a staging area of the task, from where it moves them to their place; small
 * ones are made in place by UFFDIO_COPY, which neither zeroes them first nor takes a fault for each.
 * Which of the two costs less depends on the machine, and on how memory is at hand: what a virtual
 * machine has given back to its host comes back slowly, and it is huge pages that are given back
 * (mm/page_reporting.c, pageblock_order). So each thread measures both, and goes by that; when the
 * first write to a huge page takes much longer than the zeroing of it should, it does so at once.
 * A huge page is wholly in one of the two places, as the first thread that comes to it decides.
 */
#include "seam_internal.h"

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#define BATCH 256
#define PAGE ((uint64_t)4096)
#define HUGE_PAGE ((uint64_t)2 << 20)
#define CLAIM ((uint64_t)8 << 20) /* so that two threads seldom make one huge page at once */
#define SLOW_NS 2000000 /* of the processor, for one huge page: ten times what is usual */
#define TRY_THE_OTHER 32 /* claims, after which what costs more is measured again */

enum { UNDECIDED, STAGED, IN_PLACE, PLACES };

struct share {
	char *local;
	uint64_t from; /* of the file: what `local` begins with */
	struct iovec batch[BATCH];
	size_t count;
	uint64_t batch_from, batch_bytes;
	unsigned char wanted; /* for huge pages that are not decided */
	unsigned int claims;
	int64_t cost_ns[PLACES]; /* of the last claim with each, of the processor */
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

/* Where nothing is, unless the task had it there before. */
static int put_missing(const struct filler *job, const struct share *mine, uint64_t address,
		       uint64_t from, uint64_t size)
{
	char *bytes = mine->local + (from - mine->from);

	while (size) {
		struct uffdio_copy copy = { .dst = address, .len = size, .src = (uintptr_t)bytes,
					    .mode = UFFDIO_COPY_MODE_DONTWAKE };
		struct iovec page = { (void *)address, PAGE };
		uint64_t done;
		int result;

		if (!ioctl(job->asked->uffd, UFFDIO_COPY, &copy))
			return 0;
		done = copy.copy > 0 ? (uint64_t)copy.copy : 0;
		if (!done && errno == EEXIST) {
			result = move_memory(job->asked->pid, 1, bytes, &page, 1);
			if (result < 0)
				return result;
			done = PAGE;
		} else if (!done && errno != EAGAIN) {
			return -errno;
		}
		address += done;
		bytes += done;
		size -= done;
	}
	return 0;
}

/* A part of a range; of one huge page if it may be staged. */
static int put_range(const struct filler *job, struct share *mine, const uint64_t *range,
		     uint64_t address, uint64_t from, uint64_t size)
{
	uint64_t staged = range[2] + (address - range[0]);
	unsigned char expected = UNDECIDED, wanted = mine->wanted, place = IN_PLACE;
	struct iovec whole = { (void *)staged, size };
	int is_first = 0, result;
	int64_t begin;

	if (range[2]) {
		is_first = __atomic_compare_exchange_n(
			job->asked->places + (staged - job->asked->staging) / HUGE_PAGE, &expected,
			wanted, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
		place = is_first ? wanted : expected;
	}
	if (place == IN_PLACE)
		return job->asked->uffd < 0 ? put_small(job, mine, address, from, size) :
					      put_missing(job, mine, address, from, size);
	begin = processor_ns();
	result = move_memory(job->asked->pid, 1, mine->local + (from - mine->from), &whole, 1);
	if (is_first && processor_ns() - begin > SLOW_NS)
		mine->wanted = IN_PLACE;
	return result;
}

/* A part of a run, all of it in `local`. */
static int put(const struct filler *job, struct share *mine, uint64_t address, uint64_t from,
	       uint64_t size)
{
	const struct seam_fill *asked = job->asked;
	size_t i = first_behind(asked->ranges, asked->range_count, 0, address);
	uint64_t end = address + size;
	int result = 0;

	while (address < end && !result) {
		const uint64_t *range = i < asked->range_count ? asked->ranges + 3 * i : NULL;
		uint64_t until = end;

		if (range && address >= range[0]) {
			uint64_t most = range[0] + range[1];

			if (range[2])
				most = (address / HUGE_PAGE + 1) * HUGE_PAGE;
			if (until > most)
				until = most;
			result = put_range(job, mine, range, address, from, until - address);
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

/* Where huge pages of the next claim go: to where it cost less. */
static unsigned char cheaper(struct share *mine)
{
	const int64_t *cost = mine->cost_ns;
	unsigned char best = cost[STAGED] <= cost[IN_PLACE] ? STAGED : IN_PLACE;

	if (!cost[STAGED] || !cost[IN_PLACE])
		return cost[STAGED] ? IN_PLACE : STAGED;
	if (++mine->claims % TRY_THE_OTHER)
		return best;
	return best == STAGED ? IN_PLACE : STAGED;
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
		unsigned char wanted = cheaper(mine);
		int64_t begin = processor_ns();

		mine->wanted = wanted;
		if (end > job->asked->size)
			end = job->asked->size;
		for (; from < end && !result; from += DIGEST_PIECE)
			result = fill_piece(job, mine, from,
					    end - from > DIGEST_PIECE ? from + DIGEST_PIECE : end);
		mine->cost_ns[wanted] = processor_ns() - begin;
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
