/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load KIND N: a workload of the benches. sleeper; tree N (processes); threads N; memory N (MiB of
 * 4 KiB pages, all touched with incompressible data); files N (descriptors of mixed kinds);
 * mappings N (areas, one page touched in each). Prints "ready" and sleeps.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

static void *sleeper(void *unused)
{
	(void)unused;
	for (;;)
		sleep(1000);
	return NULL;
}

static void fork_tree(long count)
{
	for (long i = 1; i < count; i++)
		if (!fork())
			sleeper(NULL);
}

static void make_threads(long count)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (long i = 1; i < count; i++)
		pthread_create(&thread, &attributes, sleeper, NULL);
}

static void touch(long mib)
{
	size_t size = (size_t)mib << 20;
	uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (size_t i = 0; i < size / 8; i++)
		words[i] = i * 0x9e3779b97f4a7c15ULL;
}

/* Eight a round: a file, a timerfd, a pipe that holds a byte, a socket pair, an eventfd, its epoll. */
static void open_files(long count)
{
	struct rlimit most;

	getrlimit(RLIMIT_NOFILE, &most);
	most.rlim_cur = most.rlim_max;
	setrlimit(RLIMIT_NOFILE, &most);
	for (long i = 0; i < count; i += 8) {
		struct epoll_event wanted = { .events = EPOLLIN };
		int ends[2], epoll, event;

		open("/etc/passwd", O_RDONLY);
		timerfd_create(CLOCK_MONOTONIC, 0);
		if (pipe(ends) || write(ends[1], "x", 1) != 1)
			abort();
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
			abort();
		event = eventfd((unsigned int)i, 0);
		epoll = epoll_create1(0);
		epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted);
	}
}

static void map_areas(long count)
{
	for (long i = 0; i < count; i++) {
		char *area = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				  -1, 0);

		*area = (char)i;
		/* neighbours differ, so that they stay areas of their own */
		mprotect(area, 8192, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE);
	}
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "sleeper";
	long count = argc > 2 ? atol(argv[2]) : 0;

	if (!strcmp(kind, "tree"))
		fork_tree(count);
	else if (!strcmp(kind, "threads"))
		make_threads(count);
	else if (!strcmp(kind, "memory"))
		touch(count);
	else if (!strcmp(kind, "files"))
		open_files(count);
	else if (!strcmp(kind, "mappings"))
		map_areas(count);
	puts("ready");
	fflush(stdout);
	sleeper(NULL);
}
