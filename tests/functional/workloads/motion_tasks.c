/* SPDX-License-Identifier: Apache-2.0 */
/* Processes and threads that come and go all the time, of all the ways there are. */
#include "motion_base.h"
#include <sched.h>
#include <semaphore.h>
#include <spawn.h>

extern char **environ;
static char *self[6];

static void waits(int number)
{
	for (int i = 0; going(); i++) {
		pid_t parent = getpid(), child = fork();

		CHECK(child >= 0);
		if (child == 0) {
			pid_t between = getpid(), grandchild = fork();

			if (grandchild == 0)
				_exit(getppid() == between ? i & 31 : 98);
			ended_with(grandchild, i & 31);
			_exit(getppid() == parent ? i & 63 : 99);
		}
		ended_with(child, i & 63);
		tick(number);
	}
}

static void orphans(int number)
{
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
	pid_t reaper = getpid();

	while (going()) {
		int statuses = 0;
		pid_t child = fork();

		if (child == 0) {
			pid_t parent = getpid();

			if (fork() == 0) {
				while (getppid() == parent)
					sched_yield();
				_exit(getppid() == reaper ? 2 : 50);
			}
			_exit(1);
		}
		for (int i = 0; i < 2; i++) {
			int status;
			pid_t got = wait(&status);

			CHECK(got > 0 && WIFEXITED(status));
			SAME(WEXITSTATUS(status), got == child ? 1 : 2);
			statuses += WEXITSTATUS(status);
		}
		SAME(statuses, 3);
		tick(number);
	}
}

static void vforks(int number)
{
	while (going()) {
		pid_t child = vfork();

		if (child == 0) {
			execv(self[0], self);
			_exit(98);
		}
		ended_with(child, 7);
		tick(number);
	}
}

/* Most of the time a parent waits. */
static long vfork_ns = 30000000;

static void slow_vforks(int number)
{
	while (going()) {
		pid_t child = vfork();

		if (child == 0) {
			struct timespec some = { 0, vfork_ns };

			syscall(SYS_nanosleep, &some, NULL);
			execv(self[0], self);
			_exit(98);
		}
		ended_with(child, 7);
		tick(number);
	}
}

static void spawns(int number)
{
	while (going()) {
		pid_t child;

		SAME(posix_spawn(&child, self[0], NULL, NULL, self, environ), 0);
		ended_with(child, 7);
		tick(number);
	}
}

/* One program after the other in one task: what is in its pipe and its number tell the count. */
static void execs(int number, long count)
{
	char text[32], places[32];
	long seen = -1;

	if (count == 0) {
		int ends[2];

		CHECK(pipe(ends) == 0 && dup2(ends[0], 100) == 100 && dup2(ends[1], 101) == 101);
		CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
	} else {
		SAME(read(100, &seen, sizeof(seen)), sizeof(seen));
		SAME(seen, count);
	}
	tick(number);
	if (!going())
		_exit(0);
	count++;
	SAME(write(101, &count, sizeof(count)), sizeof(count));
	snprintf(text, sizeof(text), "%ld", count);
	snprintf(places, sizeof(places), "%d", number);
	execl(self[0], self[0], folder, "exec", text, places, NULL);
	bad("no exec: %d", errno);
}

static void start_execs(int number)
{
	execs(number, 0);
}

static void *plus_one(void *value)
{
	return (void *)((long)value + 1);
}

static void joins(int number)
{
	for (long i = 0; going(); i++) {
		pthread_t threads[4];

		for (long j = 0; j < 4; j++)
			SAME(pthread_create(threads + j, NULL, plus_one, (void *)(i + j)), 0);
		for (long j = 0; j < 4; j++) {
			void *value;

			SAME(pthread_join(threads[j], &value), 0);
			SAME((long)value, i + j + 1);
		}
		tick(number);
	}
}

static sem_t room;
static volatile long begun, over;

static void *short_life(void *unused)
{
	__atomic_add_fetch(&over, 1, __ATOMIC_SEQ_CST);
	sem_post(&room);
	return unused;
}

static void bomb(int number)
{
	pthread_attr_t attributes;

	CHECK(pthread_attr_init(&attributes) == 0 && sem_init(&room, 0, 16) == 0);
	CHECK(pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0);
	CHECK(pthread_attr_setstacksize(&attributes, 64 << 10) == 0);
	while (going()) {
		pthread_t thread;

		CHECK(sem_wait(&room) == 0);
		int error = pthread_create(&thread, &attributes, short_life, NULL);

		SAME(error, 0);
		begun++;
		tick(number);
	}
	for (int i = 0; i < 16; i++)
		CHECK(sem_wait(&room) == 0);
	SAME(over, begun);
}

