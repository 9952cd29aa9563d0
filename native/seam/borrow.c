// SPDX-License-Identifier: Apache-2.0
/*
 * Many stopped tasks borrowed at once: each step of engine/kernel/remote.py is
 * done for all of them before the next, so that one is waited for while the
 * others run.  For each task alone the order of the steps is the same.
 */
#include "seam_internal.h"

#include <linux/ptrace.h>
#include <signal.h>
#include <string.h>
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

static void edit(uint64_t *regs, const uint64_t *before, const struct seam_edit *edits, size_t count,
		 uint64_t region)
{
	for (const struct seam_edit *one = edits; one < edits + count; one++)
		regs[one->to] = (one->from < 0 ? 0 : before[one->from]) + one->plus +
				one->region * region;
}

/* Registers that a thread runs with for us; `base` is for calls, the other one leads home. */
static void set_out(const struct seam_borrow *task, int base, struct user_regs_struct *regs)
{
	const struct seam_pattern *pattern = task->pattern;
	const uint64_t *original = task->facts->regs;

	memcpy(regs, original, sizeof(*regs));
	edit((uint64_t *)regs, original, pattern->armed, pattern->armed_count, task->region);
	if (base)
		edit((uint64_t *)regs, original, pattern->base, pattern->base_count, task->region);
}

static void make_net(const struct seam_borrow *task)
{
	const struct seam_pattern *pattern = task->pattern;
	const struct seam_facts *facts = task->facts;
	uint64_t regs[27];
	const char *sources[] = { (const char *)regs, (const char *)&facts->mask, facts->xstate };

	memcpy(regs, facts->regs, sizeof(regs));
	edit(regs, facts->regs, task->restart, task->restart_count, task->region);
	memcpy(task->net, pattern->content, pattern->size);
	for (const struct seam_sum *sum = pattern->sums; sum < pattern->sums + pattern->sum_count;
	     sum++)
		*(uint64_t *)(task->net + sum->at) += sum->region * task->region +
						      sum->process * task->process +
						      sum->thread * task->thread;
	for (const struct seam_piece *one = pattern->pieces;
	     one < pattern->pieces + pattern->piece_count; one++)
		memcpy(task->net + one->at, sources[one->source] + one->from, (size_t)one->size);
}

static int spread(struct seam_borrow *task)
{
	int tid = task->facts->tid;
	size_t size = task->pattern->size;
	struct user_regs_struct armed;
	int64_t result = seam_read_memory(tid, task->region, task->saved, size);

	if (result < 0)
		return (int)result;
	make_net(task);
	set_out(task, 0, &armed);
	/* from here on there is something to put back */
	task->spread = 1;
	result = seam_write_memory(tid, task->region, task->net, size);
	if (result < 0)
		return (int)result;
	return arm(tid, (const uint64_t *)&armed,
		   task->signal ? ALL_SIGNALS & ~(1ull << (task->signal - 1)) : ALL_SIGNALS);
}

static int start_call(struct seam_borrow *task, size_t index)
{
	struct user_regs_struct regs;
	int result;

	set_out(task, 1, &regs);
	result = load_call(task->facts->tid, &regs, task->calls + 7 * index);
	return result < 0 ? result : seam_resume(PTRACE_SYSCALL, task->facts->tid, 0);
}

static int end_call(struct seam_borrow *task, size_t index, int64_t deadline_ns)
{
	struct user_regs_struct regs;
	int result = await_syscall_stop(task->facts->tid, deadline_ns);

	if (!result)
		result = seam_get_regs(task->facts->tid, (uint64_t *)&regs, 27);
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
		task->error = await_syscall_stop(task->facts->tid, deadline_ns);
		if (!task->error)
			task->error = seam_resume(PTRACE_SYSCALL, task->facts->tid, 0);
	}
	for (i = 0; i < count; i++)
		if (!tasks[i].error && index < tasks[i].call_count)
			tasks[i].error = end_call(tasks + i, index, deadline_ns);
}

