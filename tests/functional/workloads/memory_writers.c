// SPDX-License-Identifier: Apache-2.0
/*
 * memory_writers FOLDER SEED: threads that write pages of all kinds of areas, drawn by chance, in
 * an order that each repeats lap by lap. At any one instant the pages behind a thread say this lap
 * and those before it the last one: whoever sees pages of two instants is found out, by the thread
 * itself, when it comes by again. Each page is filled with its number and lap.
 */
#define _GNU_SOURCE
#include "core_base.h"

#include <pthread.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define WRITERS 3
#define AREAS 12
#define MOST 1024

struct writer {
	pthread_t thread;
	uint64_t *pages[AREAS * MOST];
	size_t count;
	volatile uint64_t lap;
};

static struct writer writers[WRITERS];
static uint64_t state;
static volatile int ending;

static uint64_t chance(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static char *area(int kind, size_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, fd = -1;
	char path[4200], *at;

	if (kind == 1)
		flags = MAP_SHARED | MAP_ANONYMOUS;
	if (kind == 2) {
		snprintf(path, sizeof(path), "%s/mapped", folder);
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
		CHECK(fd >= 0 && !ftruncate(fd, (off_t)(MOST * PAGE)));
		flags = MAP_PRIVATE;
	}
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	CHECK(at != MAP_FAILED);
	if (fd >= 0)
		close(fd);
	switch (kind) {
	case 3:
		CHECK(!madvise(at, size, MADV_DONTFORK));
		break;
	case 4:
		CHECK(!madvise(at, size, MADV_WIPEONFORK));
		break;
	case 5:
		CHECK(!madvise(at, size, MADV_HUGEPAGE));
		break;
	case 6:
		CHECK(!mlock(at, size));
		break;
	case 7:
		madvise(at, size, MADV_MERGEABLE);
		break;
	default:
		break;
	}
	return at;
}

static void fill(uint64_t *page, size_t number, uint64_t lap)
{
	for (size_t i = 0; i < WORDS; i++)
		page[i] = number << 40 | lap;
}

static void check(const uint64_t *page, size_t number, uint64_t lap)
{
	for (size_t i = 0; i < WORDS; i++)
		SAME(page[i], number << 40 | lap);
}

static void *write_on(void *argument)
{
	struct writer *me = argument;

	for (uint64_t lap = 1; !ending; lap++) {
		for (size_t i = 0; i < me->count; i++) {
			check(me->pages[i], i, lap - 1);
			fill(me->pages[i], i, lap);
		}
		me->lap = lap;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argv);
	state = argc > 2 ? (uint64_t)atol(argv[2]) * 0x9e3779b97f4a7c15ull + 1 : 1;
	for (int i = 0; i < AREAS; i++) {
		size_t pages = 64 + chance(MOST - 64);
		char *at = area(i < 8 ? i : (int)chance(8), pages * PAGE);

		for (size_t page = 0; page < pages; page++) {
			struct writer *one = writers + chance(WRITERS + 1);

			if (one < writers + WRITERS) /* the others stay untouched */
				one->pages[one->count++] = (uint64_t *)(at + page * PAGE);
		}
		if (chance(2)) /* a hole in between */
			CHECK(!munmap(mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
					   -1, 0), PAGE));
	}
	for (int i = 0; i < WRITERS; i++) {
		struct writer *one = writers + i;

		for (size_t page = one->count; page > 1; page--) {
			size_t other = chance(page);
			uint64_t *kept = one->pages[page - 1];

			one->pages[page - 1] = one->pages[other];
			one->pages[other] = kept;
		}
		for (size_t page = 0; page < one->count; page++)
			fill(one->pages[page], page, 0);
		CHECK(!pthread_create(&one->thread, NULL, write_on, one));
	}
	put("ready", "");
	while (!asked())
		rest(5);
	for (int i = 0; i < WRITERS; i++) /* a whole lap of each, seen from here */
		for (uint64_t lap = writers[i].lap; writers[i].lap < lap + 2;)
			rest(1);
	ending = 1;
	for (int i = 0; i < WRITERS; i++)
		CHECK(!pthread_join(writers[i].thread, NULL));
	put("result", "ok");
	return 0;
}
