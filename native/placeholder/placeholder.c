/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program that a pod to be restored starts with.
 *
 *   placeholder                 wait to be taken over; comm "torpor-wait"
 *   placeholder ready           exit 0 when the container is restored, else 1
 *   placeholder install PATH... copy this program to each PATH, mode 0555
 *   placeholder seed            wait forever, touch nothing (restores on a host)
 *
 * While it waits it is one thread without signal handlers in one blocking
 * system call, so that a tracer can take it over at any moment and any register
 * it held may be forgotten.  It needs no libc, no /proc, no writable file system
 * and no particular uid.  It forwards nothing.
 *
 * Every half second, and when a stop signal comes, it looks around:
 *   children that ended            are reaped
 *   /.torpor/give-up               its text goes to stderr, exit 124
 *   SIGTERM, SIGINT, SIGQUIT       exit 128 + signal.  They are blocked and
 *                                  fetched, for the kernel drops them unseen
 *                                  when an init neither blocks nor handles them
 *                                  (signal.c, sig_ignored, v6.8); who takes
 *                                  over sets the mask of the restored task.
 * If /.torpor/restored exists at the start, this container was restored before
 * and its state has ended with it: exit 125, so that a restart policy never
 * turns a lost state into an endless silent wait.
 *
 * Rules for editing: no libc, no global that is written, no allocation, no
 * recursion; anything that knows the machine belongs to torpor/arch-*.h.
 */
#include <linux/prctl.h>
#include <linux/signal.h>

#include "torpor/sys.h"
#include "torpor/text.h"

#define DIRECTORY "/.torpor/"
#define RESTORED DIRECTORY "restored"
#define GIVE_UP DIRECTORY "give-up"

#define EXIT_GIVEN_UP 124
#define EXIT_RESTORED_BEFORE 125
#define EXIT_USAGE 2
#define EXIT_SIGNAL 128

#define POLL_NANOSECONDS 500000000
#define GIVE_UP_TEXT_MAX 65536
#define STDERR 2

TORPOR_ENTRY(placeholder_main);

static void say(const char *text)
{
	struct line line = {.used = 0};

	line_add(&line, "torpor: ");
	line_add(&line, text);
	line_write(&line, STDERR);
}

static int complain(const char *what, const char *path, long error)
{
	struct line line = {.used = 0};

	line_add(&line, "torpor: ");
	line_add(&line, what);
	line_add(&line, " ");
	line_add(&line, path);
	line_add(&line, ": errno ");
	line_add_number(&line, -error);
	line_write(&line, STDERR);
	return 1;
}

/* Writes all of it or says why not. */
static long write_all(int fd, const char *bytes, size_t count)
{
	while (count) {
		long done = sys_write(fd, bytes, count);

		if (done == -EINTR)
			continue;
		if (done <= 0)
			return done ? done : -EIO;
		bytes += done;
		count -= (size_t)done;
	}
	return 0;
}

/* Copies at most max bytes; the number copied or -errno. */
static long copy(int from, int to, size_t max)
{
	char buffer[4096];
	size_t total = 0;

	while (total < max) {
		long got = sys_read(from, buffer, sizeof(buffer));
		long error;

		if (got == -EINTR)
			continue;
		if (got < 0)
			return got;
		if (got == 0)
			break;
		error = write_all(to, buffer, (size_t)got);
		if (error)
			return error;
		total += (size_t)got;
	}
	return (long)total;
}

/* Prints the reason; 0 while the file is still empty, for its writer may not be done. */
static int print_reason(void)
{
	long fd = sys_openat(AT_FDCWD, GIVE_UP, O_RDONLY | O_CLOEXEC, 0);
	long copied;

	if (fd < 0) {
		complain("told to give up, but cannot read", GIVE_UP, fd);
		return 1;
	}
	copied = copy((int)fd, STDERR, GIVE_UP_TEXT_MAX);
	sys_close((int)fd);
	return copied != 0;
}

static uint64_t signal_bit(int number)
{
	return UINT64_C(1) << (number - 1);
}

static int wait_to_be_taken_over(void)
{
	const uint64_t stops = signal_bit(SIGTERM) | signal_bit(SIGINT) | signal_bit(SIGQUIT);
	int empty_looks = 0;

	SYS5(__NR_prctl, PR_SET_NAME, "torpor-wait", 0, 0, 0);
	if (sys_exists(RESTORED)) {
		say("this container was restored once and has ended; its state is not started anew");
		return EXIT_RESTORED_BEFORE;
	}
	SYS4(__NR_rt_sigprocmask, SIG_BLOCK, &stops, NULL, SYS_SIGSET_BYTES);
	for (;;) {
		struct sys_timespec pause = {.nanoseconds = POLL_NANOSECONDS};
		long signal = SYS4(__NR_rt_sigtimedwait, &stops, NULL, &pause, SYS_SIGSET_BYTES);

		if (signal > 0)
			return EXIT_SIGNAL + (int)signal;
		while (sys_wait4(-1, NULL, SYS_WNOHANG) > 0)
			;
		if (!sys_exists(GIVE_UP))
			continue;
		if (print_reason() || ++empty_looks == 2)
			return EXIT_GIVEN_UP;
	}
}

/* pause() is not on every architecture; a ppoll of nothing is. */
__attribute__((noreturn)) static void wait_as_seed(void)
{
	SYS5(__NR_prctl, PR_SET_NAME, "torpor-seed", 0, 0, 0);
	for (;;)
		sys_ppoll(NULL, 0, NULL);
}

/* Under a name of its own first, so that nobody executes half a program. */
static int install(const char *path)
{
	static const char suffix[] = ".new";
	char fresh[4096];
	size_t length = text_length(path);
	long from, to, error;

	if (length + sizeof(suffix) > sizeof(fresh))
		return complain("cannot write", path, -ENAMETOOLONG);
	for (size_t i = 0; i < length; i++)
		fresh[i] = path[i];
	for (size_t i = 0; i < sizeof(suffix); i++)
		fresh[length + i] = suffix[i];
	from = sys_openat(AT_FDCWD, "/proc/self/exe", O_RDONLY | O_CLOEXEC, 0);
	if (from < 0)
		return complain("cannot read", "/proc/self/exe", from);
	(void)SYS3(__NR_unlinkat, AT_FDCWD, fresh, 0);
	to = sys_openat(AT_FDCWD, fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0500);
	if (to < 0) {
		sys_close((int)from);
		return complain("cannot write", fresh, to);
	}
	error = copy((int)from, (int)to, SIZE_MAX);
	if (error >= 0)
		error = SYS2(__NR_fchmod, to, 0555);
	sys_close((int)from);
	sys_close((int)to);
	if (error >= 0)
		error = SYS5(__NR_renameat2, AT_FDCWD, fresh, AT_FDCWD, path, 0);
	if (error < 0)
		return complain("cannot install", path, error);
	return 0;
}

static int install_all(char **paths)
{
	for (; *paths; paths++)
		if (install(*paths))
			return 1;
	return 0;
}

static int placeholder_main(long *stack)
{
	long count = stack[0];
	char **arguments = (char **)(stack + 1);

	if (count <= 1)
		return wait_to_be_taken_over();
	if (count == 2 && text_equal(arguments[1], "ready"))
		return sys_exists(RESTORED) ? 0 : 1;
	if (count == 2 && text_equal(arguments[1], "seed"))
		wait_as_seed();
	if (count >= 3 && text_equal(arguments[1], "install"))
		return install_all(arguments + 2);
	say("usage: placeholder [ready | seed | install PATH...]");
	return EXIT_USAGE;
}
