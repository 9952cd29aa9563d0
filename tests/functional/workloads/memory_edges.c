/* SPDX-License-Identifier: Apache-2.0 */
/* Address spaces at their limits: huge and sparse, thousands of areas, without vDSO, moved marks. */
#include "memory_base.h"
#include <link.h>
#include <sys/auxv.h>
#include <ucontext.h>

static void sparse(void)
{
	byte *huge = map(1UL << 42, RW, ANON | MAP_NORESERVE, -1, 0);
	byte *none = map(1UL << 43, PROT_NONE, ANON, -1, 0);

	for (int i = 0; i < 40; i++)
		fill(huge + ((unsigned long)i << 36) + i * PAGE, PAGE, i);
	(void)none;
	ready();
	await_go();
	for (int i = 0; i < 40; i++)
		same("far page", huge + ((unsigned long)i << 36) + i * PAGE, PAGE, i);
	CHECK(huge[1UL << 35] == 0);
}

static void areas(void)
{
	enum { COUNT = 16000 };
	byte *at = map(2 * COUNT * PAGE, PROT_READ, ANON, -1, 0);

	for (long i = 0; i < COUNT; i++) {
		CHECK(mprotect(at + 2 * i * PAGE, PAGE, RW) == 0);
		if (i % 4 == 0)
			at[2 * i * PAGE] = i % 251 + 1;
	}
	ready();
	await_go();
	for (long i = 0; i < COUNT; i += 4)
		SAME(at[2 * i * PAGE], i % 251 + 1);
}

