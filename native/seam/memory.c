// SPDX-License-Identifier: Apache-2.0
/*
 * Memory of another task: single pieces, and many runs at a time by threads.
 *
 * process_vm_readv and process_vm_writev do the work.  They respect the
 * protection of the mapping, so what they refuse (EFAULT: PROT_NONE, text) goes
 * through /proc/PID/mem, page by page.
 *
 * process_vm_readv pins pages, and to be pinned a page that is shared copy-on-write is copied
 * first (mm/gup.c, gup_must_unshare, Linux 5.19): a dump of a forked tree would make its memory
 * as many times larger.  A read of /proc/PID/mem does not pin (it takes twice the time), so it
 * is what reads memory of which smaps says that others have it too.
 */
#include "seam_internal.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define BATCH 256
#define PAGE ((uint64_t)4096)
#define CAPTURE_PIECE ((uint64_t)4 << 20)
#define FILE_PIECE ((uint64_t)512 << 10) /* stays in the second level cache */

struct thread_share {
	void (*run)(void *job, unsigned int index);
	void *job;
	unsigned int index;
	int started, is_first; /* before all others, as who waits for it */
	pthread_t thread;
};

static void *thread_main(void *argument)
{
	struct thread_share *share = argument;
	const struct sched_param param = { .sched_priority = 1 };

	if (share->is_first)
		sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &param);
	share->run(share->job, share->index);
	return NULL;
}

int run_threads(unsigned int threads, void (*run)(void *job, unsigned int index), void *job)
{
	struct thread_share shares[MAX_THREADS];
	int is_first = (sched_getscheduler(0) & ~SCHED_RESET_ON_FORK) == SCHED_RR;
	unsigned int i;

	if (threads < 1 || threads > MAX_THREADS)
		return -EINVAL;
	for (i = 1; i < threads; i++) {
		shares[i] = (struct thread_share){ .run = run, .job = job, .index = i,
						   .is_first = is_first };
		shares[i].started = !pthread_create(&shares[i].thread, NULL, thread_main,
						    &shares[i]);
	}
	run(job, 0);
	for (i = 1; i < threads; i++) {
		if (shares[i].started)
			pthread_join(shares[i].thread, NULL);
		else
			run(job, i); /* no thread was to be had: its share still gets done */
	}
	return 0;
}

