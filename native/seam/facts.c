// SPDX-License-Identifier: Apache-2.0
/*
 * What is read of many stopped threads at once, while their tasks pay for the time: registers
 * and the like, and texts of /proc as they are.
 */
#include "seam_internal.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>

#define XSTATE 0x202 /* NT_X86_XSTATE */
#define RSEQ_CS 8 /* offset of the critical section's address in struct rseq */

static void keep(int *error, int64_t result)
{
	if (result < 0 && !*error)
		*error = (int)result;
}

/* Scheduling: readable of any task, and of a zombie too. */
static void ask_scheduling(struct seam_facts *thread)
{
	struct sched_param param = { 0 };
	int result;

	errno = 0;
	thread->nice = getpriority(PRIO_PROCESS, (id_t)thread->tid);
	keep(&thread->error, errno ? -errno : 0);
	thread->policy = sched_getscheduler(thread->tid);
	keep(&thread->error, thread->policy < 0 ? -errno : 0);
	keep(&thread->error, sched_getparam(thread->tid, &param) ? -errno : 0);
	thread->priority = param.sched_priority;
	thread->ioprio = seam_ioprio(thread->tid);
	keep(&thread->error, thread->ioprio);
	result = (int)syscall(SYS_sched_getaffinity, thread->tid, sizeof(thread->affinity),
			      thread->affinity);
	keep(&thread->error, result < 0 ? -errno : 0);
	thread->affinity_size = result;
}

/* Memory that says where the thread is: code around rip, and its rseq area. */
static void ask_place(struct seam_facts *thread)
{
	const struct user_regs_struct *regs = (const void *)thread->regs;
	uint64_t code_at = regs->rip - sizeof(thread->code) + 2;

	thread->code_size = (int)sizeof(thread->code);
	if (seam_read_memory(thread->tid, code_at, thread->code, sizeof(thread->code)) < 0)
		thread->code_size = 0;
	if (seam_rseq_config(thread->tid, thread->rseq) < 0)
		memset(thread->rseq, 0, sizeof(thread->rseq)); /* before Linux 5.13 */
	if (thread->rseq[0] && thread->rseq[1])
		keep(&thread->error, seam_read_memory(thread->tid, thread->rseq[0] + RSEQ_CS,
						      &thread->rseq_cs, sizeof(thread->rseq_cs)));
}

void seam_ask_facts(struct seam_facts *threads, size_t count)
{
	for (struct seam_facts *thread = threads; thread < threads + count; thread++) {
		uint64_t dispatch[4] = { 0 };

		thread->error = seam_get_regs(thread->tid, thread->regs, 27);
		if (thread->error < 0)
			continue;
		keep(&thread->error, seam_get_sigmask(thread->tid, &thread->mask));
		if (!seam_user_dispatch(thread->tid, dispatch)) /* Linux 6.4 */
			thread->dispatch = dispatch[0];
		thread->xstate_size = seam_get_regset(thread->tid, XSTATE, thread->xstate,
						      (size_t)thread->xstate_room);
		keep(&thread->error, thread->xstate_size);
		keep(&thread->error, seam_robust_list(thread->tid, thread->robust,
						      thread->robust + 1));
		ask_place(thread);
		ask_scheduling(thread);
	}
}

void seam_get_regs_of(const int *tids, size_t count, uint64_t *regs, int *results)
{
	for (size_t i = 0; i < count; i++)
		results[i] = seam_get_regs(tids[i], regs + 27 * i, 27);
}

int64_t read_text(int directory, const char *path, char *room, size_t size)
{
	size_t used = 0;
	int fd = openat(directory, path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	for (;;) {
		ssize_t got = read(fd, room + used, size - used);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0 || (used += (size_t)got) == size) {
			int64_t result = got < 0 ? -errno : (int64_t)used;

			close(fd);
			return result;
		}
	}
}

struct texts {
	const char *const *paths;
	size_t count, size;
	char *room;
	unsigned int threads;
	int64_t *sizes;
	uint64_t *places;
	int results[MAX_THREADS];
};

static void read_share(void *job, unsigned int index)
{
	struct texts *texts = job;
	size_t i = texts->count * index / texts->threads;
	size_t last = texts->count * (index + 1) / texts->threads;
	size_t at = texts->size / texts->threads * index, end = at + texts->size / texts->threads;

	for (; i < last; i++) {
		int64_t got = read_text(AT_FDCWD, texts->paths[i], texts->room + at, end - at);

		if (got >= 0 && (size_t)got == end - at) {
			texts->results[index] = -ENOBUFS;
			return;
		}
		texts->sizes[i] = got;
		texts->places[i] = at;
		at += got > 0 ? (size_t)got : 0;
	}
}

int seam_read_texts(const char *const *paths, size_t count, char *room, size_t size,
		    unsigned int threads, int64_t *sizes, uint64_t *places)
{
	struct texts texts = { .paths = paths, .count = count, .size = size, .room = room,
			       .threads = threads < 1 || threads > MAX_THREADS ? 1 : threads,
			       .sizes = sizes, .places = places };
	int result = 0;

	if (texts.threads == 1)
		read_share(&texts, 0);
	else
		result = run_threads(texts.threads, read_share, &texts);
	for (unsigned int i = 0; i < texts.threads && !result; i++)
		result = texts.results[i];
	return result;
}
