/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writer MIB PERCENT HUGE: memory of incompressible data, of which so many percent of the pages are
 * written each second, chosen by chance; in huge pages if HUGE is 1. Prints "ready" first.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define HUGE_PAGE (2ul << 20)
#define BURST 5000 /* pages owed at most: what a stop held back is not made up for */

static uint64_t state = 1;

static uint64_t chance(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t *make(size_t size, int huge)
{
	char *at = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *words;

	at = (char *)(((uintptr_t)at + HUGE_PAGE - 1) & -HUGE_PAGE);
	madvise(at, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	words = (uint64_t *)at;
	for (size_t i = 0; i < size / 8; i++)
		words[i] = chance();
	return words;
}

int main(int argc, char **argv)
{
	size_t size = argc > 3 ? strtoul(argv[1], NULL, 10) << 20 : 0, pages = size / PAGE;
	double rate = argc > 3 ? (double)pages * atof(argv[2]) / 100 : 0, begin;
	uint64_t *words = size ? make(size, atoi(argv[3])) : NULL;
	size_t done = 0;

	printf("ready\n");
	fflush(stdout);
	for (begin = now();; usleep(1000)) {
		size_t due = (size_t)((now() - begin) * rate);

		if (due > done + BURST)
			done = due - BURST;
		for (; done < due; done++)
			words[chance() % pages * (PAGE / 8)]++;
	}
}