static int open_mem(int pid, int writing)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, (writing ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* One page or less through /proc/PID/mem. */
static int64_t move_page(int pid, int writing, char *local, uint64_t remote, uint64_t size)
{
	uint64_t left = PAGE - remote % PAGE;
	ssize_t moved;
	int fd = open_mem(pid, writing);

	if (fd < 0)
		return fd;
	if (size > left)
		size = left;
	moved = writing ? pwrite(fd, local, size, (off_t)remote) :
			  pread(fd, local, size, (off_t)remote);
	if (moved <= 0)
		moved = moved < 0 && errno != EIO ? -errno : -EFAULT;
	close(fd);
	return moved;
}

/* Move all bytes of the remote pieces to or from contiguous local room; uses up `remote`. */
int move_memory(int pid, int writing, char *local, struct iovec *remote, size_t count)
{
	size_t first = 0;

	while (first < count) {
		struct iovec here = { local, 0 };
		ssize_t moved;
		size_t i;

		for (i = first; i < count; i++)
			here.iov_len += remote[i].iov_len;
		moved = writing ? process_vm_writev(pid, &here, 1, remote + first, count - first, 0) :
				  process_vm_readv(pid, &here, 1, remote + first, count - first, 0);
		if (moved <= 0) {
			if (moved < 0 && errno != EFAULT)
				return -errno;
			moved = move_page(pid, writing, local, (uintptr_t)remote[first].iov_base,
					  remote[first].iov_len);
			if (moved < 0)
				return (int)moved;
		}
		local += moved;
		while (first < count && (size_t)moved >= remote[first].iov_len)
			moved -= (ssize_t)remote[first++].iov_len;
		if (moved) {
			remote[first].iov_base = (char *)remote[first].iov_base + moved;
			remote[first].iov_len -= (size_t)moved;
		}
	}
	return 0;
}

int64_t seam_read_memory(int pid, uint64_t address, void *buffer, size_t size)
{
	struct iovec remote = { (void *)address, size };

	return size ? move_memory(pid, 0, buffer, &remote, 1) : 0;
}

int64_t seam_write_memory(int pid, uint64_t address, const void *buffer, size_t size)
{
	struct iovec remote = { (void *)address, size };

	return size ? move_memory(pid, 1, (char *)buffer, &remote, 1) : 0;
}

/* The runs that a call was given, and how far its threads are. */
struct job {
	int pid, fd, mem;
	const uint64_t *runs;
	size_t count;
	unsigned int words; /* of a run: 2 or 3 */
	uint64_t piece_size;
	char *buffer;
	uint64_t *different;
	size_t room, found;

	pthread_mutex_t lock;
	size_t run;
	uint64_t within, claimed;
	int error;
};

struct batch {
	struct iovec remote[BATCH];
	size_t count;
	uint64_t bytes;
	uint64_t offset; /* in the file, or in the buffer for pairs */
};

/* Take the next bytes of the runs; all of a batch is contiguous in the file or buffer. */
static int claim(struct job *job, struct batch *batch)
{
	batch->count = 0;
	batch->bytes = 0;
	pthread_mutex_lock(&job->lock);
	while (!job->error && job->run < job->count && batch->count < BATCH &&
	       batch->bytes < job->piece_size) {
		const uint64_t *run = job->runs + job->run * job->words;
		uint64_t offset = job->words == 3 ? run[2] + job->within : job->claimed;
		uint64_t size = run[1] - job->within;

		if (!batch->count)
			batch->offset = offset;
		else if (batch->offset + batch->bytes != offset)
			break;
		if (size > job->piece_size - batch->bytes)
			size = job->piece_size - batch->bytes;
		if (size)
			batch->remote[batch->count++] =
				(struct iovec){ (void *)(run[0] + job->within), size };
		batch->bytes += size;
		job->claimed += size;
		job->within += size;
		if (job->within == run[1]) {
			job->run++;
			job->within = 0;
		}
	}
	pthread_mutex_unlock(&job->lock);
	return batch->count > 0;
}

static void set_error(struct job *job, int error)
{
	pthread_mutex_lock(&job->lock);
	if (!job->error)
		job->error = error;
	pthread_mutex_unlock(&job->lock);
}

int read_file(int fd, char *buffer, uint64_t size, uint64_t offset)
{
	while (size) {
		ssize_t got = pread(fd, buffer, size, (off_t)offset);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -ENODATA;
		buffer += got;
		offset += (uint64_t)got;
		size -= (uint64_t)got;
	}
	return 0;
}

/* As move_memory() does, through /proc/PID/mem. */
static int read_mem(int mem, char *local, const struct iovec *remote, size_t count)
{
	int result = 0;

	for (size_t i = 0; i < count && !result; i++) {
		result = read_file(mem, local, remote[i].iov_len, (uintptr_t)remote[i].iov_base);
		local += remote[i].iov_len;
	}
	return result == -EIO || result == -ENODATA ? -EFAULT : result;
}

static int64_t work(struct job *job, unsigned int threads, void (*run)(void *, unsigned int))
{
	uint64_t bytes = 0;
	int result;

	for (size_t i = 0; i < job->count && bytes <= job->piece_size; i++)
		bytes += job->runs[i * job->words + 1];
	if (bytes <= job->piece_size)
		threads = 1; /* another one costs more than it takes over */
	pthread_mutex_init(&job->lock, NULL);
	result = run_threads(threads, run, job);
	pthread_mutex_destroy(&job->lock);
	if (result < 0)
		return result;
	return job->error < 0 ? job->error : (int64_t)job->claimed;
}

static void capture_share(void *argument, unsigned int index)
{
	struct job *job = argument;
	struct batch batch;

	(void)index;
	while (claim(job, &batch)) {
		int result = move_memory(job->pid, 0, job->buffer + batch.offset, batch.remote,
				  batch.count);

		if (result < 0)
			set_error(job, result);
	}
}

static void capture_forked_share(void *argument, unsigned int index)
{
	struct job *job = argument;
	struct batch batch;

	(void)index;
	while (claim(job, &batch)) {
		int result = read_mem(job->mem, job->buffer + batch.offset, batch.remote,
				      batch.count);

		if (result < 0)
			set_error(job, result);
	}
}

int64_t seam_capture_forked(int pid, const uint64_t *runs, size_t count, void *buffer,
			    unsigned int threads)
{
	struct job job = { .pid = pid, .runs = runs, .count = count, .words = 2,
			   .piece_size = CAPTURE_PIECE, .buffer = buffer,
			   .mem = open_mem(pid, 0) };
	int64_t result;

	if (job.mem < 0)
		return job.mem;
	result = work(&job, threads, capture_forked_share);
	close(job.mem);
	return result;
}

int64_t seam_capture_runs(int pid, const uint64_t *runs, size_t count, void *buffer,
			  unsigned int threads)
{
	struct job job = { .pid = pid, .runs = runs, .count = count, .words = 2,
			   .piece_size = CAPTURE_PIECE, .buffer = buffer };

	return work(&job, threads, capture_share);
}

static void note_different(struct job *job, const struct batch *batch, const char *live,
			   const char *filed)
{
	uint64_t done = 0;
	size_t i;

	for (i = 0; i < batch->count; i++) {
		uint64_t within, size = batch->remote[i].iov_len;

		for (within = 0; within < size; within += PAGE) {
			uint64_t step = size - within < PAGE ? size - within : PAGE;

			if (memcmp(live + done + within, filed + done + within, step) &&
			    job->found < job->room)
				job->different[job->found++] =
					(uintptr_t)batch->remote[i].iov_base + within;
		}
		done += size;
	}
}

/* One thread: the addresses come out in the order of the runs. */
static void compare_share(void *argument, unsigned int index)
{
	struct job *job = argument;
	struct batch batch;
	char *live = malloc(FILE_PIECE), *filed = malloc(FILE_PIECE);

	(void)index;
	if (!live || !filed)
		set_error(job, -ENOMEM);
	while (live && filed && claim(job, &batch)) {
		int result = read_file(job->fd, filed, batch.bytes, batch.offset);

		if (!result)
			result = read_mem(job->mem, live, batch.remote, batch.count);
		if (result < 0)
			set_error(job, result);
		else
			note_different(job, &batch, live, filed);
	}
	free(live);
	free(filed);
}

int64_t seam_compare_runs(int pid, const uint64_t *runs, size_t count, int fd,
			  uint64_t *different, size_t room)
{
	struct job job = { .pid = pid, .runs = runs, .count = count, .words = 3,
			   .piece_size = FILE_PIECE, .fd = fd,
			   .different = different, .room = room,
			   .mem = open_mem(pid, 0) };
	int64_t result;

	if (job.mem < 0)
		return job.mem;
	result = work(&job, 1, compare_share);
	close(job.mem);
	return result < 0 ? result : (int64_t)job.found;
}
