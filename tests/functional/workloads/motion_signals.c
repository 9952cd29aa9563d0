/* SPDX-License-Identifier: Apache-2.0 */
/* Signals and timers that never cease: none is lost, repeated or out of order. */
#include "motion_base.h"
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	CHECK(clock_gettime(clock, &now) == 0);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	sigfillset(&action.sa_mask);
	CHECK(sigaction(number, &action, NULL) == 0);
}

/* Two processes that queue real-time signals with numbers to each other, in a window. */
static volatile sig_atomic_t received, answered, out_of_order;
static pid_t peer;

static void on_queued(int number, siginfo_t *info, void *context)
{
	union sigval value = { .sival_int = info->si_value.sival_int };
	int saved = errno;

	(void)number, (void)context;
	if (info->si_value.sival_int != received || info->si_code != SI_QUEUE ||
	    info->si_pid != peer)
		out_of_order = 1 + info->si_value.sival_int;
	received++;
	if (sigqueue(peer, SIGRTMIN + 1, value) && errno != ESRCH)
		out_of_order = -errno;
	errno = saved;
}

static void on_answer(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	if (info->si_value.sival_int != answered)
		out_of_order = -1000000 - info->si_value.sival_int;
	answered++;
}

static void on_wake(int number, siginfo_t *info, void *context)
{
	(void)number, (void)info, (void)context;
}

static void queues(int number)
{
	sigset_t all, before;
	union sigval value = { 0 };

	sigfillset(&all);
	CHECK(sigprocmask(SIG_BLOCK, &all, &before) == 0);
	handle(SIGRTMIN, on_queued, 0);
	handle(SIGRTMIN + 1, on_answer, 0);
	handle(SIGRTMIN + 2, on_wake, 0);
	board->ticks[40 + number] = getpid();
	while (!board->ticks[41 - number])
		usleep(1000);
	peer = (pid_t)board->ticks[41 - number];
	board->ticks[42 + number] = 1;
	while (!board->ticks[43 - number])
		usleep(1000);
	while (going()) {
		while (value.sival_int - answered < 30) {
			CHECK(sigqueue(peer, SIGRTMIN, value) == 0);
			value.sival_int++;
		}
		while (value.sival_int - answered > 10 && going()) {
			SAME(sigsuspend(&before), -1);
			SAME(errno, EINTR);
		}
		SAME(out_of_order, 0);
		tick(number);
	}
	/* the other may still ask, and wait for an answer */
	board->ticks[44 + number] = 1;
	while (!board->ticks[45 - number]) {
		kill(peer, SIGRTMIN + 2);
		CHECK(sigprocmask(SIG_SETMASK, &before, NULL) == 0);
		usleep(1000);
	}
	usleep(50000);
}

static void run_queues(void)
{
	start_workers(2, queues);
	finish();
}

/* Threads that signal one another in turn, on alternate stacks, with floating point in between. */
static volatile pid_t tids[4];
static volatile int turn;
static volatile uint64_t turns;

static void on_turn(int number, siginfo_t *info, void *context)
{
	volatile double x = info->si_pid;
	char here;

	(void)number, (void)context;
	x = x * 3 / 3;
	stack_t stack;

	if (sigaltstack(NULL, &stack) || !(stack.ss_flags & SS_ONSTACK) ||
	    &here < (char *)stack.ss_sp || &here > (char *)stack.ss_sp + stack.ss_size)
		bad("the handler is not on the alternate stack");
	SAME(info->si_code, SI_TKILL);
	SAME(syscall(SYS_gettid), tids[turn]);
	turns++;
	turn = (turn + 1) % 4;
}

static void in_turn(int number)
{
	static pthread_barrier_t all;
	static volatile int made;
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
	volatile double sum = 0;
	int mine = number % 8;

	if (mine == 0) {
		pthread_barrier_init(&all, NULL, 4);
		made = 1;
	}
	while (!made)
		usleep(100);
	CHECK(sigaltstack(&stack, NULL) == 0);
	tids[mine] = syscall(SYS_gettid);
	pthread_barrier_wait(&all);
	double expected = 0;

	while (going()) {
		for (int i = 0; i < 100; i++) {
			sum += 0.5;
			expected += 0.5;
		}
		if (sum != expected)
			bad("sums differ: %f %f", sum, expected);
		if (mine == turn) {
			uint64_t before = turns;
			int other = tids[mine];

			SAME(syscall(SYS_tgkill, getpid(), other, SIGUSR1), 0);
			while (turns == before && going())
				;
			tick(number);
		}
	}
}

