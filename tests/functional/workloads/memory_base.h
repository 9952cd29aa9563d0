/* SPDX-License-Identifier: Apache-2.0 */
/* What workloads about memory share: content that can be told again, mappings, files, children. */
#ifndef MEMORY_BASE_H
#define MEMORY_BASE_H

#include "core_base.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

typedef unsigned char byte;

struct mode {
	const char *name;
	void (*run)(void);
};

__attribute__((unused)) static void fill(byte *at, size_t size, uint32_t seed)
{
	for (size_t i = 0; i < size; i++)
		at[i] = (seed = seed * 1664525 + 1013904223) >> 24;
}

__attribute__((unused)) static void same(const char *what, const byte *at, size_t size,
					 uint32_t seed)
{
	for (size_t i = 0; i < size; i++)
		if (at[i] != (byte)((seed = seed * 1664525 + 1013904223) >> 24))
			bad("%s differs at byte %zu", what, i);
}

__attribute__((unused)) static byte *map(size_t size, int prot, int flags, int fd, long offset)
{
	byte *at = mmap(NULL, size, prot, flags, fd, offset);

	CHECK(at != MAP_FAILED);
	return at;
}

__attribute__((unused)) static void map_at(byte *at, size_t size, int prot, int flags, int fd,
					   long offset)
{
	CHECK(mmap(at, size, prot, flags | MAP_FIXED, fd, offset) == at);
}

/* Room between two areas that nothing else uses: addresses of one's own. */
__attribute__((unused)) static byte *room(size_t size)
{
	byte *at = map(size, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);

	CHECK(munmap(at, size) == 0);
	return at;
}

__attribute__((unused)) static char *path_of(const char *name)
{
	static char path[4096];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return path;
}

/* A file of so many bytes with known content, open for reading and writing. */
__attribute__((unused)) static int file(const char *name, size_t size, uint32_t seed)
{
	int fd = open(path_of(name), O_RDWR | O_CREAT | O_TRUNC, 0755);

	CHECK(fd >= 0 && ftruncate(fd, size) == 0);
	byte *at = map(size, RW, MAP_SHARED, fd, 0);

	fill(at, size, seed);
	CHECK(munmap(at, size) == 0);
	return fd;
}

__attribute__((unused)) static void run_mode(int argc, char **argv, const struct mode *modes)
{
	begin(argv);
	CHECK(argc > 2);
	for (; modes->name; modes++)
		if (!strcmp(modes->name, argv[2])) {
			modes->run();
			good();
			exit(0);
		}
	bad("there is no %s", argv[2]);
}

__attribute__((unused)) static void lacking(const char *what)
{
	char text[200];

	snprintf(text, sizeof(text), "lacking: %s", what);
	put("ready", text);
	await_go();
	good();
	exit(0);
}

__attribute__((unused)) static void ended_well(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		bad("a child ended with %#x", status);
}
#endif
