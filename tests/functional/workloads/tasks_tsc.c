/* SPDX-License-Identifier: Apache-2.0 */
/* PR_SET_TSC of two threads, each its own: one may read the time stamp counter, one may not. */
#include "core_base.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <x86intrin.h>

static __thread sigjmp_buf back;

static void faulted(int signal)
{
	siglongjmp(back, signal);
}

static int may_read(void)
{
	if (sigsetjmp(back, 1))
		return 0;
	return __rdtsc() != 0;
}

static void *other(void *nothing)
{
	int mode;

	await_go();
	CHECK(!prctl(PR_GET_TSC, &mode, 0, 0, 0) && mode == PR_TSC_ENABLE && may_read());
	return nothing;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int mode;

	(void)argc;
	begin(argv);
	signal(SIGSEGV, faulted);
	CHECK(!pthread_create(&thread, 0, other, 0));
	CHECK(!prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0) && !may_read());
	ready();
	await_go();
	CHECK(!prctl(PR_GET_TSC, &mode, 0, 0, 0) && mode == PR_TSC_SIGSEGV && !may_read());
	CHECK(!pthread_join(thread, 0));
	good();
	return 0;
}
