/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the files of native/seam.
 *
 * Rules for editing them: GNU11, glibc; no state, no output, no policy.  A
 * function gets a full description and returns a value or -errno.  Constants
 * that the oldest supported headers lack stand here, with the release that
 * brought them.
 */
#ifndef SEAM_INTERNAL_H
#define SEAM_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "torpor/seam.h"

static inline int64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ptrace.c; the deadline is of CLOCK_MONOTONIC */
int wait_until(int tid, int64_t deadline_ns, int *status);
int wait_event_stop(int tid, int64_t deadline_ns);
int start_settling(int tid);

/* facts.c: a file of /proc, whole; as many bytes as there is room means that it may not be. */
int64_t read_text(int directory, const char *path, char *room, size_t size);

/* remote.c */
struct user_regs_struct;
int await_syscall_stop(int tid, int64_t deadline_ns);
int load_call(int tid, struct user_regs_struct *regs, const uint64_t *call);

/* memory.c: calls run(job, i) for i in 0..threads-1, each in a thread of its own. */
int run_threads(unsigned int threads, void (*run)(void *job, unsigned int index), void *job);

/* memory.c: all bytes of pieces of a task to or from contiguous room; uses up `remote`. */
struct iovec;
int move_memory(int pid, int writing, char *local, struct iovec *remote, size_t count);

int read_file(int fd, char *buffer, uint64_t size, uint64_t offset);

#define MAX_THREADS 16u
#define DIGEST_PIECE ((uint64_t)256 << 10) /* stays in the second level cache */

#endif
