// SPDX-License-Identifier: Apache-2.0
/* SIGTRAP handled, ignored, or pending; it can be lost to whoever steps a task. */
#include "core_base.h"
#include <pthread.h>
#include <signal.h>

static volatile sig_atomic_t trapped, value;
static sigset_t traps;
static volatile int queued;

static void on_trap(int signal, siginfo_t *info, void *context)
{
	(void)context;
	trapped += signal == SIGTRAP;
	value = info->si_value.sival_int;
}

static void *with_one(void *unused)
{
	(void)unused;
	CHECK(!pthread_sigqueue(pthread_self(), SIGTRAP, (union sigval){ 41 }));
	queued = 1;
	await_go();
	siginfo_t info;

	CHECK(sigwaitinfo(&traps, &info) == SIGTRAP);
	SAME(info.si_value.sival_int, 41);
	return NULL;
}

static void pending(void)
{
	pthread_t thread;
	sigset_t now;

	CHECK(!pthread_create(&thread, NULL, with_one, NULL));
	while (!queued)
		rest(1);
	CHECK(!sigqueue(getpid(), SIGTRAP, (union sigval){ 42 }));
	ready();
	await_go();
	CHECK(!sigpending(&now) && sigismember(&now, SIGTRAP));
	CHECK(!pthread_join(thread, NULL));
	CHECK(!trapped);
	CHECK(!pthread_sigmask(SIG_UNBLOCK, &traps, NULL));
	SAME(trapped, 1);
	SAME(value, 42);
}

int main(int argc, char **argv)
{
	begin(argv);
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO }, now;
	int ignored = argc > 2 && !strcmp(argv[2], "ignored");

	if (ignored)
		CHECK(signal(SIGTRAP, SIG_IGN) != SIG_ERR);
	else
		CHECK(!sigaction(SIGTRAP, &action, NULL));
	sigaddset(&traps, SIGTRAP);
	if (argc > 2 && !strcmp(argv[2], "pending")) {
		CHECK(!pthread_sigmask(SIG_BLOCK, &traps, NULL));
		pending();
		good();
		return 0;
	}
	ready();
	await_go();
	CHECK(!sigaction(SIGTRAP, NULL, &now));
	CHECK(ignored ? now.sa_handler == SIG_IGN : now.sa_sigaction == on_trap);
	CHECK(!raise(SIGTRAP));
	SAME(trapped, !ignored);
	good();
	return 0;
}
