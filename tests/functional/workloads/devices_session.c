/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A terminal emulator in small: the root has the master; a child leads a session on the slave and
 * has jobs in groups of their own. The second argument names the state.
 */
#include "core_base.h"
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <termios.h>

static const char *state;
static int master, slave;

struct seen {
	volatile pid_t leader, front, back, detached;
	volatile int set, checked, turned, leave;
};

static struct seen *seen;

static int is(const char *name)
{
	return !strcmp(state, name);
}

static int tty_of(pid_t pid, int field)
{
	char path[60], text[4000];
	int value = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	ssize_t size = read(fd, text, sizeof(text) - 1);

	CHECK(size > 0);
	close(fd);
	text[size] = 0;
	char *at = strrchr(text, ')');

	for (int i = 2; i < field; i++)
		at = strchr(at + 1, ' ');
	sscanf(at, "%d", &value);
	return value;
}

static void wait_for(int count)
{
	while (seen->set < count)
		rest(2);
}

static void step(void)
{
	__sync_fetch_and_add(&seen->set, 1);
}

static void done(void)
{
	__sync_fetch_and_add(&seen->checked, 1);
	while (!seen->leave)
		rest(5);
	_exit(0);
}

static void put_on_terminal(void)
{
	for (int i = 0; i < 3; i++)
		CHECK(dup2(slave, i) == i);
	close(slave);
	close(master);
}

static void quiet(void)
{
	int fd = open("/dev/null", O_RDWR);

	for (int i = 0; i < 3; i++)
		CHECK(dup2(fd, i) == i);
	close(fd);
}

/* A job: reads its terminal in front; in the back it is stopped by the attempt. */
static void job(int in_front)
{
	char room[20];

	setpgid(0, 0);
	signal(SIGTTIN, SIG_DFL);
	while (is("background") && !seen->front)
		rest(1);
	if (is("nofd"))
		quiet();
	if (is("given_up") && !in_front) {
		int current = open("/dev/tty", O_RDWR);

		CHECK(current >= 0 && !ioctl(current, TIOCNOTTY));
		close(current);
		step();
		await_go();
		CHECK(open("/dev/tty", O_RDWR) < 0 && errno == ENXIO);
		done();
	}
	step();
	if (is("background") && !in_front) {
		CHECK(read(0, room, 20) == 5);
		CHECK(!memcmp(room, "back\n", 5));
		done();
	}
	await_go();
	if (is("lone")) /* all that criu can do */
		done();
	while (is("background") && !seen->turned)
		rest(2);
	SAME(getpgrp(), getpid());
	SAME(getsid(0), seen->leader);
	int current = open("/dev/tty", O_RDWR);

	CHECK(current >= 0);
	SAME(tcgetpgrp(current), seen->front);
	SAME(tcgetsid(current), seen->leader);
	done();
}

static void leader(void)
{
	int current = -1;

	seen->leader = getpid();
	CHECK(setsid() == getpid());
	CHECK(!ioctl(slave, TIOCSCTTY, 0));
	if (is("nofd"))
		current = dup(slave);
	put_on_terminal();
	if (is("current"))
		CHECK((current = open("/dev/tty", O_RDWR | O_NONBLOCK)) > 2);
	signal(SIGTTOU, SIG_IGN);
	pid_t pids[2];

	for (int i = 0; i < 2; i++) {
		pids[i] = fork();
		CHECK(pids[i] >= 0);
		if (!pids[i])
			job(i == 0);
		setpgid(pids[i], pids[i]);
	}
	seen->front = pids[0];
	seen->back = pids[1];
	CHECK(!tcsetpgrp(is("nofd") ? current : 0, pids[0]));
	if (is("nofd")) {
		quiet();
		close(current);
	}
	step();
	if (is("background")) {
		int status;

		CHECK(waitpid(pids[1], &status, WUNTRACED) == pids[1]);
		SAME(status, SIGTTIN << 8 | 0x7f);
		step();
	}
	await_go();
	if (is("current")) {
		char room[9];

		SAME(tcgetpgrp(current), pids[0]);
		CHECK(fcntl(current, F_GETFL) & O_NONBLOCK);
		CHECK(write(current, "here", 4) == 4);
		signal(SIGTTIN, SIG_IGN);
		CHECK(read(current, room, 9) < 0 && (errno == EIO || errno == EAGAIN));
	}
	if (is("background")) {
		CHECK(!tcsetpgrp(0, pids[1]));
		CHECK(!kill(-pids[1], SIGCONT));
		while (seen->checked < 1)
			rest(2);
		CHECK(!tcsetpgrp(0, pids[0]));
		seen->turned = 1;
	}
	int again = open("/dev/tty", O_RDWR);

	CHECK(again >= 0);
	SAME(tcgetpgrp(again), pids[0]);
	done();
}

static void is_read(const char *text)
{
	char room[100] = "";
	size_t size = 0;
	struct pollfd one = { .fd = master, .events = POLLIN };

	while (size < strlen(text)) {
		CHECK(poll(&one, 1, 5000) == 1);
		ssize_t got = read(master, room + size, strlen(text) - size);

		CHECK(got > 0);
		size += got;
	}
	CHECK(!memcmp(room, text, size));
}

int main(int argc, char **argv)
{
	char *name;
	int device, wanted;

	begin(argv);
	CHECK(argc > 2);
	state = argv[2];
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(seen != MAP_FAILED);
	master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	CHECK(master >= 0 && !unlockpt(master) && (name = ptsname(master)));
	slave = open(name, O_RDWR | O_NOCTTY);
	CHECK(slave >= 0);
	pid_t child = fork();

	CHECK(child >= 0);
	if (!child)
		leader();
	if (!is("both"))
		close(slave);
	wanted = 3 + is("background");
	wait_for(wanted);
	device = tty_of(child, 7);
	CHECK(device != 0);
	ready();
	await_go();
	if (is("background"))
		CHECK(write(master, "back\n", 5) == 5);
	if (is("current"))
		is_read("here");
	while (seen->checked < 3)
		rest(5);
	SAME(tty_of(getpid(), 7), 0);
	SAME(tty_of(child, 7), device);
	SAME(tty_of(child, 8), seen->front);
	if (!is("lone")) {
		SAME(tty_of(seen->front, 7), device);
		SAME(tty_of(seen->back, 7), is("given_up") ? 0 : device);
	}
	seen->leave = 1;
	good();
	return 0;
}
