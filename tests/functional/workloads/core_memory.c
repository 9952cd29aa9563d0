/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Areas of every sort with known content: heap and its growth, anonymous, shared anonymous with
 * a child, private and shared file maps, huge stretches with holes, madvise, mlock, protections.
 */
#include "core_base.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define SIZE (64 * PAGE)

static uint32_t seed = 7;

static void fill(unsigned char *at, size_t size, uint32_t from)
{
	for (size_t i = 0; i < size; i++)
		at[i] = (from = from * 1664525 + 1013904223) >> 24;
}

static void compare(const char *name, const unsigned char *at, size_t size, uint32_t from)
{
	for (size_t i = 0; i < size; i++)
		if (at[i] != (unsigned char)((from = from * 1664525 + 1013904223) >> 24))
			bad("%s differs at byte %zu", name, i);
}

static void *map(int prot, int flags, int fd, long offset)
{
	void *at = mmap(NULL, SIZE, prot, flags, fd, offset);

	CHECK(at != MAP_FAILED);
	return at;
}

static int file(const char *name, size_t size)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	static unsigned char content[SIZE]; /* malloc might move the heap's end */

	fill(content, size, 99);
	CHECK(write(fd, content, size) == (ssize_t)size);
	return fd;
}

int main(int argc, char **argv)
{
	begin(argv);
	const int rw = PROT_READ | PROT_WRITE;
	unsigned char *brk_begin = sbrk(0), *heap = sbrk(5 * PAGE);

	CHECK(heap == brk_begin);
	fill(heap, 5 * PAGE, seed);

	unsigned char *plain = map(rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(plain, SIZE, seed + 1);

	/* every third page only, the others never touched */
	unsigned char *holes = map(rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < SIZE; i += 3 * PAGE)
		fill(holes + i, PAGE, seed + i);

	unsigned char *read_only = map(rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(read_only, SIZE, seed + 2);
	CHECK(mprotect(read_only, SIZE, PROT_READ) == 0);
	unsigned char *hidden = map(rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(hidden, SIZE, seed + 3);
	CHECK(mprotect(hidden, SIZE, PROT_NONE) == 0);

	unsigned char *code = map(rw | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */

	int one = file("private", SIZE), two = file("shared", SIZE);
	unsigned char *own = map(rw, MAP_PRIVATE, one, 0);
	fill(own + PAGE, PAGE, seed + 4); /* one page its own, the rest the file's */
	unsigned char *both = map(rw, MAP_SHARED, two, 0);
	fill(both + PAGE, PAGE, seed + 5);
	unsigned char *later = map(PROT_READ, MAP_PRIVATE, one, 0);
	unsigned char *beyond = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, two, 3 * PAGE);

	close(one);
	unsigned char *memfd = map(rw, MAP_SHARED, memfd_create("content", MFD_CLOEXEC), 0);
	(void)memfd; /* mapped, and longer than the file: never touched */
	int sized = memfd_create("sized", 0);
	CHECK(ftruncate(sized, SIZE) == 0);
	unsigned char *in_memory = map(rw, MAP_SHARED, sized, 0);
	fill(in_memory, 3 * PAGE, seed + 6);

	unsigned char *locked = map(rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mlock(locked, 4 * PAGE) == 0);
	fill(locked, SIZE, seed + 7);
	unsigned char *advised = map(rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(madvise(advised, PAGE, MADV_DONTFORK) == 0);
	CHECK(madvise(advised + PAGE, PAGE, MADV_DONTDUMP) == 0);
	CHECK(madvise(advised + 2 * PAGE, PAGE, MADV_WIPEONFORK) == 0);
	CHECK(madvise(advised + 3 * PAGE, PAGE, MADV_SEQUENTIAL) == 0);
	CHECK(madvise(advised + 4 * PAGE, PAGE, MADV_RANDOM) == 0);
	CHECK(madvise(advised + 5 * PAGE, PAGE, MADV_HUGEPAGE) == 0);
	CHECK(madvise(advised + 6 * PAGE, PAGE, MADV_NOHUGEPAGE) == 0);
	fill(advised, SIZE, seed + 8);
	unsigned char *down = mmap(NULL, PAGE, rw,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
	unsigned char *reserved = mmap(NULL, 1UL << 36, rw,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(down != MAP_FAILED && reserved != MAP_FAILED);
	fill(down, PAGE, seed + 9);
	fill(reserved + (1UL << 35), PAGE, seed + 10);
	unsigned char *moved = mremap(map(rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), SIZE, 2 * SIZE,
				      MREMAP_MAYMOVE);
	fill(moved, 2 * SIZE, seed + 11);

	unsigned char *common = map(rw, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fill(common, SIZE, seed + 12);
	pid_t child = fork();

	if (!child) {
		while (!common[SIZE - 1])
			rest(5);
		common[SIZE - 2] = 77;
		_exit(common[0]);
	}
	common[SIZE - 1] = 0;

	ready();
	await_go();

	compare("heap", heap, 5 * PAGE, seed);
	CHECK(sbrk(0) == heap + 5 * PAGE && sbrk(PAGE) == heap + 5 * PAGE);
	memset(heap + 5 * PAGE, 1, PAGE);
	compare("anonymous", plain, SIZE, seed + 1);
	for (size_t i = 0; i < SIZE; i += PAGE) {
		if (i % (3 * PAGE) == 0)
			compare("page between holes", holes + i, PAGE, seed + i);
		else
			CHECK(holes[i] == 0 && holes[i + PAGE - 1] == 0);
	}
	compare("read only", read_only, SIZE, seed + 2);
	CHECK(mprotect(hidden, SIZE, PROT_READ) == 0);
	compare("hidden", hidden, SIZE, seed + 3);
	SAME(((int (*)(void))code)(), 42);
	compare("own page of file", own + PAGE, PAGE, seed + 4);
	compare("page of file", own, PAGE, 99);
	compare("page of file mapped twice", later, SIZE, 99);
	compare("written page of shared file", both + PAGE, PAGE, seed + 5);
	CHECK(pwrite(two, "through", 7, 3 * PAGE) == 7);
	CHECK(!memcmp(both + 3 * PAGE, "through", 7) && !memcmp(beyond, "through", 7));
	compare("memfd", in_memory, 3 * PAGE, seed + 6);
	CHECK(pwrite(sized, "through", 7, 0) == 7 && !memcmp(in_memory, "through", 7));
	compare("locked", locked, SIZE, seed + 7);
	compare("advised", advised, SIZE, seed + 8);
	compare("growing down", down, PAGE, seed + 9);
	compare("reserved", reserved + (1UL << 35), PAGE, seed + 10);
	compare("moved", moved, 2 * SIZE, seed + 11);
	int status, first = common[0];

	common[SIZE - 1] = 1;
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == first && common[SIZE - 2] == 77);
	good();
	return 0;
}