static void turn_taker(int number)
{
	pthread_t threads[3];

	handle(SIGUSR1, on_turn, SA_ONSTACK | SA_RESTART);
	for (int i = 0; i < 3; i++)
		threads[i] = start_thread(number + 1 + i, in_turn);
	in_turn(number);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

static void run_turns(void)
{
	start_workers(1, turn_taker);
	board->workers = 4;
	finish();
}

/* Timers of 1 kHz: ticks and overruns together are the time that has passed, of their clock. */
static volatile uint64_t expired;

static void on_timer(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	expired += 1 + (info->si_code == SI_TIMER ? info->si_overrun : 0);
}

static void posix_timer(int number)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3 };
	struct itimerspec period = { { 0, 1000000 }, { 0, 1000000 } };
	timer_t timer;

	handle(SIGRTMIN + 3, on_timer, SA_RESTART);
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
	CHECK(timer_settime(timer, 0, &period, NULL) == 0);
	while (going()) {
		uint64_t before = expired;
		struct timespec little = { 0, 3000000 };

		while (expired - before < 3)
			nanosleep(&little, NULL);
		if (expired - before > 20000)
			bad("%llu at once", (unsigned long long)(expired - before));
		tick(number);
	}
}

static void interval_timer(int number)
{
	struct itimerval period = { { 0, 1000 }, { 0, 1000 } };

	handle(SIGALRM, on_timer, SA_RESTART);
	handle(SIGVTALRM, on_timer, SA_RESTART);
	CHECK(setitimer(number % 2 ? ITIMER_REAL : ITIMER_VIRTUAL, &period, NULL) == 0);
	while (going()) {
		uint64_t before = expired;

		while (expired - before < 3)
			;
		tick(number);
	}
}

static void timer_of_descriptor(int number)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec period = { { 0, 1000000 }, { 0, 1000000 } };

	CHECK(fd >= 0 && timerfd_settime(fd, 0, &period, NULL) == 0);
	while (going()) {
		uint64_t count;

		SAME(read(fd, &count, sizeof(count)), sizeof(count));
		CHECK(count > 0 && count < 20000);
		tick(number);
	}
}

static void sleeper(int number)
{
	while (going()) {
		uint64_t begun = now_ns(CLOCK_MONOTONIC);
		struct timespec length = { 0, 2000000 }, until;

		SAME(clock_nanosleep(CLOCK_MONOTONIC, 0, &length, NULL), 0);
		CHECK(now_ns(CLOCK_MONOTONIC) - begun >= 2000000);
		CHECK(clock_gettime(CLOCK_REALTIME, &until) == 0);
		until.tv_nsec += 1000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		SAME(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL), 0);
		CHECK(now_ns(CLOCK_REALTIME) >= until.tv_sec * 1000000000ull + until.tv_nsec);
		tick(number);
	}
}

static void run_timers(void)
{
	start_workers(2, posix_timer);
	start_workers(2, interval_timer);
	start_workers(1, timer_of_descriptor);
	start_workers(2, sleeper);
	finish();
}

/* Descriptors that tell of events; the other task makes these. */
static int event_fd, answer_fd;

static void eventfds(int number)
{
	for (uint64_t i = 1; going(); i++) {
		uint64_t word = i % 1000 + 1;

		if (number == 0)
			SAME(write(event_fd, &word, sizeof(word)), sizeof(word));
		SAME(read(number ? event_fd : answer_fd, &word, sizeof(word)), sizeof(word));
		if (number && going())
			SAME(write(answer_fd, &word, sizeof(word)), sizeof(word));
		if (going())
			SAME(word, i % 1000 + 1);
		tick(number);
	}
	uint64_t word = 1;

	SAME(write(number ? answer_fd : event_fd, &word, sizeof(word)), sizeof(word));
}

static void run_eventfds(void)
{
	event_fd = eventfd(0, 0);
	answer_fd = eventfd(0, 0);
	start_workers(2, eventfds);
	finish();
}

