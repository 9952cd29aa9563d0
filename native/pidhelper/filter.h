/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a seccomp filter of a thread that runs; nothing else is read of it, and nothing is written
 * but registers, to issue a call again that the stop has ended.
 *
 * The kernel shows filters to a tracer with CAP_SYS_ADMIN that has no filter of its own
 * (kernel/seccomp.c, get_nth_filter, v6.18), and only of a thread that is stopped. A thread has one
 * tracer: so this is done before an engine comes, it takes some 50 us, and by a task that is made
 * for it: when that ends, in whatever way, the thread goes on.
 */
#ifndef TORPOR_PIDHELPER_FILTER_H
#define TORPOR_PIDHELPER_FILTER_H

#include <linux/ptrace.h>
#include <linux/signal.h>
#include <linux/wait.h>

#include "torpor/interrupted.h"
#include "torpor/pidhelper.h"
#include "torpor/sys.h"

#define FILTER_SPINS 64
#define FILTER_NAPS 20000 /* 2 s at least: a task that waits for a disk does not stop */
#define FILTER_NAP_NS 100000
#define FILTER_EVENT_STOP 128 /* PTRACE_EVENT_STOP */
#define FILTER_SIGINFOS 16
#define FILTER_SIGINFO_WORDS 32

static inline long filter_trace(long request, long tid, long address, const void *data)
{
	return SYS4(__NR_ptrace, request, tid, address, data);
}

/* Until the thread stands at its event stop; a signal that comes first goes on its way. */
static inline long filter_await_stop(long tid)
{
	for (int tries = 0; tries < FILTER_SPINS + FILTER_NAPS;) {
		struct sys_timespec nap = {.seconds = 0, .nanoseconds = FILTER_NAP_NS};
		int status = 0;
		long got = sys_wait4(tid, &status, __WALL | SYS_WNOHANG);
		long signal = status >> 16 ? 0 : status >> 8 & 0xff;

		if (got == -EINTR)
			continue;
		if (got < 0)
			return got == -ECHILD ? -ESRCH : got;
		if (got == 0) {
			if (++tries > FILTER_SPINS)
				(void)sys_ppoll(NULL, 0, &nap);
			continue;
		}
		if ((status & 0xff) != 0x7f)
			return -ESRCH;
		if (status >> 16 == FILTER_EVENT_STOP)
			return 0;
		(void)filter_trace(PTRACE_INTERRUPT, tid, 0, NULL);
		(void)filter_trace(PTRACE_CONT, tid, 0, (void *)signal);
	}
	return -ETIMEDOUT;
}

/* Whether a signal is queued that the mask lets through. */
static inline int filter_signal_is_due(long tid)
{
	int32_t queued[FILTER_SIGINFOS][FILTER_SIGINFO_WORDS];
	uint64_t mask = 0;

	(void)filter_trace(PTRACE_GETSIGMASK, tid, sizeof(mask), &mask);
	for (uint32_t shared = 0; shared < 2; shared++) {
		struct ptrace_peeksiginfo_args args = {
			.off = 0,
			.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0,
			.nr = FILTER_SIGINFOS,
		};
		long count = filter_trace(PTRACE_PEEKSIGINFO, tid, (long)&args, queued);

		for (long i = 0; i < count; i++)
			if (!(mask >> (queued[i][0] - 1) & 1))
				return 1;
	}
	return 0;
}

/* As the engine does at its own stops (seam/ptrace.c). */
static inline void filter_repeat_call(long tid)
{
	uint64_t regs[TORPOR_REGS];

	if (filter_trace(PTRACE_GETREGS, tid, 0, regs) || (long)regs[TORPOR_REG_RESULT] != -EINTR)
		return;
	if (!is_given_up_at_stops((long)regs[TORPOR_REG_CALL]) || filter_signal_is_due(tid))
		return;
	regs[TORPOR_REG_RESULT] = regs[TORPOR_REG_CALL];
	regs[TORPOR_REG_AT] -= TORPOR_CALL_BYTES;
	regs[TORPOR_REG_CALL] = (uint64_t)-1;
	(void)filter_trace(PTRACE_SETREGS, tid, 0, regs);
}

/* Of a thread that is seized by us; 0 or -errno. */
static inline long filter_take(long tid, long index, struct pidhelper_filter *filter)
{
	struct seccomp_metadata about = {.filter_off = (uint64_t)index, .flags = 0};
	long count, error = filter_trace(PTRACE_INTERRUPT, tid, 0, NULL);

	if (!error)
		error = filter_await_stop(tid);
	if (error)
		return error;
	count = filter_trace(PTRACE_SECCOMP_GET_FILTER, tid, index, filter->instructions);
	if (count >= 0)
		error = filter_trace(PTRACE_SECCOMP_GET_METADATA, tid, sizeof(about), &about);
	if (error > 0) /* bytes that were written */
		error = 0;
	filter_repeat_call(tid);
	(void)filter_trace(PTRACE_DETACH, tid, 0, NULL);
	if (count < 0)
		return count;
	filter->error = 0;
	filter->count = (uint32_t)count;
	filter->flags = about.flags;
	return error;
}

#endif
