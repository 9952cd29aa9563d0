/* SPDX-License-Identifier: Apache-2.0 */
/* States that cannot be taken, or only just, and that a program passes through all the time. */
#include "motion_base.h"
#include <fcntl.h>
#include <grp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>

static void *sleeps(void *microseconds)
{
	usleep((long)microseconds);
	return NULL;
}

/* Processes with threads that end: all at once, by a signal, by the program that is executed. */
static void exits(int number)
{
	for (int i = 0; going(); i++) {
		pid_t child = fork();

		if (child == 0) {
			pthread_t threads[3];

			for (int j = 0; j < 3; j++)
				pthread_create(threads + j, NULL, sleeps, (void *)1000000l);
			if (i % 3 == 0)
				_exit(11);
			if (i % 3 == 1)
				kill(getpid(), SIGKILL);
			else
				execl("/bin/sh", "sh", "-c", "exit 11", NULL);
			for (;;)
				pause();
		}
		int status;

		SAME(waitpid(child, &status, 0), child);
		if (i % 3 == 1)
			CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		else
			CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 11);
		tick(number);
	}
}

/* A main thread that ends some time before the others do. */
static void leaders(int number)
{
	while (going()) {
		pid_t child = fork();

		if (child == 0) {
			pthread_t thread;

			pthread_create(&thread, NULL, sleeps, (void *)2000l);
			syscall(SYS_exit, 0);
		}
		int status;

		SAME(waitpid(child, &status, 0), child);
		usleep(4000);
		tick(number);
	}
}

static void sandboxes(int number)
{
	while (going()) {
		pid_t child = fork();

		if (child == 0) {
			if (unshare(CLONE_NEWUTS | CLONE_NEWIPC))
				_exit(90);
			usleep(2000);
			_exit(12);
		}
		ended_with(child, 12);
		usleep(4000);
		tick(number);
	}
}

static int shares(void *unused)
{
	(void)unused;
	for (volatile int i = 0; i < 1000000; i++)
		;
	return 13;
}

static void clones(int number)
{
	char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	while (going()) {
		pid_t child = clone(shares, stack + 65536, CLONE_VM | SIGCHLD, NULL);

		CHECK(child > 0);
		ended_with(child, 13);
		usleep(4000);
		tick(number);
	}
}

static void traced(int number)
{
	while (going()) {
		pid_t child = fork();
		int status;

		if (child == 0) {
			ptrace(PTRACE_TRACEME, 0, NULL, NULL);
			raise(SIGSTOP);
			_exit(14);
		}
		SAME(waitpid(child, &status, 0), child);
		CHECK(WIFSTOPPED(status));
		usleep(1000);
		CHECK(ptrace(PTRACE_CONT, child, NULL, NULL) == 0);
		ended_with(child, 14);
		usleep(4000);
		tick(number);
	}
}

/* Identities of a process are set in all of its threads, by a signal to each. */
static volatile uint64_t changes;

static void counts(int number)
{
	while (going()) {
		for (volatile int i = 0; i < 10000; i++)
			;
		long user = syscall(SYS_geteuid);

		CHECK(user == 0 || user == 1000);
		tick(number);
	}
}

static void identities(int number)
{
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		threads[i] = start_thread(number + 1 + i, counts);
	while (going()) {
		gid_t groups[] = { 5, 6, 7 + changes % 10 };

		CHECK(setgroups(3, groups) == 0);
		CHECK(setresuid(0, 1000, 0) == 0);
		CHECK(setresuid(0, 0, 0) == 0);
		changes++;
		tick(number);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

static void faults(int number)
{
	while (going()) {
		int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
		struct uffdio_api api = { .api = UFFD_API };

		CHECK(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
		usleep(500);
		CHECK(close(fd) == 0);
		usleep(4000);
		tick(number);
	}
}

#define RUN(name, count, body, workers_)               \
	static void run_##name(void)                   \
	{                                              \
		start_workers(count, body);            \
		board->workers = workers_;             \
		finish();                              \
	}
RUN(exits, 2, exits, 2)
RUN(leaders, 2, leaders, 2)
RUN(sandboxes, 2, sandboxes, 2)
RUN(clones, 2, clones, 2)
RUN(traced, 2, traced, 2)
RUN(identities, 1, identities, 3)
RUN(faults, 2, faults, 2)

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "exits", run_exits },	  { "leaders", run_leaders }, { "sandboxes", run_sandboxes },
		{ "clones", run_clones }, { "traced", run_traced },   { "identities", run_identities },
		{ "faults", run_faults }, { NULL, NULL },
	};

	CHECK(argc > 2);
	return run_mode(argv, modes);
}
