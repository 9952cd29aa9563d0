/* SPDX-License-Identifier: Apache-2.0 */
/* A program on a terminal of the outside: raw, in front, with /dev/tty open beside it. */
#include "core_base.h"
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>

int main(int argc, char **argv)
{
	struct termios wanted, now;
	char text[60], room[10];

	begin(argv);
	int with_current = argc > 2 && !strcmp(argv[2], "current"), current = -1;

	for (int fd = 3; fd < 64; fd++)
		close(fd);
	signal(SIGHUP, SIG_IGN);
	CHECK(isatty(0) && isatty(1));
	if (with_current)
		CHECK((current = open("/dev/tty", O_RDWR)) >= 0);
	CHECK(!tcgetattr(0, &wanted));
	cfmakeraw(&wanted);
	wanted.c_cc[VINTR] = 5;
	CHECK(!tcsetattr(0, TCSANOW, &wanted));
	CHECK(!tcgetattr(0, &wanted));
	SAME(tcgetpgrp(0), getpgrp());
	ready();
	await_go();
	CHECK(!tcgetattr(0, &now));
	SAME(now.c_lflag, wanted.c_lflag);
	SAME(now.c_iflag, wanted.c_iflag);
	SAME(now.c_cc[VINTR], 5);
	SAME(tcgetpgrp(0), getpgrp());
	SAME(tcgetsid(0), getsid(0));
	SAME(fcntl(1, F_GETFL) & O_ACCMODE, O_RDWR);
	if (with_current)
		SAME(tcgetpgrp(current), getpgrp());
	snprintf(text, sizeof(text), "[%d on its terminal]", getpid());
	CHECK(write(1, text, strlen(text)) == (ssize_t)strlen(text));
	SAME(read(0, room, 10), 1);
	SAME(room[0], 'k');
	good();
	return 0;
}