static int start_pass(struct seam_borrow *task, const struct seam_pass *pass)
{
	struct user_regs_struct regs;
	int result;

	set_out(task, 1, &regs);
	regs.rsp = task->region + pass->first;
	regs.r10 = pass->r10;
	regs.r8 = pass->r8 + pass->r8_region * task->region;
	result = seam_set_regs(task->facts->tid, (uint64_t *)&regs, 27);
	return result < 0 ? result : seam_resume(PTRACE_CONT, task->facts->tid, 0);
}

/* The same signal may come from elsewhere before the end: it means nothing then either. */
static int end_pass(struct seam_borrow *task, const struct seam_pass *pass, int64_t deadline_ns)
{
	int tid = task->facts->tid;

	for (;;) {
		struct user_regs_struct regs;
		int status, result = wait_until(tid, deadline_ns, &status), signal = 0;

		if (result < 0)
			return result == -ECHILD ? -ESRCH : result;
		if (!WIFSTOPPED(status))
			return -ESRCH;
		if (status >> 16 == 0) {
			if (WSTOPSIG(status) == SIGSTOP)
				signal = SIGSTOP;
			else if (WSTOPSIG(status) != task->signal)
				return -EFAULT;
			result = seam_get_regs(tid, (uint64_t *)&regs, 27);
			if (result < 0 || (!signal && regs.rsp == task->region + pass->last))
				return result;
		}
		result = seam_resume(PTRACE_CONT, tid, signal);
		if (result < 0)
			return result;
	}
}

static size_t passes_of(const struct seam_borrow *task)
{
	return task->signal && !task->error ? task->pattern->pass_count : 0;
}

static void run_all(struct seam_borrow *tasks, size_t count, size_t index, int64_t deadline_ns)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (index < passes_of(tasks + i))
			tasks[i].error = start_pass(tasks + i, tasks[i].pattern->passes + index);
	for (i = 0; i < count; i++)
		if (index < passes_of(tasks + i))
			tasks[i].error = end_pass(tasks + i, tasks[i].pattern->passes + index,
						  deadline_ns);
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
			keep(tasks + i, start_settling(tasks[i].facts->tid));
	for (i = 0; i < count; i++) {
		const struct seam_facts *facts = tasks[i].facts;

		if (!tasks[i].spread)
			continue;
		keep(tasks + i, wait_event_stop(facts->tid, deadline_ns));
		keep(tasks + i, seam_disarm(facts->tid, facts->mask, facts->regs));
	}
	/* the highest first: nets without the ones below are not known to who comes later */
	for (i = count; i-- > 0;)
		if (tasks[i].spread)
			keep(tasks + i, seam_write_memory(tasks[i].facts->tid, tasks[i].region,
							  tasks[i].saved, tasks[i].pattern->size));
}

/* Whether none failed. */
static int borrow_wave(struct seam_borrow *tasks, size_t count, int64_t timeout_ns)
{
	int64_t deadline_ns = monotonic_ns() + timeout_ns;
	size_t i, most = 0, passes = 0;
	int is_fine = 1;

	for (i = 0; i < count; i++) {
		tasks[i].error = spread(tasks + i);
		if (tasks[i].call_count > most)
			most = tasks[i].call_count;
		if (passes_of(tasks + i) > passes)
			passes = passes_of(tasks + i);
	}
	for (i = 0; i < passes; i++)
		run_all(tasks, count, i, deadline_ns);
	for (i = 0; i < most; i++)
		call_all(tasks, count, i, deadline_ns);
	for (i = 0; i < count; i++) {
		const struct seam_pattern *pattern = tasks[i].pattern;

		if (!tasks[i].error && pattern->answer_size)
			keep(tasks + i, seam_read_memory(tasks[i].facts->tid,
							 tasks[i].region + pattern->answer_at,
							 tasks[i].answer, pattern->answer_size));
	}
	put_back_all(tasks, count, monotonic_ns() + timeout_ns);
	for (i = 0; i < count; i++)
		is_fine &= !tasks[i].error;
	return is_fine;
}

void seam_borrow_all(struct seam_borrow *tasks, size_t count, int64_t timeout_ns)
{
	size_t first, last;

	for (first = 0; first < count; first = last) {
		for (last = first; last < count && tasks[last].wave == tasks[first].wave; last++)
			;
		if (!borrow_wave(tasks + first, last - first, timeout_ns))
			return;
	}
}