static void lowest(void)
{
	byte *at = mmap((void *)PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0), *zero;

	zero = mmap(NULL, PAGE, RW, ANON | MAP_FIXED, -1, 0);
	if (at == MAP_FAILED)
		at = mmap((void *)0x10000, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
	byte *top = mmap((void *)0x7fffffffe000, PAGE, RW, ANON | MAP_FIXED, -1, 0);

	CHECK(at != MAP_FAILED && top != MAP_FAILED);
	fill(at, PAGE, 1);
	fill(top, PAGE, 2);
	if (zero == NULL)
		*(volatile byte *)(zero + 8) = 9;
	ready();
	await_go();
	same("lowest", at, PAGE, 1);
	same("top", top, PAGE, 2);
	if (zero == NULL)
		CHECK(*(volatile byte *)(zero + 8) == 9);
}

static void brk_moved(void)
{
	byte *before = sbrk(0);

	CHECK(sbrk(20 * PAGE) == before);
	fill(before, 20 * PAGE, 1);
	CHECK(sbrk(-15 * (long)PAGE - 100) != (void *)-1);
	byte *now = sbrk(0);

	CHECK(mprotect(before, PAGE, PROT_READ) == 0);
	ready();
	await_go();
	CHECK(sbrk(0) == now);
	same("heap", before, 4 * PAGE, 1);
	CHECK(sbrk(PAGE) == now);
	memset(now, 1, PAGE);
}

static void brk_none(void)
{
	byte *end = sbrk(0);
	/* everything that malloc and stdio have had goes */
	unsigned long start = 0, size = 0;
	char line[300];
	int fd = open("/proc/self/stat", O_RDONLY);
	static char text[2000];

	(void)line;
	(void)size;
	CHECK(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	char *word = strrchr(text, ')');

	for (int field = 2; field < 47; field++)
		word = strchr(word + 1, ' ');
	start = strtoul(word, NULL, 10);
	CHECK(start && brk((void *)start) == 0);
	ready();
	await_go();
	CHECK(sbrk(0) == (void *)start);
	CHECK(brk(end) == 0);
}

/* Without the vDSO's areas. */
static void find_vdso(unsigned long *from, unsigned long *to)
{
	char line[300];
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start, end;

	*from = *to = 0;
	while (fgets(line, sizeof(line), maps)) {
		if (!strstr(line, "[vvar") && !strstr(line, "[vdso]"))
			continue;
		CHECK(sscanf(line, "%lx-%lx", &start, &end) == 2);
		*from = *from ? *from : start;
		*to = end;
	}
	fclose(maps);
}

static void vdso_moved(void)
{
	unsigned long from, to, at = (unsigned long)room(64 * PAGE) + 7 * PAGE;
	char line[300];
	struct {
		unsigned long start, end;
	} parts[4];
	int count = 0;
	FILE *maps = fopen("/proc/self/maps", "r");

	while (fgets(line, sizeof(line), maps))
		if (strstr(line, "[vvar") || strstr(line, "[vdso]"))
			CHECK(sscanf(line, "%lx-%lx", &parts[count].start, &parts[count].end) == 2 &&
			      ++count <= 4);
	fclose(maps);
	find_vdso(&from, &to);
	struct timespec now;

	for (int i = 0; i < count; i++) {
		size_t size = parts[i].end - parts[i].start;

		/* glibc would jump to the old place: no clock_gettime in this program from here */
		CHECK(syscall(SYS_mremap, parts[i].start, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
			      at + parts[i].start - from) == (long)(at + parts[i].start - from));
	}
	put("ready", "ready");
	while (!asked()) {
		struct timespec pause = { 0, 10000000 };
		syscall(SYS_nanosleep, &pause, NULL);
	}
	syscall(SYS_clock_gettime, 0, &now);
	unsigned long is, end;

	find_vdso(&is, &end);
	SAME(is, at);
	SAME(end - is, to - from);
}

/* A child whose vDSO lies elsewhere than its parent's. */
static void vdso_of_child(void)
{
	pid_t child = fork();

	if (!child)
		vdso_moved();
	if (!child)
		good();
	if (!child)
		_exit(0);
	await_go();
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void generations(void)
{
	byte *at = map(64 * PAGE, RW, ANON, -1, 0);
	pid_t child;

	fill(at, 64 * PAGE, 0);
	for (int depth = 1; depth < 5; depth++) {
		child = fork();
		if (child)
			break;
		fill(at + depth * PAGE, PAGE, depth);
		if (depth % 2)
			CHECK(madvise(at + (10 + depth) * PAGE, PAGE, MADV_DONTNEED) == 0);
		if (depth < 4)
			continue;
		while (!asked())
			rest(5);
		for (int i = 1; i < 5; i++)
			same("of a generation", at + i * PAGE, PAGE, i);
		CHECK(at[11 * PAGE] == 0 && at[13 * PAGE] == 0 && at[12 * PAGE] != 0);
		_exit(0);
	}
	if (getppid() != 1 && at[PAGE] == 0)
		bad("no page");
	byte *copy = malloc(64 * PAGE);

	fill(copy, 64 * PAGE, 0);
	if (!memcmp(at, copy, 64 * PAGE)) {
		ready();
		await_go();
		ended_well(child);
		CHECK(!memcmp(at, copy, 64 * PAGE));
		return;
	}
	while (!asked())
		rest(5);
	ended_well(child);
	_exit(0);
}

/* Equal pages, merged by the kernel where that runs. */
static void merged(void)
{
	byte *at = map(64 * PAGE, RW, ANON, -1, 0);

	for (int i = 0; i < 64; i++)
		fill(at + i * PAGE, PAGE, 5);
	if (madvise(at, 64 * PAGE, MADV_MERGEABLE))
		lacking("KSM");
	ready();
	await_go();
	for (int i = 0; i < 64; i++)
		same("merged", at + i * PAGE, PAGE, 5);
	at[3 * PAGE] ^= 1;
	same("merged", at + 4 * PAGE, PAGE, 5);
}

static void executed(void)
{
	if (getenv("AGAIN")) { /* the child: another exec'd program with memory of its own */
		byte *at = map(4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		fill(at, 4 * PAGE, 6);
		put("ready", "ready");
		await_go();
		same("executed child", at, 4 * PAGE, 6);
		exit(0);
	}
	byte *at = map(4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	fill(at, 4 * PAGE, 7);
	pid_t child = fork();

	if (!child) {
		setenv("AGAIN", "1", 1);
		execl("/proc/self/exe", "again", folder, "executed", NULL);
		_exit(1);
	}
	await_go();
	same("parent", at, 4 * PAGE, 7);
	ended_well(child);
}

static int initial_stack(unsigned long *from, unsigned long *to)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	int found = 0;

	CHECK(maps);
	while (!found && fgets(line, sizeof(line), maps))
		found = strstr(line, "[stack]") && sscanf(line, "%lx-%lx", from, to) == 2;
	fclose(maps);
	return found;
}

static void without_stack(void)
{
	unsigned long from, to;

	CHECK(initial_stack(&from, &to) && !munmap((void *)from, to - from));
	ready();
	await_go();
	CHECK(!initial_stack(&from, &to));
	good();
	_exit(0);
}

static void stack_gone(void)
{
	ucontext_t own, other;
	byte *stack = map(64 * PAGE, RW, ANON, -1, 0);

	folder = strdup(folder);
	fill(stack, PAGE, 8);
	CHECK(folder && !getcontext(&other));
	other.uc_stack.ss_sp = stack;
	other.uc_stack.ss_size = 64 * PAGE;
	makecontext(&other, without_stack, 0);
	swapcontext(&own, &other);
}

static void stack_rights(void)
{
	byte *page = (byte *)((unsigned long)__builtin_frame_address(0) & -PAGE);

	CHECK(!mprotect(page, PAGE, RW | PROT_EXEC));
	ready();
	await_go();
	CHECK(!mprotect(page, PAGE, RW));
}

/* What is called [stack] is the last page only: that in which main's arguments begin. */
static void stack_top(void)
{
	unsigned long begin = getauxval(AT_EXECFN) & -PAGE, first;
	char *words[] = { "memory_edges", (char *)folder, "stack_top", NULL }, line[4096], *at;
	int stat = open("/proc/self/stat", O_RDONLY);
	ssize_t got = read(stat, line, sizeof(line) - 1);

	close(stat);
	CHECK(got > 0);
	line[got] = 0;
	at = strrchr(line, ')') + 2;
	for (int field = 3; field < 28; field++)
		at = strchr(at, ' ') + 1;
	first = strtoul(at, NULL, 10) & -PAGE;
	if (first != begin) { /* the arguments lie on a page of their own: once more, elsewhere */
		CHECK(!execv("/proc/self/exe", words));
		return;
	}
	CHECK(!mprotect((byte *)first, PAGE, RW | PROT_EXEC));
	ready();
	await_go();
	CHECK(!mprotect((byte *)first, PAGE, RW));
}

static const struct mode modes[] = {
	{ "sparse", sparse },	  { "areas", areas },
	{ "lowest", lowest },	  { "brk_moved", brk_moved },
	{ "brk_none", brk_none }, { "vdso_moved", vdso_moved },
	{ "vdso_of_child", vdso_of_child }, { "generations", generations },
	{ "merged", merged },	  { "executed", executed },
	{ "stack_gone", stack_gone },
	{ "stack_rights", stack_rights },
	{ "stack_top", stack_top },
	{ NULL, NULL },
};

int main(int argc, char **argv)
{
	run_mode(argc, argv, modes);
}
