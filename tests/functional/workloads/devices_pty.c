/* SPDX-License-Identifier: Apache-2.0 */
/* Pseudo terminals inside the tree; the second argument names the state. */
#include "core_base.h"
#include <asm/ioctls.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <asm/termbits.h>

static const char *state;
static int master = -1, slave = -1;

static int is(const char *name)
{
	return !strcmp(state, name);
}

static int number(int fd, unsigned long request)
{
	int value = -1;

	CHECK(!ioctl(fd, request, &value));
	return value;
}

static int new_master(int flags)
{
	int zero = 0, fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | flags);

	CHECK(fd >= 0);
	CHECK(!ioctl(fd, TIOCSPTLCK, &zero));
	return fd;
}

static int new_slave(int fd, int flags)
{
	char path[40];

	snprintf(path, sizeof(path), "/dev/pts/%d", number(fd, TIOCGPTN));
	int other = open(path, O_RDWR | O_NOCTTY | flags);

	CHECK(other >= 0);
	return other;
}

static void both(void)
{
	master = new_master(0);
	slave = new_slave(master, 0);
}

static void settings(int fd, unsigned lflag_off, unsigned iflag_off, unsigned oflag_off)
{
	struct termios2 t;

	CHECK(!ioctl(fd, TCGETS2, &t));
	t.c_lflag &= ~lflag_off;
	t.c_iflag &= ~iflag_off;
	t.c_oflag &= ~oflag_off;
	CHECK(!ioctl(fd, TCSETS2, &t));
}

static void raw(int fd)
{
	settings(fd, ~0u, ~0u, ~0u);
}

static void is_read(int fd, const char *text)
{
	char room[5000];
	size_t size = 0, wanted = strlen(text);
	struct pollfd one = { .fd = fd, .events = POLLIN };

	while (size < wanted) {
		CHECK(poll(&one, 1, 5000) == 1);
		ssize_t got = read(fd, room + size, wanted - size);

		CHECK(got > 0);
		size += got;
	}
	if (memcmp(room, text, size))
		bad("read %.*s, not %s", (int)size, room, text);
}

static void is_empty(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };

	SAME(poll(&one, 1, 0), 0);
}

static void echoes(int m, int s)
{
	raw(s);
	CHECK(write(m, "to", 2) == 2);
	is_read(s, "to");
	CHECK(write(s, "from", 4) == 4);
	is_read(m, "from");
}

static void the_settings(int odd)
{
	struct termios2 t, now;
	struct winsize size = { 33, 99, 5, 7 }, size_now;
	struct stat status;
	char path[40];

	both();
	CHECK(!ioctl(slave, TCGETS2, &t));
	t.c_iflag ^= IUTF8 | IXANY;
	t.c_lflag &= ~ECHO;
	if (odd) {
		t.c_cflag = (t.c_cflag & ~(CBAUD | (CBAUD << IBSHIFT))) | BOTHER;
		t.c_ispeed = t.c_ospeed = 12345;
	}
	t.c_cc[VINTR] = 7;
	CHECK(!ioctl(slave, TCSETS2, &t));
	CHECK(!ioctl(slave, TCGETS2, &t));
	CHECK(!ioctl(master, TIOCSWINSZ, &size));
	CHECK(!fchown(slave, 12, 13) && !fchmod(slave, 0620));
	if (odd)
		CHECK(!fchmod(slave, 0640));
	int index = number(master, TIOCGPTN);

	ready();
	await_go();
	SAME(number(master, TIOCGPTN), index);
	CHECK(!ioctl(slave, TCGETS2, &now));
	CHECK(!memcmp(&t, &now, sizeof(t)));
	CHECK(!ioctl(slave, TIOCGWINSZ, &size_now));
	CHECK(!memcmp(&size, &size_now, sizeof(size)));
	snprintf(path, sizeof(path), "/dev/pts/%d", index);
	CHECK(!stat(path, &status));
	SAME(status.st_mode & 07777, odd ? 0640 : 0620);
	SAME(status.st_uid, 12);
	SAME(status.st_gid, 13);
	SAME(number(master, TIOCGPTLCK), 0);
	SAME(number(master, TIOCGPKT), 0);
	echoes(master, slave);
}

static void flags(int closed)
{
	master = new_master(O_NONBLOCK);
	slave = new_slave(master, O_NONBLOCK);
	int second = new_slave(master, 0), third = dup(second), writer, one = 1;
	char path[40];

	snprintf(path, sizeof(path), "/dev/pts/%d", number(master, TIOCGPTN));
	writer = open(path, O_WRONLY | O_NOCTTY);
	raw(slave);
	CHECK(!ioctl(master, TIOCPKT, &one));
	if (closed) {
		CHECK(!ioctl(slave, TIOCEXCL));
		CHECK(!ioctl(master, TIOCEXCL));
		CHECK(!ioctl(master, TIOCSPTLCK, &one));
	}
	ready();
	await_go();
	SAME(number(master, TIOCGPKT), 1);
	SAME(number(master, TIOCGPTLCK), closed);
	SAME(number(master, TIOCGEXCL), closed);
	SAME(number(slave, TIOCGEXCL), closed);
	CHECK(fcntl(master, F_GETFL) & O_NONBLOCK);
	CHECK(fcntl(slave, F_GETFL) & O_NONBLOCK);
	CHECK(!(fcntl(second, F_GETFL) & O_NONBLOCK));
	CHECK(!fcntl(third, F_SETFL, O_NONBLOCK) && fcntl(second, F_GETFL) & O_NONBLOCK);
	CHECK(write(writer, "x", 1) == 1);
	char room[9];
	struct pollfd wait = { .fd = master, .events = POLLIN };

	CHECK(poll(&wait, 1, 5000) == 1);
	SAME(read(master, room, 9), 2);
	CHECK(room[0] == 0 && room[1] == 'x');
	if (closed)
		CHECK(open(path, O_RDWR | O_NOCTTY) < 0 && errno == EIO);
}

