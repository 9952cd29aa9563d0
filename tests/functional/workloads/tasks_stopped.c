/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Children in a job control stop: of which the parent has been told, or not yet; by another
 * signal than SIGSTOP; with threads; with a signal that waits for SIGCONT.
 */
#include "core_base.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define MOST 4

static volatile long *counters;
static volatile int told;
static const char *mode;

static int is(const char *name)
{
	return strcmp(mode, name) == 0;
}

static void count_up(int signal)
{
	(void)signal;
	counters[MOST]++;
}

static void tell(int signal)
{
	(void)signal;
	told++;
}

static void *work(void *which)
{
	for (;;) {
		counters[(long)which]++;
		rest(2);
	}
	return which;
}

__attribute__((noreturn)) static void child(void)
{
	pthread_t thread;

	CHECK(!setpgid(0, 0));
	signal(SIGUSR1, count_up);
	if (is("threads"))
		for (long i = 1; i < MOST; i++)
			CHECK(!pthread_create(&thread, 0, work, (void *)i));
	work(0);
	_exit(0);
}

static void await_progress(void)
{
	long before[MOST];

	for (int i = 0; i < (is("threads") ? MOST : 1); i++) {
		before[i] = counters[i];
		while (counters[i] == before[i])
			rest(2);
	}
}

int main(int argc, char **argv)
{
	int status, by;
	siginfo_t info;

	begin(argv);
	CHECK(argc == 3);
	mode = argv[2];
	by = is("by_terminal") ? SIGTSTP : SIGSTOP;
	counters = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	signal(SIGCHLD, tell);
	pid_t pid = fork();

	if (!pid)
		child();
	await_progress();
	CHECK(!kill(pid, by));
	CHECK(!waitid(P_PID, pid, &info, WSTOPPED | (is("told") ? 0 : WNOWAIT)));
	SAME(info.si_status, by);
	if (is("pending"))
		CHECK(!kill(pid, SIGUSR1));
	int before = told;
	long first = counters[0];

	ready();
	await_go();
	SAME(counters[0], first);
	SAME(counters[MOST], 0);
	SAME(told, before);
	if (is("told"))
		SAME(waitpid(pid, &status, WUNTRACED | WNOHANG), 0);
	else {
		SAME(waitpid(pid, &status, WUNTRACED | WNOHANG), pid);
		CHECK(WIFSTOPPED(status));
		SAME(WSTOPSIG(status), by);
	}
	CHECK(!kill(pid, SIGCONT));
	SAME(waitpid(pid, &status, WCONTINUED), pid);
	CHECK(WIFCONTINUED(status));
	await_progress();
	SAME(counters[MOST], is("pending"));
	CHECK(!kill(pid, SIGKILL) && waitpid(pid, &status, 0) == pid);
	good();
	return 0;
}
