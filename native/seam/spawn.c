// SPDX-License-Identifier: Apache-2.0
/*
 * The seed of a new tree: a child with a chosen pid that runs a program at once.
 *
 * Until its execve the child runs on the memory of an interpreter, whose thread waits meanwhile
 * (vfork): a copy of the page tables, and the faults of all that is written afterwards, take a
 * third of the restore of a small task.  So it makes plain system calls only, on a stack of its own.
 */
#include "seam_internal.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define CLOEXEC_RANGE (1u << 2) /* CLOSE_RANGE_CLOEXEC, Linux 5.11 */
#define HIGHEST_SIGNAL 64
#define HIGHEST_FD 65536
#define STDIO_COUNT 3
#define KEPT_MAX 256
#define STACK_BYTES (64 << 10)

struct kernel_sigaction {
	void *handler;
	unsigned long flags;
	void *restorer;
	uint64_t mask;
};

/* struct clone_args up to set_tid_size, Linux 5.5 */
struct clone_request {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
	uint64_t set_tid, set_tid_size;
};

_Static_assert(sizeof(struct clone_request) == 80, "clone_args version 1");

static void reset_signals(void)
{
	struct kernel_sigaction plain;
	uint64_t none = 0;
	int i;

	memset(&plain, 0, sizeof(plain));
	for (i = 1; i <= HIGHEST_SIGNAL; i++)
		syscall(SYS_rt_sigaction, i, &plain, NULL, sizeof(plain.mask));
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof(none));
}

static int source_of(const struct seam_spawn *spawn, int number)
{
	return number < STDIO_COUNT ? spawn->stdio[number] : spawn->kept[number - STDIO_COUNT];
}

/* In two rounds: a source may be a number that is overwritten. */
static int place(const struct seam_spawn *spawn)
{
	int count = STDIO_COUNT + spawn->kept_count, i;
	int high[STDIO_COUNT + KEPT_MAX];

	if (spawn->kept_count > KEPT_MAX)
		return -E2BIG;
	for (i = 0; i < count; i++) {
		int source = source_of(spawn, i);

		high[i] = source < 0 ? -1 : (int)syscall(SYS_fcntl, source, F_DUPFD, count);
		if (source >= 0 && high[i] < 0)
			return -errno;
	}
	for (i = 0; i < count; i++)
		if (high[i] >= 0 && syscall(SYS_dup3, high[i], i, 0) < 0)
			return -errno;
	return 0;
}

static void close_others_at_exec(int first)
{
	int fd;

	if (!syscall(SYS_close_range, first, ~0u, CLOEXEC_RANGE))
		return;
	for (fd = first; fd < HIGHEST_FD; fd++)
		syscall(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC);
}

/*
 * Without the rights to it this does nothing: who asks looks at what has come of it.  What was
 * unshared is entered by execve (kernel/nsproxy.c, exec_task_namespaces, Linux 6.1); setns wants
 * memory that nobody shares (kernel/time/namespace.c, timens_install).
 */
static void enter_time(const struct seam_spawn *spawn)
{
	int fd;

	if (spawn->time_namespace >= 0) {
		syscall(SYS_setns, spawn->time_namespace, CLONE_NEWTIME);
		return;
	}
	if (syscall(SYS_unshare, CLONE_NEWTIME))
		return;
	fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		syscall(SYS_write, fd, spawn->clocks, (size_t)spawn->clocks_size);
		syscall(SYS_close, fd);
	}
}

static _Noreturn void child(const struct seam_spawn *spawn, long report)
{
	int error = 0;

	if (spawn->dies_with) {
		syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		if (syscall(SYS_getppid) != spawn->dies_with) /* it was too late */
			syscall(SYS_exit_group, 127);
	}
	if (spawn->new_session)
		syscall(SYS_setsid);
	if (spawn->clocks_size || spawn->time_namespace >= 0)
		enter_time(spawn);
	report = syscall(SYS_fcntl, report, F_DUPFD_CLOEXEC, STDIO_COUNT + KEPT_MAX);
	error = -place(spawn);
	if (!error) {
		close_others_at_exec(STDIO_COUNT + spawn->kept_count);
		reset_signals();
		syscall(SYS_execve, spawn->path, spawn->argv, spawn->envp);
		error = errno;
	}
	if (syscall(SYS_write, report, &error, sizeof(error)) < 0)
		error = 0; /* nobody listens: the exit code has to do */
	syscall(SYS_exit_group, 127);
	__builtin_unreachable();
}

/* In the child it calls child(), on the request's stack. */
static long clone_to_child(const struct clone_request *request, const struct seam_spawn *spawn,
			   long report)
{
	long result = SYS_clone3;

	__asm__ volatile("syscall\n\t"
			 "testq %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xorl %%ebp, %%ebp\n\t"
			 "movq %[spawn], %%rdi\n\t"
			 "movq %[report], %%rsi\n\t"
			 "call *%[child]\n"
			 "1:"
			 : "+a"(result)
			 : "D"(request), "S"(sizeof(*request)), [spawn] "r"(spawn),
			   [report] "r"(report), [child] "r"(child)
			 : "rcx", "r11", "memory", "cc");
	return result;
}

int seam_spawn_seed(struct seam_spawn *spawn)
{
	int32_t wanted = spawn->set_tid;
	struct clone_request request = {
		.flags = spawn->flags | (spawn->time_namespace < 0 ? CLONE_VM | CLONE_VFORK : 0),
		/* a sibling of ours has our exit signal (kernel/fork.c, copy_process) */
		.exit_signal = spawn->flags & CLONE_PARENT ? 0 : SIGCHLD,
		.set_tid = spawn->set_tid ? (uintptr_t)&wanted : 0,
		.set_tid_size = spawn->set_tid ? 1 : 0,
	};
	int report[2], error = 0;
	uint64_t all = ~0ull, old;
	ssize_t got;
	long pid;
	char *stack = aligned_alloc(16, STACK_BYTES);

	if (!stack)
		return -ENOMEM;
	request.stack = (uintptr_t)stack;
	request.stack_size = STACK_BYTES;
	spawn->failed_call = 0;
	if (pipe2(report, O_CLOEXEC)) {
		error = errno;
		free(stack);
		return -error;
	}
	/* no handler of ours may run in the child */
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof(all));
	pid = clone_to_child(&request, spawn, report[1]);
	if (pid < 0)
		error = (int)-pid;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, sizeof(old));
	close(report[1]);
	if (pid > 0) {
		do
			got = read(report[0], &error, sizeof(error));
		while (got < 0 && errno == EINTR);
		if (got == sizeof(error)) {
			spawn->failed_call = 1;
			waitpid((int)pid, NULL, __WALL);
		} else {
			error = 0;
		}
	}
	close(report[0]);
	free(stack);
	return error ? -error : (int)pid;
}
