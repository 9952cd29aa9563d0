/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread blocked in one system call: core_blocked FOLDER CALL. The call must not return before
 * it has a reason to, least of all with EINTR, and must then return what it is to return.
 */
#include "core_base.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

static int ends[2], pair[2], word, event;
static pid_t child;
static volatile int may_return, returned;

static void wake_pipe(void)
{
	CHECK(write(ends[1], "x", 1) == 1);
}

static void wake_futex(void)
{
	__atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
	CHECK(syscall(SYS_futex, &word, FUTEX_WAKE, 1, NULL, NULL, 0) == 1);
}

static void wake_event(void)
{
	uint64_t one = 1;

	CHECK(write(event, &one, 8) == 8);
}

static void wake_nothing(void)
{
}

static void wake_socket(void)
{
	CHECK(write(pair[1], "x", 1) == 1);
}

static void wake_child(void)
{
	CHECK(kill(child, SIGTERM) == 0);
}

static void wake_full(void)
{
	static char room[1 << 16];

	CHECK(read(ends[0], room, sizeof(room)) == sizeof(room));
}

static void wake_signal(void)
{
	CHECK(kill(getpid(), SIGUSR1) == 0);
}

static void read_pipe(void)
{
	char c;

	SAME(read(ends[0], &c, 1), 1);
}

static void write_full(void)
{
	SAME(write(ends[1], "x", 1), 1);
}

static void poll_ever(void)
{
	struct pollfd one = { .fd = ends[0], .events = POLLIN };

	SAME(poll(&one, 1, -1), 1);
}

static void poll_long(void)
{
	struct pollfd one = { .fd = ends[0], .events = POLLIN };

	SAME(poll(&one, 1, 3600 * 1000), 1);
}

static void ppoll_ever(void)
{
	struct pollfd one = { .fd = ends[0], .events = POLLIN };
	sigset_t mask;

	sigfillset(&mask);
	SAME(ppoll(&one, 1, NULL, &mask), 1);
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	CHECK(!sigismember(&mask, SIGUSR2)); /* the mask of before the call is back */
}

static void select_ever(void)
{
	fd_set set;

	FD_ZERO(&set);
	FD_SET(ends[0], &set);
	SAME(select(ends[0] + 1, &set, NULL, NULL, NULL), 1);
}

static void epoll_ever(void)
{
	struct epoll_event one = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 };
	int watch = epoll_create1(0);

	CHECK(epoll_ctl(watch, EPOLL_CTL_ADD, event, &one) == 0);
	one.data.u64 = 0;
	SAME(epoll_wait(watch, &one, 1, -1), 1);
	CHECK(one.data.u64 == 0x1122334455667788);
}

static void epoll_long(void)
{
	struct epoll_event one = { .events = EPOLLIN };
	int watch = epoll_create1(0);

	CHECK(epoll_ctl(watch, EPOLL_CTL_ADD, event, &one) == 0);
	SAME(epoll_wait(watch, &one, 1, 3600 * 1000), 1);
}

static void futex_ever(void)
{
	SAME(syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0), 0);
}

static void futex_long(void)
{
	struct timespec hour = { 3600, 0 };

	SAME(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &hour, NULL, 0), 0);
}

/* These two come to their end by the clock: not before it, and not an hour late. */
static void sleep_some(clockid_t clock, int flags)
{
	struct timespec begin, end, left = { 6, 0 };

	clock_gettime(clock, &begin);
	if (flags)
		left.tv_sec += begin.tv_sec, left.tv_nsec = begin.tv_nsec;
	may_return = 1; /* by the clock */
	SAME(clock_nanosleep(clock, flags, &left, NULL), 0);
	clock_gettime(clock, &end);
	double took = end.tv_sec - begin.tv_sec + (end.tv_nsec - begin.tv_nsec) / 1e9;

	if (took < 5.99 || took > 20)
		bad("slept %f s instead of 6", took);
}

static void sleep_relative(void)
{
	sleep_some(CLOCK_MONOTONIC, 0);
}

static void sleep_absolute(void)
{
	sleep_some(CLOCK_MONOTONIC, TIMER_ABSTIME);
}