/* One epoll set over pipes, an eventfd, a timerfd and a signalfd, that change all the time. */
static void polled(int number)
{
	int set = epoll_create1(0), event = eventfd(0, EFD_NONBLOCK);
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), ends[2], seen = 0;
	struct itimerspec period = { { 0, 1000000 }, { 0, 1000000 } };
	sigset_t mask;
	uint64_t sent = 0, had = 0;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	CHECK(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
	int signals = signalfd(-1, &mask, SFD_NONBLOCK);

	CHECK(timerfd_settime(timer, 0, &period, NULL) == 0 && pipe2(ends, O_NONBLOCK) == 0);
	int fds[] = { event, timer, signals, ends[0] };

	for (int i = 0; i < 4; i++) {
		struct epoll_event what = { EPOLLIN | (i == 3 ? EPOLLET : 0), { .u64 = i } };

		CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &what) == 0);
	}
	while (going()) {
		struct epoll_event got[4];
		uint64_t word = 1;

		if (sent == had) {
			CHECK(write(event, &word, 8) == 8 && write(ends[1], &sent, 8) == 8);
			CHECK(kill(getpid(), SIGUSR2) == 0);
			sent++;
			seen = 0;
		}
		int count = epoll_wait(set, got, 4, 5000);

		if (count <= 0)
			bad("epoll_wait gives %d (errno %d)", count, errno);
		for (int i = 0; i < count; i++) {
			struct signalfd_siginfo info;

			switch (got[i].data.u64) {
			case 0:
				SAME(read(event, &word, 8), 8);
				SAME(word, 1);
				seen |= 1;
				break;
			case 1:
				CHECK(read(timer, &word, 8) == 8);
				break;
			case 2:
				SAME(read(signals, &info, sizeof(info)), sizeof(info));
				SAME(info.ssi_pid, getpid());
				seen |= 2;
				break;
			case 3:
				if (read(ends[0], &word, 8) == 8) /* an edge may be told twice */
					SAME(word, had);
				seen |= 4;
				break;
			}
		}
		if (seen == 7) {
			had++;
			struct epoll_event what = { EPOLLIN, { .u64 = 0 } };

			CHECK(epoll_ctl(set, EPOLL_CTL_DEL, event, NULL) == 0);
			CHECK(epoll_ctl(set, EPOLL_CTL_ADD, event, &what) == 0);
			tick(number);
			seen = 0;
		}
	}
}

static void run_polled(void)
{
	start_workers(2, polled);
	finish();
}

/* sigwaitinfo and sigtimedwait in one thread, of what the other queues. */
static void waited(int number)
{
	sigset_t mask;
	pid_t child;

	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + 5);
	sigaddset(&mask, SIGCHLD);
	CHECK(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
	pid_t waiter = getpid();

	child = fork();
	if (child == 0) {
		for (int i = 0; going(); i++) {
			union sigval value = { .sival_int = i };

			while (sigqueue(waiter, SIGRTMIN + 5, value)) {
				SAME(errno, EAGAIN);
				usleep(100);
			}
			if (i % 16 == 0)
				usleep(300);
		}
		_exit(5);
	}
	for (int i = 0;;) {
		siginfo_t info;
		struct timespec limit = { 5, 0 };
		int got = i % 2 ? sigwaitinfo(&mask, &info) : sigtimedwait(&mask, &info, &limit);

		if (got == SIGCHLD && (info.si_code == CLD_STOPPED || info.si_code == CLD_CONTINUED))
			continue;
		if (got == SIGCHLD)
			break;
		if (got != SIGRTMIN + 5)
			bad("sigwait gives %d (errno %d)", got, errno);
		SAME(info.si_value.sival_int, i);
		i++;
		tick(number);
	}
	ended_with(child, 5);
}

static void run_waited(void)
{
	start_workers(2, waited);
	finish();
}

/* A directory is watched while files in it come and go; what is queued at a restore may be lost. */
static void watched(int number)
{
	char directory[3000], file[4000];
	struct pollfd told = { inotify_init1(IN_NONBLOCK), POLLIN, 0 };

	snprintf(directory, sizeof(directory), "%s/watched%d", folder, number);
	snprintf(file, sizeof(file), "%s/it", directory);
	CHECK(mkdir(directory, 0700) == 0);
	int watch = inotify_add_watch(told.fd, directory, IN_CREATE | IN_DELETE);

	CHECK(watch == 1);
	while (going()) {
		char room[4096];
		int made = open(file, O_CREAT | O_EXCL | O_WRONLY, 0600);

		CHECK(made >= 0 && close(made) == 0);
		CHECK(unlink(file) == 0);
		int count = poll(&told, 1, 50);

		CHECK(count >= 0);
		if (count) {
			ssize_t got = read(told.fd, room, sizeof(room));

			CHECK(got >= 0 || errno == EAGAIN);
			for (ssize_t at = 0; at < got;) {
				struct inotify_event *event = (void *)(room + at);

				SAME(event->wd, watch);
				SAME(strcmp(event->name, "it"), 0);
				at += sizeof(*event) + event->len;
			}
			tick(number);
		}
	}
}

static void run_watched(void)
{
	start_workers(2, watched);
	finish();
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "queues", run_queues },     { "turns", run_turns },	{ "timers", run_timers },
		{ "eventfds", run_eventfds }, { "polled", run_polled }, { "waited", run_waited },
		{ "watched", run_watched },   { NULL, NULL },
	};

	CHECK(argc > 2);
	return run_mode(argv, modes);
}
