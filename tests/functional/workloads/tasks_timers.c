/* SPDX-License-Identifier: Apache-2.0 */
/* POSIX timers of every clock and way to notify, and interval timers; ids and values are kept. */
#include "core_base.h"

#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

#ifndef CLOCK_TAI
#define CLOCK_TAI 11
#endif
#define HOUR 3600
#define MOST 32

struct one {
	int id, clock, notify;
	struct itimerspec was;
};

static const char *mode;
static struct one timers[MOST];
static int count;
static int other_tid;
static volatile int got, got_other, value_of;

static int is(const char *name)
{
	return strcmp(mode, name) == 0;
}

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)context;
	(void)signal;
	value_of = info->si_value.sival_int;
	if (syscall(SYS_gettid) == other_tid)
		got_other++;
	else
		got++;
}

static int make(int clock, int notify, int tid, int value)
{
	struct sigevent event = { .sigev_notify = notify, .sigev_signo = SIGRTMIN + 3 };
	int id;

	event.sigev_value.sival_int = value;
	event._sigev_un._tid = tid;
	if (syscall(SYS_timer_create, clock, &event, &id) < 0)
		return -1;
	return id;
}

static void arm(int id, long first, long interval)
{
	struct itimerspec spec = { { interval, 0 }, { first, 500 } };

	CHECK(!syscall(SYS_timer_settime, id, 0, &spec, 0));
}

static void keep(int clock, int notify, int tid, long first, long interval)
{
	int id = make(clock, notify, tid, 1000 + count);

	if (id < 0) /* no alarm clock on this machine */
		return;
	if (first)
		arm(id, first, interval);
	timers[count].id = id;
	CHECK(!syscall(SYS_timer_gettime, id, &timers[count].was));
	count++;
}

static void *other(void *nothing)
{
	other_tid = syscall(SYS_gettid);
	for (;;)
		rest(5);
	return nothing;
}

static void every_kind(void)
{
	static const int clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI,
				      CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID,
				      CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM };
	clockid_t of_process;

	for (unsigned i = 0; i < sizeof(clocks) / sizeof(clocks[0]); i++) {
		keep(clocks[i], SIGEV_SIGNAL, 0, HOUR, 7);
		if (i % 2) { /* leave a gap in the ids */
			int gap = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);

			CHECK(gap >= 0 && !syscall(SYS_timer_delete, gap));
		}
		keep(clocks[i], SIGEV_NONE, 0, 2 * HOUR, 0);
		keep(clocks[i], SIGEV_THREAD_ID, other_tid, 0, 0);
	}
	CHECK(!clock_getcpuclockid(getpid(), &of_process));
	keep(of_process, SIGEV_SIGNAL, 0, HOUR, 1);
}

static void same(void)
{
	struct itimerspec now;

	for (int i = 0; i < count; i++) {
		struct itimerspec *was = &timers[i].was;

		CHECK(!syscall(SYS_timer_gettime, timers[i].id, &now));
		SAME(now.it_interval.tv_sec, was->it_interval.tv_sec);
		CHECK((now.it_value.tv_sec || now.it_value.tv_nsec) ==
		      (was->it_value.tv_sec || was->it_value.tv_nsec));
		CHECK(now.it_value.tv_sec <= was->it_value.tv_sec);
		CHECK(now.it_value.tv_sec >= was->it_value.tv_sec - 600);
	}
}

static void await(volatile int *what, int more)
{
	int first = *what;

	while (*what < first + more)
		rest(2);
}

static void interval_timers(int check)
{
	static const int which[] = { ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF };
	struct itimerval value = { { 5, 250 }, { HOUR, 0 } };

	for (int i = 0; i < 3; i++) {
		if (!check) {
			CHECK(!setitimer(which[i], &value, 0));
			continue;
		}
		CHECK(!getitimer(which[i], &value));
		SAME(value.it_interval.tv_sec, 5);
		SAME(value.it_interval.tv_usec, 250);
		CHECK(value.it_value.tv_sec > HOUR - 600 && value.it_value.tv_sec <= HOUR);
	}
}

static void periodic(int id)
{
	struct itimerspec spec = { { 0, 3000000 }, { 0, 1000000 } };

	CHECK(!syscall(SYS_timer_settime, id, 0, &spec, 0));
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigset_t set;
	siginfo_t info;
	pthread_t thread;
	int id = 0;

	begin(argv);
	CHECK(argc == 3);
	mode = argv[2];
	CHECK(!sigaction(SIGRTMIN + 3, &action, 0));
	CHECK(!pthread_create(&thread, 0, other, 0));
	while (!other_tid)
		rest(1);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	if (is("kinds"))
		every_kind();
	else if (is("intervals"))
		interval_timers(0);
	else if (is("overrun")) {
		CHECK(!pthread_sigmask(SIG_BLOCK, &set, 0));
		id = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, syscall(SYS_gettid), 77);
		periodic(id);
		rest(50);
	} else if (is("once")) {
		CHECK(!pthread_sigmask(SIG_BLOCK, &set, 0));
		id = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, syscall(SYS_gettid), 78);
		struct itimerspec spec = { { 0, 0 }, { 0, 1000000 } };

		CHECK(!syscall(SYS_timer_settime, id, 0, &spec, 0));
		rest(30);
	} else if (is("periodic") || is("periodic_other")) {
		id = make(is("periodic") ? CLOCK_MONOTONIC : CLOCK_REALTIME, SIGEV_THREAD_ID,
			  is("periodic") ? syscall(SYS_gettid) : other_tid, 79);
		periodic(id);
		await(is("periodic") ? &got : &got_other, 3);
	} else
		bad("no such mode");
	ready();
	while (!asked())
		rest(10);
	if (is("kinds"))
		same();
	else if (is("intervals"))
		interval_timers(1);
	else if (is("overrun")) {
		rest(50); /* overruns are counted from the restore on */
		CHECK(sigwaitinfo(&set, &info) == SIGRTMIN + 3);
		SAME(info.si_code, SI_TIMER);
		SAME(info.si_value.sival_int, 77);
		CHECK(info.si_overrun > 0);
		CHECK(sigwaitinfo(&set, &info) == SIGRTMIN + 3);
		SAME(info.si_value.sival_int, 77);
		SAME(info.si_timerid, id);
	} else if (is("once")) {
		struct timespec none = { 0, 0 };

		CHECK(sigtimedwait(&set, &info, &none) == SIGRTMIN + 3);
		SAME(info.si_value.sival_int, 78);
		rest(20);
		CHECK(sigtimedwait(&set, &info, &none) < 0 && errno == EAGAIN);
	} else {
		volatile int *what = is("periodic") ? &got : &got_other;

		await(what, 3);
		SAME(value_of, 79);
	}
	good();
	return 0;
}
