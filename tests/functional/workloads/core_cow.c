/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that parent and children have not written since the fork is one, after the restore too:
 * the sum of their proportional shares is what one of them has, not four times as much.
 */
#include "core_base.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define SIZE (32UL << 20)
#define CHILDREN 3

static unsigned char *area;

static long pss_kib(void)
{
	char line[512], want[64];
	FILE *file = fopen("/proc/self/smaps", "r");
	int inside = 0;
	long size = 0, value;
	unsigned long from, to;

	snprintf(want, sizeof(want), "x");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2 && strchr(line, '-') < strchr(line, ' '))
			inside = from >= (unsigned long)area && to <= (unsigned long)area + SIZE;
		if (inside && sscanf(line, "Pss: %ld kB", &value) == 1)
			size += value;
	}
	fclose(file);
	return size;
}

static void check(int number)
{
	for (size_t i = 0; i < SIZE; i += 4096) {
		size_t page = i / 4096;
		uint64_t want = number && page % 64 == (size_t)number ? page * 1000 + number : page;

		if (*(uint64_t *)(area + i) != want)
			bad("task %d: page %zu is %llu, was %llu", number, page,
			    (unsigned long long)*(uint64_t *)(area + i), (unsigned long long)want);
	}
}

int main(int argc, char **argv)
{
	begin(argv);
	area = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(area != MAP_FAILED && madvise(area, SIZE, MADV_NOHUGEPAGE) == 0);
	for (size_t i = 0; i < SIZE; i += 4096)
		*(uint64_t *)(area + i) = i / 4096;
	int ends[2], back[2], last[2];

	CHECK(pipe(ends) == 0 && pipe(back) == 0 && pipe(last) == 0);
	for (int number = 1; number <= CHILDREN; number++) {
		pid_t child = fork();

		if (child)
			continue;
		/* one page of 64 is its own */
		for (size_t page = number; page < SIZE / 4096; page += 64)
			*(uint64_t *)(area + page * 4096) = page * 1000 + number;
		CHECK(write(back[1], "r", 1) == 1);
		char c;

		CHECK(read(ends[0], &c, 1) == 1);
		check(number);
		long size = pss_kib();

		CHECK(write(back[1], &size, sizeof(size)) == sizeof(size));
		CHECK(read(last[0], &c, 1) == 1);
		_exit(0);
	}
	char c[CHILDREN];

	for (int i = 0; i < CHILDREN; i++)
		CHECK(read(back[0], c + i, 1) == 1);
	ready();
	await_go();
	check(0);
	CHECK(write(ends[1], "ggg", CHILDREN) == CHILDREN);
	long sum = pss_kib(), one;

	for (int i = 0; i < CHILDREN; i++) {
		CHECK(read(back[0], &one, sizeof(one)) == sizeof(one));
		sum += one;
	}
	CHECK(write(last[1], "eee", CHILDREN) == CHILDREN);
	while (wait(NULL) > 0)
		;
	/* one whole copy and three times a 64th, and what the readings of a moving share are off */
	if (sum > (long)(SIZE >> 10) * 5 / 4)
		bad("the four have %ld KiB of memory, not about %lu", sum, SIZE >> 10);
	good();
	return 0;
}
