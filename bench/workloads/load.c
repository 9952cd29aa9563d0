/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load KIND N: a workload of the benches. sleeper; tree N (processes); threads N; memory N (MiB of
 * 4 KiB pages, all touched with incompressible data). Prints "ready" and sleeps.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
	puts("ready");
	fflush(stdout);
	sleeper(NULL);
}
