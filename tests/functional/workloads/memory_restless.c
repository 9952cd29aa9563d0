/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that never rests: two threads write pages of their areas, and map, unmap, move, protect
 * and forget them; children are forked that write to copies; one child is a new program all the
 * time (exec). Every page tells what is in it, and is looked at again.
 * Arguments: a seed, and microseconds to rest after each step (0: none).
 */
#include "memory_base.h"
#include <pthread.h>
#include <stdatomic.h>

#define WINDOW ((byte *)0x1000000000)
#define THREADS 2
#define SLOTS 12 /* of each thread */
#define LONG 256UL /* pages of an area at most */
#define STRIDE (2 * LONG * PAGE)
#define EXEC_PAGES 600UL

struct area {
	byte *at; /* NULL: there is none */
	unsigned long pages;
	uint64_t written[LONG]; /* 0: zeros */
	int closed;
};

struct writer {
	pthread_t thread;
	uint32_t state;
	int number;
	uint64_t count;
	struct area areas[SLOTS];
};

static struct writer writers[THREADS];
static atomic_int stop;
static long pause_us;

static uint32_t pick(struct writer *writer, uint32_t below)
{
	writer->state = writer->state * 1664525 + 1013904223;
	return (writer->state >> 8) % below;
}

static uint64_t word(uint64_t seed, unsigned long i)
{
	return seed ? (seed + i) * 0x9E3779B97F4A7C15 : 0;
}

static void write_page(byte *at, uint64_t seed)
{
	uint64_t *words = (uint64_t *)at;

	for (unsigned long i = 0; i < PAGE / 8; i++)
		words[i] = word(seed, i);
}

static void check_page(const char *who, const byte *at, uint64_t seed)
{
	const uint64_t *words = (const uint64_t *)at;

	for (unsigned long i = 0; i < PAGE / 8; i++)
		if (words[i] != word(seed, i))
			bad("%s: %p, word %lu is %#lx, not %#lx (of %lu)", who, at, i, words[i],
			    word(seed, i), seed);
}

static void check_area(const char *who, const struct area *area)
{
	if (area->at && !area->closed)
		for (unsigned long i = 0; i < area->pages; i++)
			check_page(who, area->at + i * PAGE, area->written[i]);
}

static byte *place(const struct writer *writer, int slot)
{
	return WINDOW + (unsigned long)(writer->number * SLOTS + slot) * STRIDE;
}

static void open_area(struct area *area)
{
	if (area->closed)
		CHECK(mprotect(area->at, area->pages * PAGE, RW) == 0);
	area->closed = 0;
}

static void make(struct writer *writer, int slot)
{
	struct area *area = &writer->areas[slot];

	*area = (struct area){ .pages = 16 + pick(writer, LONG - 15) };
	area->at = place(writer, slot) + pick(writer, LONG) * PAGE;
	map_at(area->at, area->pages * PAGE, RW, ANON, -1, 0);
	if (!pick(writer, 4))
		madvise(area->at, area->pages * PAGE, MADV_HUGEPAGE);
}

static void lengthen(struct writer *writer, struct area *area, int slot)
{
	unsigned long pages = 16 + pick(writer, LONG - 15);
	byte *to = place(writer, slot) + (pick(writer, 2) ? LONG * PAGE : 0);

	if (to < area->at + area->pages * PAGE && area->at < to + pages * PAGE)
		to = area->at; /* where it is */
	if (to == area->at)
		CHECK(mremap(to, area->pages * PAGE, pages * PAGE, 0) == to);
	else
		CHECK(mremap(area->at, area->pages * PAGE, pages * PAGE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	for (unsigned long i = area->pages; i < pages; i++)
		area->written[i] = 0;
	area->at = to;
	area->pages = pages;
}

static void fork_one(struct writer *writer, const struct area *area)
{
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		check_area("a fork's child", area);
		for (int i = 0; i < 20; i++)
			write_page(area->at + pick(writer, area->pages) * PAGE, 7);
		_exit(0);
	}
	ended_well(child);
}

static void step(struct writer *writer)
{
	int slot = pick(writer, SLOTS), what = pick(writer, 100);
	struct area *area = &writer->areas[slot];
	unsigned long page, pages;

	if (!area->at) {
		make(writer, slot);
		return;
	}
	open_area(area);
	page = pick(writer, area->pages);
	if (what < 82) {
		area->written[page] = ++writer->count;
		write_page(area->at + page * PAGE, area->written[page]);
	} else if (what < 88) {
		check_page("running", area->at + page * PAGE, area->written[page]);
	} else if (what < 91) {
		pages = 1 + pick(writer, area->pages - page);
		CHECK(madvise(area->at + page * PAGE, pages * PAGE, MADV_DONTNEED) == 0);
		memset(area->written + page, 0, pages * sizeof(uint64_t));
	} else if (what < 93) {
		CHECK(munmap(area->at, area->pages * PAGE) == 0);
		area->at = NULL;
	} else if (what < 96) {
		lengthen(writer, area, slot);
	} else if (what < 99) {
		CHECK(mprotect(area->at, area->pages * PAGE, pick(writer, 2) ? PROT_NONE :
									       PROT_READ) == 0);
		area->closed = 1;
	} else if (!pick(writer, 10)) {
		fork_one(writer, area);
	}
}

static void *run(void *argument)
{
	struct writer *writer = argument;

	while (!stop) {
		step(writer);
		if (pause_us)
			usleep(pause_us);
	}
	for (int i = 0; i < SLOTS; i++) {
		open_area(&writer->areas[i]);
		check_area("at the end", &writer->areas[i]);
	}
	return NULL;
}

/* A program that fills its memory, looks at it, and starts anew in its place. */
static void renew(char **argv, uint64_t seed)
{
	char text[32];
	byte *at = mmap(WINDOW, EXEC_PAGES * PAGE, RW, ANON | MAP_FIXED, -1, 0);

	CHECK(at == WINDOW);
	for (unsigned long i = 0; i < EXEC_PAGES; i++)
		write_page(at + i * PAGE, seed + i);
	for (int round = 0; round < 3; round++) {
		usleep(10000);
		for (unsigned long i = 0; i < EXEC_PAGES; i++)
			check_page("a program", at + i * PAGE, seed + i);
		if (asked())
			_exit(0);
	}
	snprintf(text, sizeof(text), "%lu", seed + 1000);
	execl("/proc/self/exe", argv[0], argv[1], "renew", text, NULL);
	bad("no exec: %d", errno);
}

int main(int argc, char **argv)
{
	begin(argv);
	CHECK(argc > 3);
	if (!strcmp(argv[2], "renew"))
		renew(argv, strtoul(argv[3], NULL, 10));
	pause_us = atol(argv[3]);
	pid_t child = fork();

	if (child == 0)
		renew(argv, 1);
	for (int i = 0; i < THREADS; i++) {
		writers[i].number = i;
		writers[i].state = atoi(argv[2]) * 1000 + i;
		for (int slot = 0; slot < SLOTS; slot++)
			make(&writers[i], slot);
		for (int j = 0; j < 20000; j++)
			step(&writers[i]);
		CHECK(pthread_create(&writers[i].thread, NULL, run, &writers[i]) == 0);
	}
	ready();
	await_go();
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(writers[i].thread, NULL) == 0);
	ended_well(child);
	good();
	return 0;
}
