/* SPDX-License-Identifier: Apache-2.0 */
/*
 * answer MIB FILE: fills memory, prints "ready", and at each SIGUSR1 reads a word here and there in
 * it and writes a byte to FILE, or ends when a word is wrong.
 * answer floor MIB: milliseconds that two threads take to copy as much into fresh huge pages.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define WORD 0x9e3779b97f4a7c15ULL
#define READS 64

struct part {
	char *to, *from;
	size_t size;
};

static uint64_t *area(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static uint64_t *filled(size_t size)
{
	uint64_t *words = area(size);

	for (size_t i = 0; i < size / 8; i++)
		words[i] = i * WORD;
	return words;
}

static void *copy(void *argument)
{
	struct part *part = argument;

	memcpy(part->to, part->from, part->size);
	return NULL;
}

static void tell_floor(size_t size)
{
	char *from = (char *)filled(size), *to = (char *)area(size);
	struct part parts[2] = { { to, from, size / 2 }, { to + size / 2, from + size / 2, size / 2 } };
	struct timespec begin, end;
	pthread_t other;

	madvise(to, size, MADV_HUGEPAGE);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	pthread_create(&other, NULL, copy, parts);
	copy(parts + 1);
	pthread_join(other, NULL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.3f\n", (double)(end.tv_sec - begin.tv_sec) * 1e3 +
				 (double)(end.tv_nsec - begin.tv_nsec) / 1e6);
}

int main(int argc, char **argv)
{
	size_t size, words;
	uint64_t *memory;
	sigset_t wanted;
	int signal, file;

	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "floor")) {
		tell_floor((size_t)atol(argv[2]) << 20);
		return 0;
	}
	size = (size_t)atol(argv[1]) << 20;
	words = size / 8;
	memory = filled(size);
	file = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0600);
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGUSR1);
	sigprocmask(SIG_BLOCK, &wanted, NULL);
	puts("ready");
	fflush(stdout);
	for (;;) {
		sigwait(&wanted, &signal);
		for (size_t i = 0; size && i < READS; i++) {
			size_t at = i * (words / READS);

			if (memory[at] != at * WORD)
				abort();
		}
		if (write(file, ".", 1) != 1)
			abort();
	}
}
