// SPDX-License-Identifier: Apache-2.0
/*
 * Many stopped tasks borrowed at once: each step of engine/kernel/remote.py is
 * done for all of them before the next, so that one is waited for while the
 * others run.  For each task alone the order of the steps is the same.
 */
#include "seam_internal.h"

#include <linux/ptrace.h>
#include <signal.h>
#include <sys/user.h>
#include <sys/wait.h>

#define ALL_SIGNALS (~0ull)

/* Steps 2 and 3, and 6 and 7: nothing comes between the two, for a signal might. */
static int arm(int tid, const uint64_t *armed, uint64_t mask)
{
	int result = seam_set_regs(tid, armed, 27);

	return result < 0 ? result : seam_set_sigmask(tid, mask);
}

int seam_arm(int tid, const uint64_t *armed)
{
	return arm(tid, armed, ALL_SIGNALS);
}

int seam_disarm(int tid, uint64_t mask, const uint64_t *original)
{
	int result = seam_set_sigmask(tid, mask);

	return result < 0 ? result : seam_set_regs(tid, original, 27);
}

static int spread(struct seam_borrow *task)
{
	int64_t result = seam_read_memory(task->tid, task->region, task->saved, task->size);

	if (result < 0)
		return (int)result;
	/* from here on there is something to put back */
	task->spread = 1;
	result = seam_write_memory(task->tid, task->region, task->net, task->size);
	if (result < 0)
		return (int)result;
	return arm(task->tid, task->armed,
		   task->signal ? ALL_SIGNALS & ~(1ull << (task->signal - 1)) : ALL_SIGNALS);
}

static int start_call(struct seam_borrow *task, size_t index)
{
	struct user_regs_struct regs = *(const struct user_regs_struct *)task->base;
	int result = load_call(task->tid, &regs, task->calls + 7 * index);

	return result < 0 ? result : seam_resume(PTRACE_SYSCALL, task->tid, 0);
}

static int end_call(struct seam_borrow *task, size_t index, int64_t deadline_ns)
{
	struct user_regs_struct regs;
	int result = await_syscall_stop(task->tid, deadline_ns);

	if (!result)
		result = seam_get_regs(task->tid, (uint64_t *)&regs, 27);
	if (!result)
		task->results[index] = (int64_t)regs.rax;
	return result;
}

static void call_all(struct seam_borrow *tasks, size_t count, size_t index, int64_t deadline_ns)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (!tasks[i].error && index < tasks[i].call_count)
			tasks[i].error = start_call(tasks + i, index);
	for (i = 0; i < count; i++) {
		struct seam_borrow *task = tasks + i;

		if (task->error || index >= task->call_count)
			continue;
		task->error = await_syscall_stop(task->tid, deadline_ns);
		if (!task->error)
			task->error = seam_resume(PTRACE_SYSCALL, task->tid, 0);
	}
	for (i = 0; i < count; i++)
		if (!tasks[i].error && index < tasks[i].call_count)
			tasks[i].error = end_call(tasks + i, index, deadline_ns);
}

static int start_pass(struct seam_borrow *task, const uint64_t *pass)
{
	struct user_regs_struct regs = *(const struct user_regs_struct *)task->base;
	int result;

	regs.rsp = pass[0];
	regs.r10 = pass[2];
	regs.r8 = pass[3];
	result = seam_set_regs(task->tid, (uint64_t *)&regs, 27);
	return result < 0 ? result : seam_resume(PTRACE_CONT, task->tid, 0);
}

/* The same signal may come from elsewhere before the end: it means nothing then either. */
static int end_pass(struct seam_borrow *task, const uint64_t *pass, int64_t deadline_ns)
{
	for (;;) {
		struct user_regs_struct regs;
		int status, result = wait_until(task->tid, deadline_ns, &status), signal = 0;

		if (result < 0)
			return result == -ECHILD ? -ESRCH : result;
		if (!WIFSTOPPED(status))
			return -ESRCH;
		if (status >> 16 == 0) {
			if (WSTOPSIG(status) == SIGSTOP)
				signal = SIGSTOP;
			else if (WSTOPSIG(status) != task->signal)
				return -EFAULT;
			result = seam_get_regs(task->tid, (uint64_t *)&regs, 27);
			if (result < 0 || (!signal && regs.rsp == pass[1]))
				return result;
		}
		result = seam_resume(PTRACE_CONT, task->tid, signal);
		if (result < 0)
			return result;
	}
}

static void run_all(struct seam_borrow *tasks, size_t count, size_t index, int64_t deadline_ns)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (!tasks[i].error && index < tasks[i].pass_count)
			tasks[i].error = start_pass(tasks + i, tasks[i].passes + 4 * index);
	for (i = 0; i < count; i++)
		if (!tasks[i].error && index < tasks[i].pass_count)
			tasks[i].error = end_pass(tasks + i, tasks[i].passes + 4 * index, deadline_ns);
}

static void keep(struct seam_borrow *task, int64_t result)
{
	if (result < 0 && !task->error)
		task->error = (int)result;
}

/* Steps 5 to 8, whatever went wrong before. */
static void put_back_all(struct seam_borrow *tasks, size_t count, int64_t deadline_ns)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (tasks[i].spread)
			keep(tasks + i, start_settling(tasks[i].tid));
	for (i = 0; i < count; i++) {
		struct seam_borrow *task = tasks + i;

		if (!task->spread)
			continue;
		keep(task, wait_event_stop(task->tid, deadline_ns));
		keep(task, seam_disarm(task->tid, task->mask, task->original));
	}
	/* the highest first: nets without the ones below are not known to who comes later */
	for (i = count; i-- > 0;)
		if (tasks[i].spread)
			keep(tasks + i, seam_write_memory(tasks[i].tid, tasks[i].region,
							  tasks[i].saved, tasks[i].size));
}

int seam_borrow_all(struct seam_borrow *tasks, size_t count, int64_t timeout_ns)
{
	int64_t deadline_ns = monotonic_ns() + timeout_ns;
	size_t i, most = 0, passes = 0;

	for (i = 0; i < count; i++) {
		tasks[i].spread = 0;
		tasks[i].error = spread(tasks + i);
		if (tasks[i].call_count > most)
			most = tasks[i].call_count;
		if (tasks[i].pass_count > passes)
			passes = tasks[i].pass_count;
	}
	for (i = 0; i < passes; i++)
		run_all(tasks, count, i, deadline_ns);
	for (i = 0; i < most; i++)
		call_all(tasks, count, i, deadline_ns);
	for (i = 0; i < count; i++)
		if (!tasks[i].error && tasks[i].answer_size)
			keep(tasks + i, seam_read_memory(tasks[i].tid, tasks[i].answer_at,
							 tasks[i].answer, tasks[i].answer_size));
	put_back_all(tasks, count, monotonic_ns() + timeout_ns);
	return 0;
}
