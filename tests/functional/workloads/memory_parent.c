// SPDX-License-Identifier: Apache-2.0
/* A parent without children, and much memory: no child may be seen, heard or charged. */
#include "core_base.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define SIZE ((size_t)32 << 20)

static volatile sig_atomic_t heard;

static void hear(int number)
{
	(void)number;
	heard = 1;
}

int main(int argc, char **argv)
{
	struct rusage before, after;
	int ends[2];
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)argc;
	begin(argv);
	CHECK(memory != MAP_FAILED);
	memset(memory, 7, SIZE);
	CHECK(signal(SIGCHLD, hear) != SIG_ERR);
	CHECK(!pipe(ends));
	CHECK(!getrusage(RUSAGE_CHILDREN, &before));
	ready();
	await_go();
	CHECK(!heard);
	CHECK(waitpid(-1, NULL, __WALL) == -1 && errno == ECHILD);
	CHECK(!getrusage(RUSAGE_CHILDREN, &after));
	CHECK(after.ru_maxrss - before.ru_maxrss < 1024);
	CHECK(after.ru_stime.tv_sec == 0 && after.ru_stime.tv_usec < 50000);
	CHECK(after.ru_utime.tv_sec == 0 && after.ru_utime.tv_usec < 10000);
	CHECK(!close(ends[1])); /* nobody else has it open */
	CHECK(read(ends[0], memory, 1) == 0);
	good();
	return 0;
}
