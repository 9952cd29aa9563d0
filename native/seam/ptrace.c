// SPDX-License-Identifier: Apache-2.0
/* Stopping tasks and reading what only their tracer may read. */
#include "seam_internal.h"
#include "torpor/interrupted.h"

#include <linux/ptrace.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#define TRACE_SYSCALL_GOOD 1ul
#define EVENT_STOP_STATUS 128 /* PTRACE_EVENT_STOP */
#define GET_RSEQ 0x420f /* PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13 */
#define GET_USER_DISPATCH 0x4211 /* Linux 6.4 */
#define WORDS_OF_REGS 27
#define SPINS 4

_Static_assert(sizeof(struct user_regs_struct) == WORDS_OF_REGS * 8, "user_regs_struct");

static int request(long code, int tid, void *address, void *data)
{
	long result = syscall(SYS_ptrace, code, tid, address, data);

	return result < 0 ? -errno : (int)result;
}

int seam_seize(int tid, uint64_t options)
{
	return request(PTRACE_SEIZE, tid, NULL, (void *)(options | TRACE_SYSCALL_GOOD));
}

int seam_interrupt(int tid)
{
	return request(PTRACE_INTERRUPT, tid, NULL, NULL);
}

/* Ends a tracee whatever its state; unlike kill(2) it asks for no right beyond tracing. */
int seam_kill(int tid)
{
	return request(PTRACE_KILL, tid, NULL, NULL);
}

int seam_set_options(int tid, uint64_t options)
{
	return request(PTRACE_SETOPTIONS, tid, NULL, (void *)(options | TRACE_SYSCALL_GOOD));
}

int seam_resume(int code, int tid, int signal)
{
	return request(code, tid, NULL, (void *)(long)signal);
}

/*
 * waitpid with a deadline.  It sleeps until a child of the process has news (SIGCHLD, which is
 * blocked meanwhile), at most for a moment: another thread may have taken the signal.  To
 * yield instead would cost a whole time slice for each stop where others keep the processors
 * busy.
 */
int wait_until(int tid, int64_t deadline_ns, int *status)
{
	const struct timespec moment = { 0, 1000000 };
	sigset_t news, before;
	int result = 0, blocked = 0, tries;

	sigemptyset(&news);
	sigaddset(&news, SIGCHLD);
	for (tries = 0;; tries++) {
		int got = waitpid(tid, status, __WALL | WNOHANG);

		if (got == tid)
			break;
		if (got < 0 && errno != EINTR) {
			result = -errno;
			break;
		}
		if (tries < SPINS)
			continue;
		if (tries == SPINS) {
			pthread_sigmask(SIG_BLOCK, &news, &before);
			blocked = 1;
			continue;
		}
		if (monotonic_ns() >= deadline_ns) {
			result = -ETIMEDOUT;
			break;
		}
		sigtimedwait(&news, NULL, &moment);
	}
	if (blocked)
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	return result;
}

int seam_wait(int tid, int64_t timeout_ns, int *status)
{
	return wait_until(tid, monotonic_ns() + timeout_ns, status);
}

/* Whether a signal is queued that the mask lets through. */
static int signal_is_due(int tid)
{
	siginfo_t queued[32];
	uint64_t mask = 0;
	int shared, count, i;

	seam_get_sigmask(tid, &mask);
	for (shared = 0; shared < 2; shared++) {
		count = seam_pending_signals(tid, shared, 0, queued, 32);
		for (i = 0; i < count; i++)
			if (!(mask >> (queued[i].si_signo - 1) & 1))
				return 1;
	}
	return 0;
}

/*
 * A few calls give EINTR because their task was stopped (signal(7)): issue such
 * a call again, at once.  Only a tracer that dies before it comes here leaves
 * the EINTR to be seen, as any debugger and the cgroup freezer do.
 */
static int repeat_interrupted_call(int tid)
{
	struct user_regs_struct regs;
	int result = seam_get_regs(tid, (uint64_t *)&regs, WORDS_OF_REGS);

	if (result < 0 || (int64_t)regs.rax != -EINTR)
		return result;
	if (!is_given_up_at_stops((long)regs.orig_rax) || signal_is_due(tid))
		return 0;
	regs.rax = regs.orig_rax;
	regs.rip -= 2;
	regs.orig_rax = -1;
	return seam_set_regs(tid, (uint64_t *)&regs, WORDS_OF_REGS);
}

/*
 * Wait until an interrupted task stands at its PTRACE_EVENT_STOP.  A signal may
 * come first: any stop drops the pending interrupt (kernel/signal.c,
 * ptrace_stop), so it is asked for again and the signal goes on its way.
 */
int wait_event_stop(int tid, int64_t deadline_ns)
{
	for (;;) {
		int status, result = wait_until(tid, deadline_ns, &status);

		if (result < 0)
			return result == -ECHILD ? -ESRCH : result;
		if (!WIFSTOPPED(status))
			return -ESRCH;
		if (status >> 16 == EVENT_STOP_STATUS)
			return repeat_interrupted_call(tid);
		result = seam_interrupt(tid);
		if (!result) {
			int plain = status >> 16 == 0 && WSTOPSIG(status) < 0x80;

			result = seam_resume(PTRACE_CONT, tid, plain ? WSTOPSIG(status) : 0);
		}
		if (result < 0 && result != -ESRCH)
			return result;
	}
}

