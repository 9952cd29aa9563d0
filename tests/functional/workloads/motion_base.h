/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workloads that never stand still. Each worker (a process or a thread) has a counter on a board
 * that the test sees, and ticks for every round whose outcome it has checked; one that is stuck is
 * seen by that. They run until board->stop, which main sets when it is asked.
 */
#ifndef MOTION_BASE_H
#define MOTION_BASE_H

#include "core_base.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PLACES 62

struct board {
	volatile uint64_t workers;
	volatile uint64_t stop;
	volatile uint64_t ticks[PLACES];
};

typedef void (*work)(int number);

static struct board *board;
static pid_t worker_pids[PLACES];

__attribute__((unused)) static int going(void)
{
	return !board->stop;
}

__attribute__((unused)) static void tick(int number)
{
	__atomic_add_fetch(&board->ticks[number], 1, __ATOMIC_RELAXED);
}

__attribute__((unused)) static void open_board(char **argv)
{
	char path[4096];

	begin(argv);
	snprintf(path, sizeof(path), "%s/board", folder);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	CHECK(fd >= 0 && ftruncate(fd, sizeof(*board)) == 0);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(board != MAP_FAILED && close(fd) == 0);
}

/* Somebody has told already what is wrong. */
__attribute__((unused)) static int complained(void)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/result", folder);
	return access(path, F_OK) == 0;
}

__attribute__((unused)) static void ended_with(pid_t pid, int code)
{
	int status = 0;
	pid_t got = waitpid(pid, &status, 0);

	SAME(got, pid);
	if (complained())
		_exit(1);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != code)
		bad("pid %d has status %#x, not exit code %d", pid, status, code);
}

/* So many processes that work until they are told to stop. */
__attribute__((unused)) static void start_workers(int count, work body)
{
	int first = board->workers;

	for (int i = first; i < first + count; i++) {
		worker_pids[i] = fork();
		CHECK(worker_pids[i] >= 0);
		if (worker_pids[i] == 0) {
			body(i);
			_exit(0);
		}
	}
	board->workers = first + count;
}

struct thread_start {
	work body;
	int number;
};

__attribute__((unused)) static void *thread_body(void *argument)
{
	struct thread_start start = *(struct thread_start *)argument;

	free(argument);
	start.body(start.number);
	return NULL;
}

__attribute__((unused)) static pthread_t start_thread(int number, work body)
{
	struct thread_start *start = malloc(sizeof(*start));
	pthread_t thread;

	*start = (struct thread_start){ body, number };
	CHECK(pthread_create(&thread, NULL, thread_body, start) == 0);
	return thread;
}

__attribute__((unused)) static void end_workers(void)
{
	board->stop = 1;
	for (int i = 0; i < PLACES; i++)
		if (worker_pids[i])
			ended_with(worker_pids[i], 0);
}

__attribute__((unused)) static void finish(void)
{
	ready();
	await_go();
	end_workers();
	good();
}

struct mode {
	const char *name;
	void (*run)(void);
};

__attribute__((unused)) static int run_mode(char **argv, const struct mode *modes)
{
	open_board(argv);
	for (; modes->name; modes++)
		if (!strcmp(modes->name, argv[2])) {
			modes->run();
			return 0;
		}
	bad("no mode %s", argv[2]);
}
#endif