static void sessions(int number)
{
	while (going()) {
		pid_t child = fork();

		if (child == 0) {
			CHECK(setsid() == getpid());
			pid_t inner = fork();

			if (inner == 0) {
				CHECK(setpgid(0, 0) == 0);
				_exit(getpgrp() == getpid() && getsid(0) == getppid() ? 3 : 60);
			}
			ended_with(inner, 3);
			_exit(getsid(0) == getpid() ? 4 : 61);
		}
		ended_with(child, 4);
		tick(number);
	}
}

static volatile sig_atomic_t reaped, wrong;

static void reap(int signal)
{
	int status, saved = errno;

	(void)signal;
	while (waitpid(-1, &status, WNOHANG) > 0) {
		reaped++;
		wrong |= !WIFEXITED(status) || WEXITSTATUS(status) != 9;
	}
	errno = saved;
}

static void handler(int number)
{
	struct sigaction action = { .sa_handler = reap, .sa_flags = SA_NOCLDSTOP | SA_RESTART };
	sigset_t blocked, before;

	CHECK(sigaction(SIGCHLD, &action, NULL) == 0);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	CHECK(sigprocmask(SIG_BLOCK, &blocked, &before) == 0);
	while (going()) {
		reaped = 0;
		for (int i = 0; i < 5; i++)
			if (fork() == 0)
				_exit(9);
		while (reaped < 5) {
			SAME(sigsuspend(&before), -1);
			SAME(errno, EINTR);
		}
		SAME(reaped, 5);
		SAME(wrong, 0);
		tick(number);
	}
}

/* Killed and stopped children, and what their parent is told of them. */
static void kills(int number)
{
	while (going()) {
		pid_t child = fork();
		siginfo_t told = { 0 };

		if (child == 0)
			for (;;)
				pause();
		CHECK(kill(child, SIGSTOP) == 0);
		CHECK(waitid(P_PID, child, &told, WSTOPPED) == 0);
		SAME(told.si_code, CLD_STOPPED);
		CHECK(kill(child, SIGCONT) == 0); /* a wait for that is lost by a restore */
		CHECK(kill(child, SIGTERM) == 0);
		CHECK(waitid(P_PID, child, &told, WEXITED | WNOWAIT) == 0);
		SAME(told.si_code, CLD_KILLED);
		SAME(told.si_status, SIGTERM);
		memset(&told, 0, sizeof(told));
		CHECK(waitid(P_PID, child, &told, WEXITED) == 0);
		SAME(told.si_pid, child);
		tick(number);
	}
}

#define PROCESSES(name, body)          \
	static void run_##name(void)   \
	{                              \
		start_workers(2, body); \
		finish();              \
	}
PROCESSES(waits, waits)
PROCESSES(orphans, orphans)
PROCESSES(vforks, vforks)
PROCESSES(slow_vforks, slow_vforks)
static void run_long_vforks(void)
{
	vfork_ns = 999999999;
	run_slow_vforks();
}
PROCESSES(spawns, spawns)
PROCESSES(execs, start_execs)
PROCESSES(joins, joins)
PROCESSES(bomb, bomb)
PROCESSES(sessions, sessions)
PROCESSES(handler, handler)
PROCESSES(kills, kills)

int main(int argc, char **argv)
{
	static char path[4096];
	static const struct mode modes[] = {
		{ "waits", run_waits },	      { "orphans", run_orphans }, { "vforks", run_vforks },
		{ "slow_vforks", run_slow_vforks },
		{ "long_vforks", run_long_vforks },
		{ "spawns", run_spawns },     { "execs", run_execs },	  { "joins", run_joins },
		{ "bomb", run_bomb },	      { "sessions", run_sessions },
		{ "handler", run_handler }, { "kills", run_kills },	  { NULL, NULL },
	};

	if (argc > 2 && !strcmp(argv[2], "exit"))
		return 7;
	CHECK(readlink("/proc/self/exe", path, sizeof(path) - 1) > 0);
	self[0] = path, self[1] = argv[1], self[2] = "exit";
	if (argc > 4 && !strcmp(argv[2], "exec")) {
		open_board(argv);
		execs(atoi(argv[4]), atol(argv[3]));
	}
	return run_mode(argv, modes);
}
