/* SPDX-License-Identifier: Apache-2.0 */
/* States that cannot be taken: a parent inside of vfork, memory shared by clone, a tracer. */
#include "core_base.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static pid_t child;

static int sharing(void *nothing)
{
	(void)nothing;
	for (;;)
		rest(5);
	return 0;
}

static void go_away(void)
{
	CHECK(!kill(child, SIGKILL) && waitpid(child, 0, 0) == child);
}

int main(int argc, char **argv)
{
	begin(argv);
	CHECK(argc == 3);
	if (!strcmp(argv[2], "vfork")) {
		if (!vfork()) {
			struct timespec some = { 0, 10000000 };

			ready();
			while (!asked())
				syscall(SYS_nanosleep, &some, 0);
			_exit(0);
		}
		wait(0);
	} else if (!strcmp(argv[2], "clone_vm")) {
		char *stack = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				   -1, 0);

		child = clone(sharing, stack + 65536, CLONE_VM | SIGCHLD, 0);
		CHECK(child > 0);
		ready();
		await_go();
		go_away();
	} else if (!strcmp(argv[2], "landlock")) {
		uint64_t rules[3] = { 1 }; /* executing files is handled */
		int fd = syscall(444, rules, 8, 0); /* landlock_create_ruleset */

		if (fd < 0) {
			put("ready", "lacking: landlock");
			return 0;
		}
		CHECK(!syscall(446, fd, 0) && !close(fd)); /* landlock_restrict_self */
		ready();
		await_go();
	} else if (!strcmp(argv[2], "traced")) {
		child = fork();
		if (!child)
			sharing(0);
		CHECK(!ptrace(PTRACE_SEIZE, child, 0, 0));
		ready();
		await_go();
		go_away();
	}
	good();
	return 0;
}
