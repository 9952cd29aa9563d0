/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handlers with flags and masks, an alternative stack, signals pending in the task's and in the
 * thread's queue with their values, ignored ones, interval timers and POSIX timers.
 */
#include "core_base.h"
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

static volatile int seen[200], values[200], codes[200], count;
static void *volatile stack_at;
static char stack[65536];

static void handler(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (count < 200) {
		seen[count] = number;
		values[count] = info->si_value.sival_int;
		codes[count] = info->si_code;
	}
	count++;
	stack_at = __builtin_frame_address(0);
}

static void queue(int number, int value)
{
	union sigval v = { .sival_int = value };

	CHECK(sigqueue(getpid(), number, v) == 0);
}

static void queue_thread(int number, int value)
{
	siginfo_t info = { .si_signo = number, .si_code = SI_QUEUE };

	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_int = value;
	CHECK(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), number, &info) == 0);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler,
				    .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	stack_t alternative = { .ss_sp = stack, .ss_size = sizeof(stack) }, now;
	sigset_t mask, pending;

	begin(argv);
	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGHUP);
	for (int number = SIGRTMIN; number <= SIGRTMIN + 4; number++)
		CHECK(sigaction(number, &action, NULL) == 0);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	signal(SIGUSR2, SIG_IGN);
	CHECK(sigaltstack(&alternative, NULL) == 0);
	sigfillset(&mask);
	sigdelset(&mask, SIGTERM);
	CHECK(sigprocmask(SIG_SETMASK, &mask, NULL) == 0);
	for (int i = 0; i < 10; i++)
		queue(SIGRTMIN + i % 3, 100 + i);
	for (int i = 0; i < 5; i++)
		queue_thread(SIGRTMIN + 3, 200 + i);
	kill(getpid(), SIGUSR1);

	struct itimerval real = { { 0, 0 }, { 5000, 0 } }, left;
	struct itimerval prof = { { 3, 250000 }, { 4000, 0 } };

	CHECK(setitimer(ITIMER_REAL, &real, NULL) == 0 && setitimer(ITIMER_PROF, &prof, NULL) == 0);
	timer_t timers[4];

	for (int i = 0; i < 4; i++) {
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 4,
					  .sigev_value.sival_int = 300 + i };
		struct itimerspec when = { { i, 500 }, { 6000 + i, 0 } };

		if (i == 3)
			event.sigev_notify = SIGEV_NONE;
		CHECK(timer_create(i == 2 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &event, timers + i) == 0);
		if (i != 1)
			CHECK(timer_settime(timers[i], 0, &when, NULL) == 0);
	}
	CHECK(timer_delete(timers[0]) == 0); /* a gap in the numbers */

	ready();
	while (!asked())
		rest(10);

	CHECK(sigpending(&pending) == 0);
	for (int i = 0; i <= 3; i++)
		CHECK(sigismember(&pending, SIGRTMIN + i));
	CHECK(sigismember(&pending, SIGUSR1) && !sigismember(&pending, SIGUSR2));
	CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == stack && now.ss_size == sizeof(stack));
	for (int number = SIGRTMIN; number <= SIGRTMIN + 4; number++) {
		struct sigaction old;

		CHECK(sigaction(number, NULL, &old) == 0 && old.sa_sigaction == handler);
		SAME(old.sa_flags & ~0x04000000, action.sa_flags);
		CHECK(sigismember(&old.sa_mask, SIGHUP) == 1 && sigismember(&old.sa_mask, SIGINT) == 0);
	}
	CHECK(getitimer(ITIMER_REAL, &left) == 0);
	CHECK(left.it_value.tv_sec > 4900 && left.it_value.tv_sec <= 5000 && !left.it_interval.tv_sec);
	CHECK(getitimer(ITIMER_PROF, &left) == 0 && left.it_value.tv_sec > 3900);
	SAME(left.it_interval.tv_sec, 3);
	CHECK(left.it_interval.tv_usec >= 250000 && left.it_interval.tv_usec < 260000);
	for (int i = 1; i < 4; i++) {
		struct itimerspec is;

		CHECK(timer_gettime(timers[i], &is) == 0);
		if (i == 1) {
			CHECK(!is.it_value.tv_sec && !is.it_value.tv_nsec);
			continue;
		}
		CHECK(is.it_value.tv_sec > 5900 && is.it_value.tv_sec <= 6000 + i);
		CHECK(is.it_interval.tv_sec == i && is.it_interval.tv_nsec == 500);
	}
	struct itimerspec soon = { { 0, 0 }, { 0, 1000 } };

	CHECK(timer_settime(timers[1], 0, &soon, NULL) == 0);
	rest(50);
	sigemptyset(&mask);
	CHECK(sigprocmask(SIG_SETMASK, &mask, NULL) == 0);
	SAME(count, 17);
	/* the kernel takes the thread's queue first, then by number, and in order within a number */
	int next[6] = { 100, 101, 102, 200, 301, 0 };

	for (int i = 0; i < count; i++) {
		int kind = seen[i] - SIGRTMIN;

		if (seen[i] == SIGUSR1) {
			SAME(codes[i], SI_USER);
			continue;
		}
		CHECK(kind >= 0 && kind <= 4);
		SAME(values[i], next[kind]);
		SAME(codes[i], kind == 4 ? SI_TIMER : SI_QUEUE);
		next[kind] += kind < 3 ? 3 : 1;
	}
	CHECK((char *)stack_at > stack && (char *)stack_at < stack + sizeof(stack));
	good();
	return 0;
}
