/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hog MIB small|huge WORDS: a workload with so much incompressible memory that keeps the longest
 * time it did not run. WORDS is a file of three numbers: the longest gap in nanoseconds that a
 * thread has seen which looks at the clock all the time; a request, which is answered by 0; and how
 * long a fork took, when the request was 1. It prints "ready" and stays.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HUGE ((size_t)2 << 20)

static volatile uint64_t *words;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void *look_at_the_clock(void *unused)
{
	uint64_t last = now();

	(void)unused;
	for (;;) {
		uint64_t time = now();

		if (time - last > words[0])
			words[0] = time - last;
		last = time;
	}
	return NULL;
}

static void measure_fork(void)
{
	uint64_t begin = now();
	pid_t child = fork();

	if (!child)
		_exit(0);
	words[2] = now() - begin;
	waitpid(child, NULL, 0);
}

int main(int argc, char **argv)
{
	size_t size = argc > 3 ? (size_t)atol(argv[1]) << 20 : 0;
	int fd = argc > 3 ? open(argv[3], O_RDWR) : -1;
	uint64_t *memory;
	pthread_t thread;
	char *raw;

	words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	raw = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (words == MAP_FAILED || raw == MAP_FAILED)
		abort();
	close(fd);
	memory = (uint64_t *)(((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1));
	madvise(memory, size, strcmp(argv[2], "huge") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	for (size_t i = 0; i < size / 8; i++)
		memory[i] = i * 0x9e3779b97f4a7c15ULL + 1;
	pthread_create(&thread, NULL, look_at_the_clock, NULL);
	puts("ready");
	fflush(stdout);
	for (;;) {
		usleep(1000);
		if (words[1] == 1)
			measure_fork();
		words[1] = 0;
	}
}
