// SPDX-License-Identifier: Apache-2.0
/* The action of SIGTRAP, handled or ignored; it can be lost to whoever steps a task. */
#include "core_base.h"
#include <signal.h>

static volatile sig_atomic_t trapped;

static void on_trap(int signal)
{
	trapped += signal == SIGTRAP;
}

int main(int argc, char **argv)
{
	begin(argv);
	int ignored = argc > 2 && !strcmp(argv[2], "ignored");

	CHECK(signal(SIGTRAP, ignored ? SIG_IGN : on_trap) != SIG_ERR);
	ready();
	await_go();
	struct sigaction now;

	CHECK(!sigaction(SIGTRAP, 0, &now));
	CHECK(now.sa_handler == (ignored ? SIG_IGN : on_trap));
	CHECK(!raise(SIGTRAP));
	SAME(trapped, !ignored);
	good();
	return 0;
}