static void queued(int canonical)
{
	char room[100];

	master = new_master(0);
	slave = new_slave(master, O_NONBLOCK);
	settings(slave, ECHO, 0, OPOST);
	if (!canonical)
		raw(slave);
	CHECK(write(slave, "for the master\n", 15) == 15);
	if (canonical)
		CHECK(write(master, "one\nend\x04\x04unfin", 14) == 14);
	else
		CHECK(write(master, "a\x03\r\n\x04\x00z", 7) == 7);
	struct pollfd one = { .fd = slave, .events = POLLIN };

	CHECK(poll(&one, 1, 5000) == 1);
	rest(20);
	ready();
	await_go();
	is_read(master, "for the master\n");
	is_empty(master);
	if (canonical) {
		SAME(read(slave, room, 100), 4);
		CHECK(!memcmp(room, "one\n", 4));
		SAME(read(slave, room, 100), 3);
		CHECK(!memcmp(room, "end", 3));
		SAME(read(slave, room, 100), 0);
		CHECK(read(slave, room, 100) < 0 && errno == EAGAIN);
		CHECK(write(master, "ished\n", 6) == 6);
		is_read(slave, "unfinished\n");
	} else {
		SAME(read(slave, room, 100), 7);
		CHECK(!memcmp(room, "a\x03\r\n\x04\x00z", 7));
	}
	CHECK(read(slave, room, 100) < 0 && errno == EAGAIN);
}

static void stopped_output(void)
{
	struct pollfd one = { .fd = slave, .events = POLLOUT };

	both();
	one.fd = slave;
	CHECK(write(master, "\x13", 1) == 1);
	while (poll(&one, 1, 0))
		rest(1);
	ready();
	await_go();
	SAME(poll(&one, 1, 0), 0);
	CHECK(write(master, "\x11", 1) == 1);
	SAME(poll(&one, 1, 5000), 1);
	echoes(master, slave);
}

static void no_slave(int was_open)
{
	struct pollfd one = { .events = POLLIN };

	one.fd = master = new_master(0);
	if (was_open) {
		slave = new_slave(master, 0);
		CHECK(write(slave, "last\n", 5) == 5);
		close(slave);
	}
	ready();
	await_go();
	SAME(poll(&one, 1, 0), was_open);
	if (was_open) {
		CHECK(one.revents & POLLHUP);
		is_read(master, "last\r\n");
		char c;
		CHECK(read(master, &c, 1) < 0 && errno == EIO);
	}
	slave = new_slave(master, 0);
	SAME(poll(&one, 1, 0), 0);
	echoes(master, slave);
}

static void no_master(void)
{
	char c;
	struct stat before, now;
	int more;

	both();
	more = new_slave(master, 0);
	close(master);
	CHECK(!fstat(slave, &before));
	ready();
	await_go();
	SAME(read(slave, &c, 1), 0);
	CHECK(write(slave, "x", 1) < 0 && errno == EIO);
	SAME(read(more, &c, 1), 0);
	CHECK(!fstat(slave, &now));
	SAME(now.st_rdev, before.st_rdev);
	/* its number is free again */
	close(slave);
	close(more);
}

static void vhung_up(void)
{
	char c;
	pid_t child;
	struct pollfd one = { .events = POLLIN };

	both();
	int gone = dup(slave);

	child = fork();
	if (!child) {
		signal(SIGHUP, SIG_IGN);
		setsid();
		_exit(ioctl(slave, TIOCSCTTY, 0) || vhangup());
	}
	CHECK(waitpid(child, NULL, 0) == child);
	SAME(read(gone, &c, 1), 0);
	slave = new_slave(master, 0);
	ready();
	await_go();
	SAME(read(gone, &c, 1), 0);
	CHECK(write(gone, "x", 1) < 0 && errno == EIO);
	one.fd = master;
	SAME(poll(&one, 1, 0), 0);
	echoes(master, slave);
}

static void many(void)
{
	int masters[12], slaves[12], numbers[12];

	for (int i = 0; i < 12; i++) {
		masters[i] = new_master(0);
		numbers[i] = number(masters[i], TIOCGPTN);
		slaves[i] = new_slave(masters[i], 0);
	}
	for (int i = 0; i < 12; i += 3) { /* leaves holes */
		close(slaves[i]);
		close(masters[i]);
	}
	ready();
	await_go();
	for (int i = 0; i < 12; i++) {
		if (i % 3 == 0)
			continue;
		SAME(number(masters[i], TIOCGPTN), numbers[i]);
		echoes(masters[i], slaves[i]);
	}
}

int main(int argc, char **argv)
{
	begin(argv);
	state = argc > 2 ? argv[2] : "settings";
	if (is("settings"))
		the_settings(0);
	else if (is("speeds"))
		the_settings(1);
	else if (is("packets"))
		flags(0);
	else if (is("closed"))
		flags(1);
	else if (is("lines"))
		queued(1);
	else if (is("bytes"))
		queued(0);
	else if (is("stopped"))
		stopped_output();
	else if (is("fresh"))
		no_slave(0);
	else if (is("abandoned"))
		no_slave(1);
	else if (is("orphan"))
		no_master();
	else if (is("vhangup"))
		vhung_up();
	else if (is("many"))
		many();
	else
		bad("no such state: %s", state);
	good();
	return 0;
}
