/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that is filled past the processor: a file is read again and again with O_DIRECT. */
#include "memory_base.h"

#define PAGES 512UL

int main(int argc, char **argv)
{
	(void)argc;
	begin(argv);
	byte *from = map(PAGES * PAGE, RW, ANON, -1, 0), *to = map(PAGES * PAGE, RW, ANON, -1, 0);
	int plain = file("file", PAGES * PAGE, 1), fd = open(path_of("file"), O_RDWR | O_DIRECT);

	close(plain);
	if (fd < 0)
		lacking("O_DIRECT");
	for (uint32_t round = 1;; round++) {
		fill(from, PAGES * PAGE, round);
		CHECK(pwrite(fd, from, PAGES * PAGE, 0) == (ssize_t)(PAGES * PAGE));
		CHECK(pread(fd, to, PAGES * PAGE, 0) == (ssize_t)(PAGES * PAGE));
		same("what was read", to, PAGES * PAGE, round);
		if (round == 1)
			ready();
		if (asked())
			break;
	}
	good();
	return 0;
}
