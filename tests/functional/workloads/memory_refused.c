/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that cannot be taken. */
#include "memory_base.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#define SIZE (16 * PAGE)

static void until_go(void)
{
	ready();
	await_go();
}

static void userfaultfd(void)
{
	byte *at = map(SIZE, RW, ANON, -1, 0);
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register wanted = { .range = { (unsigned long)at, SIZE },
					  .mode = UFFDIO_REGISTER_MODE_MISSING };

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		lacking("userfaultfd");
	CHECK(ioctl(fd, UFFDIO_REGISTER, &wanted) == 0);
	until_go();
}

static void secret(void)
{
	int fd = syscall(447 /* memfd_secret */, 0);

	if (fd < 0 || ftruncate(fd, SIZE))
		lacking("memfd_secret");
	byte *at = map(SIZE, RW, MAP_SHARED, fd, 0);

	at[0] = 1;
	until_go();
	CHECK(at[0] == 1);
}

static const struct mode modes[] = {
	{ "userfaultfd", userfaultfd },
	{ "secret", secret },
	{ NULL, NULL },
};

int main(int argc, char **argv)
{
	run_mode(argc, argv, modes);
}
