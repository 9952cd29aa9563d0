/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a C workload does: set up, ready(), wait while it is dumped and restored, check itself,
 * good(). CHECK tells the first thing that is wrong, at any time, and ends the workload.
 */
#ifndef CORE_BASE_H
#define CORE_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *folder;

__attribute__((unused)) static void put(const char *name, const char *text)
{
	char part[4096], whole[4096];

	snprintf(part, sizeof(part), "%s/%s.%d", folder, name, getpid());
	snprintf(whole, sizeof(whole), "%s/%s", folder, name);
	int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

	if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd) || rename(part, whole))
		_exit(99);
}

__attribute__((unused, noreturn, format(printf, 1, 2))) static void bad(const char *format, ...)
{
	char text[2000];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	put("result", text);
	_exit(1);
}

#define CHECK(condition)                                                                    \
	do {                                                                                \
		if (!(condition))                                                           \
			bad("%s:%d: not %s (errno %d: %s)", __FILE__, __LINE__, #condition, \
			    errno, strerror(errno));                                        \
	} while (0)
#define SAME(is, was)                                                                 \
	do {                                                                          \
		long long is_ = (long long)(is), was_ = (long long)(was);             \
		if (is_ != was_)                                                      \
			bad("%s:%d: %s is %lld, was %lld", __FILE__, __LINE__, #is, is_, was_); \
	} while (0)

static void begin(char **argv)
{
	folder = argv[1];
}

__attribute__((unused)) static int asked(void)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/go", folder);
	return access(path, F_OK) == 0;
}

__attribute__((unused)) static void rest(long milliseconds)
{
	struct timespec left = { milliseconds / 1000, milliseconds % 1000 * 1000000 };

	while (nanosleep(&left, &left))
		;
}

__attribute__((unused)) static void await_go(void)
{
	while (!asked())
		rest(10);
}

__attribute__((unused)) static void ready(void)
{
	put("ready", "ready");
}

__attribute__((unused)) static void good(void)
{
	put("result", "ok");
}
#endif
