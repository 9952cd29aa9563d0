/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Much memory that is used in every way as soon as `go` is there: read by threads, by system calls,
 * by children, moved, dropped, unmapped, written. What it finds must be what it had.
 */
#include "memory_base.h"
#include <pthread.h>

#define AREA (256UL << 20)
#define PART (32UL << 20)

static byte *area;

static uint64_t word_of(const byte *at)
{
	return (uint64_t)(at - area) * 0x9e3779b97f4a7c15ULL | 1;
}

static void expect(const char *what, const byte *at, const byte *original, size_t size, size_t step)
{
	for (size_t i = 0; i < size; i += step)
		if (*(const uint64_t *)(at + i) != word_of(original + i))
			bad("%s differs at %zx", what, i);
}

static void *read_backwards(void *unused)
{
	(void)unused;
	for (size_t i = 8 * PART; i > 7 * PART; i -= PAGE)
		expect("a page read backwards", area + i - PAGE, area + i - PAGE, 8, 8);
	return NULL;
}

static void by_system_calls(byte *at)
{
	byte there[PAGE];
	int ends[2];

	CHECK(pipe(ends) == 0);
	CHECK(write(ends[1], at, PAGE) == PAGE);
	CHECK(read(ends[0], there, PAGE) == PAGE);
	CHECK(memcmp(there, at, PAGE) == 0);
	expect("a page that was written", there, at, 8, 8);
	CHECK(write(ends[1], there, PAGE) == PAGE);
	CHECK(read(ends[0], at + 4 * PAGE + 8, 100) == 100); /* into the middle of a page */
	expect("the rest of a page", at + 4 * PAGE, at + 4 * PAGE, 8, 8);
	expect("the rest of a page", at + 4 * PAGE + 2048, at + 4 * PAGE + 2048, 8, 8);
	close(ends[0]);
	close(ends[1]);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	byte *moved, *target;
	pid_t child;

	(void)argc;
	begin(argv);
	area = map(AREA, RW, ANON, -1, 0);
	for (size_t i = 0; i < AREA; i += 512)
		*(uint64_t *)(area + i) = word_of(area + i);
	target = map(PART, PROT_NONE, ANON | MAP_NORESERVE, -1, 0); /* so that no stack is there */
	ready();
	await_go();
	CHECK(pthread_create(&thread, NULL, read_backwards, NULL) == 0);
	by_system_calls(area + 6 * PART);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		expect("memory of a child", area, area, AREA, PAGE);
		memset(area, 1, PART);
		exit(0);
	}
	moved = mremap(area + PART, PART, PART, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	CHECK(moved == target);
	CHECK(madvise(area + 2 * PART, PART, MADV_DONTNEED) == 0);
	CHECK(munmap(area + 3 * PART, PART) == 0);
	map_at(area + 3 * PART, PART, RW, ANON, -1, 0);
	expect("moved memory", moved, area + PART, PART, 512);
	for (size_t i = 0; i < 2 * PART; i += PAGE)
		CHECK(*(uint64_t *)(area + 2 * PART + i) == 0);
	memset(area + 4 * PART, 7, 100);
	expect("behind what was written", area + 4 * PART + 512, area + 4 * PART + 512, PART - 512, 512);
	ended_well(child);
	child = vfork();
	if (!child) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	ended_well(child);
	expect("the start", area, area, PART, 512);
	CHECK(pthread_join(thread, NULL) == 0);
	good();
	return 0;
}