/* A task at any stop goes to its event stop, without running an instruction. */
int start_settling(int tid)
{
	int result = seam_interrupt(tid);

	return result < 0 ? result : seam_resume(PTRACE_CONT, tid, 0);
}

/* From any stop (stopped) or from running; a stopped task runs nothing on its way. */
int seam_settle(int tid, int stopped, int64_t timeout_ns)
{
	int result = stopped ? start_settling(tid) : seam_interrupt(tid);

	return result < 0 ? result : wait_event_stop(tid, monotonic_ns() + timeout_ns);
}

/* Of a task that was seized and interrupted before. */
int seam_await_event_stop(int tid, int64_t timeout_ns)
{
	return wait_event_stop(tid, monotonic_ns() + timeout_ns);
}

int seam_stop_all(const int *tids, size_t count, uint64_t options, int64_t timeout_ns, int *results)
{
	int64_t deadline_ns = monotonic_ns() + timeout_ns;
	size_t i;

	for (i = 0; i < count; i++) {
		results[i] = seam_seize(tids[i], options);
		if (!results[i])
			results[i] = seam_interrupt(tids[i]);
	}
	for (i = 0; i < count; i++)
		if (!results[i])
			results[i] = wait_event_stop(tids[i], deadline_ns);
	return 0;
}

/* Let a task go from its event stop, with other registers unless a signal is to be handled. */
int seam_release(int tid, const uint64_t *regs)
{
	int result = regs && !signal_is_due(tid) ? seam_set_regs(tid, regs, WORDS_OF_REGS) : 0;

	return result < 0 ? result : seam_resume(PTRACE_DETACH, tid, 0);
}

void seam_release_all(const int *tids, size_t count, const uint64_t *regs,
		      const unsigned char *others, int *results)
{
	for (size_t i = 0; i < count; i++)
		if (!results[i])
			results[i] = seam_release(tids[i],
						  others[i] ? regs + WORDS_OF_REGS * i : NULL);
}

int seam_event_message(int tid, uint64_t *message)
{
	return request(PTRACE_GETEVENTMSG, tid, NULL, message);
}

int seam_get_regs(int tid, uint64_t *regs, size_t count)
{
	return count < WORDS_OF_REGS ? -EINVAL : request(PTRACE_GETREGS, tid, NULL, regs);
}

int seam_set_regs(int tid, const uint64_t *regs, size_t count)
{
	return count < WORDS_OF_REGS ? -EINVAL : request(PTRACE_SETREGS, tid, NULL, (void *)regs);
}

int seam_get_regset(int tid, unsigned int type, void *buffer, size_t size)
{
	struct iovec room = { buffer, size };
	int result = request(PTRACE_GETREGSET, tid, (void *)(long)type, &room);

	return result < 0 ? result : (int)room.iov_len;
}

int seam_set_regset(int tid, unsigned int type, const void *buffer, size_t size)
{
	struct iovec room = { (void *)buffer, size };

	return request(PTRACE_SETREGSET, tid, (void *)(long)type, &room);
}

int seam_get_sigmask(int tid, uint64_t *mask)
{
	return request(PTRACE_GETSIGMASK, tid, (void *)sizeof(*mask), mask);
}

int seam_set_sigmask(int tid, uint64_t mask)
{
	return request(PTRACE_SETSIGMASK, tid, (void *)sizeof(mask), &mask);
}

int seam_pending_signals(int tid, int shared, unsigned int first, void *siginfos, int count)
{
	struct ptrace_peeksiginfo_args args = {
		.off = first,
		.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0,
		.nr = count,
	};

	return request(PTRACE_PEEKSIGINFO, tid, &args, siginfos);
}

int seam_get_siginfo(int tid, void *siginfo)
{
	return request(PTRACE_GETSIGINFO, tid, NULL, siginfo);
}

int seam_rseq_config(int tid, uint64_t *values)
{
	struct {
		uint64_t pointer;
		uint32_t size, signature, flags, padding;
	} got = { 0 };
	int result = request(GET_RSEQ, tid, (void *)sizeof(got), &got);

	if (result < 0)
		return result;
	values[0] = got.pointer;
	values[1] = got.size;
	values[2] = got.signature;
	values[3] = got.flags;
	return 0;
}

/* mode, offset, length, address of the selector */
int seam_user_dispatch(int tid, uint64_t *values)
{
	return request(GET_USER_DISPATCH, tid, (void *)(4 * sizeof(*values)), values);
}

int seam_seccomp_filter(int tid, unsigned int index, void *instructions)
{
	return request(PTRACE_SECCOMP_GET_FILTER, tid, (void *)(long)index, instructions);
}

int seam_seccomp_flags(int tid, unsigned int index, uint64_t *flags)
{
	struct {
		uint64_t filter_off, flags;
	} data = { index, 0 };
	int result = request(PTRACE_SECCOMP_GET_METADATA, tid, (void *)sizeof(data), &data);

	*flags = data.flags;
	return result < 0 ? result : 0;
}
