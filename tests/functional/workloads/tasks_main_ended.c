/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A main thread that has ended while other threads live: of a child or of the root, with another
 * user than its threads, with children, stopped by a signal; memory, descriptors and signals are
 * there as before, and its parent is told of its end as the kernel would have told it.
 */
#include "core_base.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define THREADS 3
#define WORDS 262144
#define CODE 7
#define LAST 5

static volatile struct {
	int up, handled, other, asked, told;
	long beats[THREADS];
} *shared;
static const char *mode;
static uint32_t *words;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int woken, pipes[2];
static pid_t child;

static int is(const char *name)
{
	return strcmp(mode, name) == 0;
}

static void count_up(int signal)
{
	(void)signal;
	__atomic_add_fetch(&shared->handled, 1, __ATOMIC_SEQ_CST);
}

static void other(int signal)
{
	(void)signal;
	shared->other++;
}

static void fill(void)
{
	words = mmap(0, WORDS * sizeof(*words), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(words != MAP_FAILED);
	for (uint32_t i = 0; i < WORDS; i++)
		words[i] = i * 2654435761u;
	CHECK(!pipe(pipes) && write(pipes[1], "kept", 4) == 4);
}

static void check_filled(void)
{
	char text[5] = { 0 };

	for (uint32_t i = 0; i < WORDS; i++)
		SAME(words[i], i * 2654435761u);
	CHECK(read(pipes[0], text, 4) == 4 && !strcmp(text, "kept"));
}

static void *sleeper(void *nothing)
{
	prctl(PR_SET_NAME, "sleeper");
	__atomic_add_fetch(&shared->up, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_lock(&mutex);
	while (!woken)
		pthread_cond_wait(&condition, &mutex);
	pthread_mutex_unlock(&mutex);
	return nothing;
}

static void *beater(void *nothing)
{
	prctl(PR_SET_NAME, "beater");
	__atomic_add_fetch(&shared->up, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		shared->beats[0]++;
		rest(5);
	}
	return nothing;
}

static void main_is_over(void)
{
	char path[64], text[512] = { 0 };

	snprintf(path, sizeof(path), "/proc/%d/stat", getpid());
	do {
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		CHECK(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && !close(fd));
	} while (strrchr(text, ')')[2] != 'Z');
}

/* A child that is told when its parent ends, which its main thread's end was not. */
static void have_children(void)
{
	pid_t dead;

	child = fork();
	if (!child) {
		signal(SIGUSR2, other);
		CHECK(!prctl(PR_SET_PDEATHSIG, SIGUSR2));
		__atomic_add_fetch(&shared->up, 1, __ATOMIC_SEQ_CST);
		for (;;)
			rest(5);
	}
	dead = fork();
	if (!dead)
		_exit(9);
	siginfo_t info;
	CHECK(!waitid(P_PID, dead, &info, WEXITED | WNOWAIT));
}

static void check_children(void)
{
	int status;

	SAME(shared->other, 0);
	CHECK(!kill(child, SIGKILL) && waitpid(child, &status, 0) == child);
	SAME(status, SIGKILL);
	CHECK(wait(&status) > 0);
	SAME(status, 9 << 8);
	CHECK(wait(&status) < 0);
}

/* The thread that stands for the process: it checks all, and lets the process end. */
static void *keeper(void *nothing)
{
	pthread_t *sleeping = nothing;

	prctl(PR_SET_NAME, "keeper");
	main_is_over();
	if (is("children"))
		have_children();
	__atomic_add_fetch(&shared->up, 1, __ATOMIC_SEQ_CST);
	if (getppid() != 1 && shared->told)
		while (!shared->asked)
			rest(10);
	else {
		while (shared->up < THREADS)
			rest(2);
		ready();
		await_go();
	}
	check_filled();
	if (is("children"))
		check_children();
	pthread_mutex_lock(&mutex);
	woken = 1;
	pthread_cond_signal(&condition);
	pthread_mutex_unlock(&mutex);
	CHECK(!pthread_join(*sleeping, 0));
	if (!shared->told) {
		CHECK(!raise(SIGUSR1) && !kill(getpid(), SIGUSR1));
		while (shared->handled < 2)
			rest(2);
		good();
	}
	if (is("last_thread"))
		syscall(SYS_exit, 3);
	_exit(LAST);
	return nothing;
}

__attribute__((noreturn)) static void live(void)
{
	static pthread_t threads[THREADS];

	signal(SIGUSR1, count_up);
	fill();
	prctl(PR_SET_NAME, "has ended");
	CHECK(!pthread_create(&threads[0], 0, sleeper, 0));
	if (!is("last_thread"))
		CHECK(!pthread_create(&threads[1], 0, beater, 0));
	else
		__atomic_add_fetch(&shared->up, 1, __ATOMIC_SEQ_CST);
	CHECK(!pthread_create(&threads[2], 0, keeper, &threads[0]));
	if (is("user")) { /* of this thread alone */
		CHECK(!setpriority(PRIO_PROCESS, 0, 7));
		CHECK(!syscall(SYS_setgroups, 2, (gid_t[]){ 5, 6 }));
		CHECK(!syscall(SYS_setresgid, 33, 33, 33));
		CHECK(!syscall(SYS_setresuid, 33, 33, 33));
	}
	if (is("mask")) {
		sigset_t some;

		sigemptyset(&some);
		sigaddset(&some, SIGWINCH);
		sigaddset(&some, SIGUSR1);
		CHECK(!sigprocmask(SIG_BLOCK, &some, 0));
	}
	syscall(SYS_exit, CODE);
	__builtin_unreachable();
}

static void await_beat(void)
{
	long before = shared->beats[0];

	while (shared->beats[0] == before)
		rest(2);
}

int main(int argc, char **argv)
{
	int status, pidfd;
	siginfo_t info;

	begin(argv);
	CHECK(argc == 3);
	mode = argv[2];
	shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (is("root"))
		live();
	shared->told = 1;
	pid_t pid = fork();
	if (!pid)
		live();
	while (shared->up < THREADS + is("children"))
		rest(2);
	pidfd = syscall(SYS_pidfd_open, pid, 0);
	CHECK(pidfd >= 0);
	if (is("stopped"))
		CHECK(!kill(pid, SIGSTOP) && waitpid(pid, &status, WUNTRACED) == pid);
	ready();
	await_go();

	struct pollfd one = { .fd = pidfd, .events = POLLIN };
	CHECK(poll(&one, 1, 0) == 0);
	info.si_pid = 0;
	CHECK(!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT));
	SAME(info.si_pid, 0);
	if (is("stopped"))
		CHECK(!kill(pid, SIGCONT));
	if (!is("last_thread"))
		await_beat();
	CHECK(!kill(pid, SIGUSR1));
	while (!shared->handled)
		rest(2);
	shared->asked = 1;
	CHECK(poll(&one, 1, 10000) == 1);
	CHECK(waitpid(pid, &status, 0) == pid);
	/* by the last thread's exit since Linux 5.17 or so, by the main one's before */
	if (is("last_thread"))
		CHECK(status == 3 << 8 || status == CODE << 8);
	else
		SAME(status, LAST << 8);
	good();
	return 0;
}
