/* SPDX-License-Identifier: Apache-2.0 */
/* Mappings of files: with own pages, deleted, replaced, cut, of odd protections. */
#include "memory_base.h"
#include <sys/sendfile.h>
#include <setjmp.h>

#define SIZE (16 * PAGE)

static sigjmp_buf *escape;
static volatile int caught;

static void on_fault(int signal)
{
	(void)signal;
	caught++;
	siglongjmp(*escape, 1);
}

/* Whether a byte cannot be read. */
static int faults(const byte *at, int signal)
{
	sigjmp_buf here;
	struct sigaction action = { .sa_handler = on_fault }, before;
	volatile byte sink;

	escape = &here;
	caught = 0;
	CHECK(sigaction(signal, &action, &before) == 0);
	if (!sigsetjmp(here, 1))
		sink = *(volatile const byte *)at;
	(void)sink;
	CHECK(sigaction(signal, &before, NULL) == 0);
	return caught;
}

/* Own pages behind every protection. */
static void own_pages(void)
{
	int fd = file("plain", SIZE, 1);
	const int prots[] = { PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC, PROT_EXEC, RW };
	byte *at[5];

	for (int i = 0; i < 5; i++) {
		at[i] = map(SIZE, RW, MAP_PRIVATE, fd, 0);
		fill(at[i] + PAGE * i, PAGE, 10 + i);
		CHECK(mprotect(at[i], SIZE, prots[i]) == 0);
	}
	int only = open(path_of("plain"), O_RDONLY);
	byte *read_only = map(SIZE, PROT_READ, MAP_SHARED, only, 0);
	byte *shared_none = map(SIZE, PROT_NONE, MAP_SHARED, fd, 0);

	close(only);
	close(fd);
	ready();
	await_go();
	for (int i = 0; i < 5; i++) {
		CHECK(mprotect(at[i], SIZE, RW) == 0);
		same("own page", at[i] + PAGE * i, PAGE, 10 + i);
		if (i)
			same("page of the file", at[i], PAGE, 1);
	}
	same("read only", read_only, SIZE, 1);
	CHECK(mprotect(read_only, SIZE, RW) < 0 && errno == EACCES);
	CHECK(mprotect(shared_none, SIZE, RW) == 0);
	same("shared", shared_none, SIZE, 1);
}

static void deleted(int flags, int keep)
{
	int fd = file("deleted", SIZE, 2);
	byte *at = map(SIZE, RW, flags, fd, 0), *part = map(PAGE, PROT_READ, MAP_SHARED, fd, 3 * PAGE);

	CHECK(unlink(path_of("deleted")) == 0);
	if (!keep)
		close(fd);
	fill(at + 2 * PAGE, PAGE, 3);
	pid_t child = fork();

	if (!child) {
		while (!asked())
			rest(5);
		same("child: page of the file", at, PAGE, 2);
		same("child: own page", at + 2 * PAGE, PAGE, 3);
		if (flags == MAP_SHARED)
			at[3 * PAGE] = 123;
		_exit(0);
	}
	ready();
	await_go();
	ended_well(child);
	same("page of the file", at, PAGE, 2);
	same("own page", at + 2 * PAGE, PAGE, 3);
	if (flags == MAP_SHARED)
		CHECK(part[0] == 123);
	if (keep) {
		byte there[PAGE];

		CHECK(pread(fd, there, PAGE, PAGE) == (ssize_t)PAGE);
		CHECK(!memcmp(there, at + PAGE, PAGE));
	}
	CHECK(access(path_of("deleted"), F_OK) < 0);
}

static void deleted_shared(void)
{
	deleted(MAP_SHARED, 0);
}

static void deleted_private(void)
{
	deleted(MAP_PRIVATE, 0);
}

static void deleted_open(void)
{
	deleted(MAP_SHARED, 1);
}

