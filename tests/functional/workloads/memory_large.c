/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random private areas of many megabytes in a window of its own: whole, with holes, of any
 * protection and advice, and a child that has changed some of it. The seed is the second
 * argument; the test compares every byte.
 */
#include "memory_base.h"

#define WINDOW ((byte *)0x1000000000)
#define WINDOW_PAGES (48 * 512UL)

static uint32_t state;

static uint32_t pick(uint32_t below)
{
	state = state * 1664525 + 1013904223;
	return (state >> 8) % below;
}

static void fill_pages(byte *at, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		for (size_t j = 0; j < PAGE; j += 512)
			*(uint32_t *)(at + i * PAGE + j) = state = state * 1664525 + 1013904223;
}

static void place(void)
{
	const int prots[] = { RW, RW, RW, RW, PROT_READ, PROT_NONE, PROT_WRITE, RW | PROT_EXEC };
	const int advices[] = { MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_NORMAL, MADV_NORMAL };
	size_t pages = 256 + pick(6 * 512), at = pick(WINDOW_PAGES - pages);
	byte *start = WINDOW + at * PAGE;
	int advice = advices[pick(4)];

	if (pick(2))
		start = (byte *)((uintptr_t)start & ~(512 * PAGE - 1));
	map_at(start, pages * PAGE, RW, ANON | (pick(4) ? 0 : MAP_NORESERVE), -1, 0);
	madvise(start, pages * PAGE, advice);
	if (pick(8))
		fill_pages(start, pages);
	for (int holes = pick(3); holes; holes--)
		madvise(start + pick(pages - 16) * PAGE, (1 + pick(16)) * PAGE, MADV_DONTNEED);
	CHECK(mprotect(start, pages * PAGE, prots[pick(8)]) == 0);
}

static void change(void)
{
	byte *at = WINDOW + pick(WINDOW_PAGES - 1024) * PAGE;

	if (!mprotect(at, PAGE, RW))
		fill_pages(at, 1);
	if (!pick(4))
		munmap(at, (1 + pick(700)) * PAGE);
}

int main(int argc, char **argv)
{
	int ends[2];
	char done;

	begin(argv);
	CHECK(argc > 2);
	state = atoi(argv[2]) * 2654435761u + 1;
	for (int i = 0; i < 12; i++)
		place();
	for (int i = 0; i < 6; i++)
		change();
	CHECK(pipe(ends) == 0);
	if (pick(2)) {
		if (!fork()) {
			for (int i = 0; i < 12; i++)
				change();
			place();
			CHECK(write(ends[1], "x", 1) == 1);
			for (;;)
				pause();
		}
		CHECK(read(ends[0], &done, 1) == 1);
	}
	close(ends[0]);
	close(ends[1]);
	ready();
	await_go();
	good();
	return 0;
}
