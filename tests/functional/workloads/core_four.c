/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Four busy tasks, each of which counts in its own memory and, for the test to see, in shared
 * memory; a tick that is lost or done twice by any of them is told at once.
 *
 *   0 sleeps between its ticks   1 only computes, in two threads   2 asks 3 through pipes
 */
#include "core_base.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>

#define TASKS 4

static volatile uint64_t *seen;
static uint64_t ticks;
static __thread uint64_t own;

static void tick(int task)
{
	if (seen[task] != ticks)
		bad("task %d has %llu ticks, and is seen to have %llu", task,
		    (unsigned long long)ticks, (unsigned long long)seen[task]);
	seen[task] = ++ticks;
}

static volatile sig_atomic_t alarms;

static void alarmed(int number)
{
	(void)number;
	alarms++;
}

static void sleeper(void)
{
	struct itimerval every = { { 0, 3000 }, { 0, 3000 } };
	struct sigaction action = { .sa_handler = alarmed, .sa_flags = SA_RESTART };

	CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &every, NULL) == 0);
	for (;;) {
		struct timespec left = { 0, 700000 };

		while (nanosleep(&left, &left))
			CHECK(errno == EINTR);
		tick(0);
	}
}

static void *compute(void *unused)
{
	for (;;) {
		uint64_t sum = 0, n = ++own;

		for (volatile uint64_t i = 0; i < 20000; i++)
			sum += n;
		CHECK(sum == n * 20000 && own == n);
		if (unused)
			tick(1);
		if (n % 8 == 0)
			usleep(2000); /* leaves the machine some time */
	}
	return NULL;
}

static void asker(int to, int from)
{
	for (uint64_t answer;;) {
		struct pollfd one = { .fd = from, .events = POLLIN };

		CHECK(write(to, &ticks, 8) == 8);
		SAME(poll(&one, 1, -1), 1);
		CHECK(read(from, &answer, 8) == 8);
		SAME(answer, ticks + 1000000);
		tick(2);
		usleep(100);
	}
}

static void answerer(int to, int from)
{
	for (uint64_t question;;) {
		SAME(read(from, &question, 8), 8);
		SAME(question, ticks);
		tick(3);
		question += 1000000;
		CHECK(write(to, &question, 8) == 8);
	}
}

int main(int argc, char **argv)
{
	int there[2], back[2];
	char path[4096];
	pthread_t thread;

	begin(argv);
	snprintf(path, sizeof(path), "%s/ticks", folder);
	int fd = open(path, O_RDWR | O_CREAT, 0600);

	CHECK(ftruncate(fd, 4096) == 0 && pipe(there) == 0 && pipe(back) == 0);
	seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(seen != MAP_FAILED);
	if (!fork()) {
		CHECK(pthread_create(&thread, NULL, compute, NULL) == 0);
		compute(&thread);
	}
	if (!fork())
		asker(there[1], back[0]);
	if (!fork())
		answerer(back[1], there[0]);
	ready();
	sleeper();
	return 0;
}