static void receive(void)
{
	char c;

	SAME(recv(pair[0], &c, 1, 0), 1);
}

static void receive_timed(void)
{
	struct timeval hour = { 3600, 0 };
	char c;

	CHECK(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof(hour)) == 0);
	SAME(recv(pair[0], &c, 1, 0), 1);
}

static struct sockaddr_un address = { .sun_family = AF_UNIX };

static void accept_one(void)
{
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);

	CHECK(bind(listener, (void *)&address, sizeof(address)) == 0 && listen(listener, 5) == 0);
	CHECK(accept(listener, NULL, NULL) >= 0);
}

static void wake_accept(void)
{
	int client = socket(AF_UNIX, SOCK_STREAM, 0);

	CHECK(connect(client, (void *)&address, sizeof(address)) == 0);
}

static void wait_child(void)
{
	int status;

	SAME(waitpid(child, &status, 0), child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

static void wait_signal(void)
{
	sigset_t set;
	siginfo_t info;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	SAME(sigwaitinfo(&set, &info), SIGUSR1);
	SAME(info.si_pid, getpid());
}

static void wait_signal_timed(void)
{
	sigset_t set;
	struct timespec hour = { 3600, 0 };

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	SAME(sigtimedwait(&set, NULL, &hour), SIGUSR1);
}

static void handled(int number)
{
	(void)number;
}

static void suspended(void)
{
	sigset_t set, now;

	sigfillset(&set);
	sigdelset(&set, SIGUSR1);
	SAME(sigsuspend(&set), -1);
	SAME(errno, EINTR); /* its only way to return */
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	CHECK(sigismember(&now, SIGUSR1) && !sigismember(&now, SIGUSR2));
}

static void read_event(void)
{
	uint64_t value;

	SAME(read(event, &value, 8), 8);
	SAME(value, 1);
}

static const struct {
	const char *name;
	void (*call)(void), (*wake)(void);
} calls[] = {
	{ "read", read_pipe, wake_pipe },
	{ "write", write_full, wake_full },
	{ "poll", poll_ever, wake_pipe },
	{ "poll_timed", poll_long, wake_pipe },
	{ "ppoll", ppoll_ever, wake_pipe },
	{ "select", select_ever, wake_pipe },
	{ "epoll_wait", epoll_ever, wake_event },
	{ "epoll_wait_timed", epoll_long, wake_event },
	{ "futex", futex_ever, wake_futex },
	{ "futex_timed", futex_long, wake_futex },
	{ "nanosleep", sleep_relative, wake_nothing },
	{ "nanosleep_absolute", sleep_absolute, wake_nothing },
	{ "recv", receive, wake_socket },
	{ "recv_timed", receive_timed, wake_socket },
	{ "accept", accept_one, wake_accept },
	{ "wait4", wait_child, wake_child },
	{ "sigwaitinfo", wait_signal, wake_signal },
	{ "sigtimedwait", wait_signal_timed, wake_signal },
	{ "sigsuspend", suspended, wake_signal },
	{ "read_eventfd", read_event, wake_event },
};

static void *body(void *index)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	calls[(long)index].call();
	if (!may_return)
		bad("%s has returned before it had a reason", calls[(long)index].name);
	returned = 1;
	return NULL;
}

int main(int argc, char **argv)
{
	static char full[1 << 16];
	pthread_t thread;
	sigset_t set;
	long i = 0;

	begin(argv);
	while (strcmp(calls[i].name, argv[2]))
		CHECK(++i < (long)(sizeof(calls) / sizeof(calls[0])));
	CHECK(pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	event = eventfd(0, 0);
	if (!strcmp(argv[2], "write"))
		CHECK(write(ends[1], full, sizeof(full)) == sizeof(full));
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", folder);
	signal(SIGUSR1, handled);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (calls[i].call == wait_child) {
		child = fork();
		if (!child)
			for (;;)
				pause();
	}
	CHECK(pthread_create(&thread, NULL, body, (void *)i) == 0);
	rest(200);
	ready();
	await_go();
	may_return = 1;
	calls[i].wake();
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(returned);
	good();
	return 0;
}