/* A library of which an upgrade has put another one in place. */
static void replaced(void)
{
	int fd = file("library", SIZE, 4);
	byte *at = map(SIZE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
	byte *data = map(2 * PAGE, RW, MAP_PRIVATE, fd, 8 * PAGE);

	close(fd);
	close(file("new", SIZE, 5));
	char old[4096];

	strcpy(old, path_of("library"));
	CHECK(rename(path_of("new"), old) == 0);
	fill(data, PAGE, 6);
	ready();
	await_go();
	same("text", at, SIZE, 4);
	same("data", data, PAGE, 6);
	fd = open(path_of("library"), O_RDONLY);
	byte there[PAGE];

	CHECK(read(fd, there, PAGE) == (ssize_t)PAGE);
	same("the new one", there, PAGE, 5);
}

static void posix_shm(void)
{
	char name[40], gone[40];

	snprintf(name, sizeof(name), "/torpor-%d", getpid());
	snprintf(gone, sizeof(gone), "/torpor-gone-%d", getpid());
	int one = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	int two = shm_open(gone, O_RDWR | O_CREAT | O_EXCL, 0600);

	CHECK(one >= 0 && two >= 0 && ftruncate(one, SIZE) == 0 && ftruncate(two, SIZE) == 0);
	byte *named = map(SIZE, RW, MAP_SHARED, one, 0), *lost = map(SIZE, RW, MAP_SHARED, two, 0);

	close(one);
	close(two);
	fill(named, SIZE, 7);
	fill(lost, SIZE, 8);
	CHECK(shm_unlink(gone) == 0);
	pid_t child = fork();

	if (!child) {
		while (!asked())
			rest(5);
		same("child", lost + PAGE, PAGE, 9);
		_exit(0);
	}
	fill(lost + PAGE, PAGE, 9);
	ready();
	await_go();
	ended_well(child);
	same("named", named, SIZE, 7);
	same("lost", lost, PAGE, 8);
	CHECK(shm_unlink(name) == 0);
}

/* More is mapped than the file has; it was cut after it was mapped. */
static void beyond(void)
{
	int fd = file("short", 2 * PAGE + 100, 10), cut = file("cut", SIZE, 11);
	byte *at = map(SIZE, PROT_READ, MAP_SHARED, fd, 0), *own = map(SIZE, RW, MAP_PRIVATE, cut, 0);

	own[PAGE] = 1; /* goes with the cut, as it lies behind the new end */
	own[0] = 2;
	CHECK(ftruncate(cut, PAGE) == 0);
	byte *far = map(PAGE, RW, MAP_PRIVATE, fd, 1L << 30);

	(void)far;
	close(fd);
	ready();
	await_go();
	same("of the file", at, 2 * PAGE + 100, 10);
	CHECK(at[2 * PAGE + 100] == 0 && faults(at + 3 * PAGE, SIGBUS));
	CHECK(own[0] == 2 && faults(own + PAGE, SIGBUS));
	CHECK(ftruncate(cut, SIZE) == 0 && own[PAGE] == 0);
	close(cut);
}

static void none(void)
{
	byte *hidden = map(SIZE, RW, ANON, -1, 0), *shared = map(SIZE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	fill(hidden, SIZE, 12);
	fill(shared, SIZE, 13);
	CHECK(mprotect(hidden, SIZE, PROT_NONE) == 0);
	CHECK(mprotect(shared, SIZE, PROT_NONE) == 0);
	pid_t child = fork();

	if (!child) { /* the other way round than its parent */
		CHECK(mprotect(hidden, SIZE, RW) == 0);
		byte *never = map(SIZE, PROT_NONE, ANON, -1, 0);

		while (!asked())
			rest(5);
		same("child: hidden", hidden, SIZE, 12);
		CHECK(faults(never, SIGSEGV));
		_exit(0);
	}
	byte *mine = map(SIZE, RW, ANON, -1, 0);

	mine[0] = 1;
	ready();
	await_go();
	CHECK(faults(hidden, SIGSEGV) && faults(shared, SIGSEGV));
	CHECK(mprotect(hidden, SIZE, PROT_READ) == 0 && mprotect(shared, SIZE, PROT_READ) == 0);
	same("hidden", hidden, SIZE, 12);
	same("shared", shared, SIZE, 13);
	ended_well(child);
}

/* The program's own file was deleted, or another one is in its place. */
static void lost_program(void)
{
	char self[4096], now[4200];
	ssize_t size = readlink("/proc/self/exe", self, sizeof(self) - 1);

	CHECK(size > 0);
	self[size] = 0;
	if (!getenv("AGAIN")) {
		char copy[4200];

		snprintf(copy, sizeof(copy), "cp %s %s/program", self, folder);
		CHECK(system(copy) == 0);
		setenv("AGAIN", "1", 1);
		execl(path_of("program"), "program", folder, "lost_program", NULL);
		bad("no exec");
	}
	CHECK(unlink(self) == 0);
	ready();
	await_go();
	size = readlink("/proc/self/exe", now, sizeof(now) - 1);
	CHECK(size > 0);
	now[size] = 0;
	strcat(self, " (deleted)");
	CHECK(!strcmp(self, now));
}

static void memfd_program(void)
{
	char now[100], *again[] = { "program", (char *)folder, "memfd_program", NULL };

	if (!getenv("AGAIN")) {
		int program = open("/proc/self/exe", O_RDONLY), fd = memfd_create("program", 0);

		CHECK(program >= 0 && fd >= 0);
		while (sendfile(fd, program, NULL, 1 << 20) > 0)
			;
		setenv("AGAIN", "1", 1);
		fexecve(fd, again, environ);
		bad("no exec");
	}
	ready();
	await_go();
	ssize_t size = readlink("/proc/self/exe", now, sizeof(now) - 1);

	CHECK(size > 0);
	now[size] = 0;
	CHECK(!strcmp(now, "/memfd:program (deleted)"));
}

static const struct mode modes[] = {
	{ "own_pages", own_pages },	{ "deleted_shared", deleted_shared },
	{ "deleted_private", deleted_private }, { "deleted_open", deleted_open },
	{ "replaced", replaced },	{ "posix_shm", posix_shm },
	{ "beyond", beyond },		{ "none", none },
	{ "lost_program", lost_program }, { "memfd_program", memfd_program },
	{ NULL, NULL },
};

int main(int argc, char **argv)
{
	run_mode(argc, argv, modes);
}
