// SPDX-License-Identifier: Apache-2.0
/* Much memory, all of which is written anew when it is asked to (a file `write`). */
#include "core_base.h"

#include <sys/mman.h>

#define SIZE ((size_t)64 << 20)

int main(int argc, char **argv)
{
	unsigned char *memory =
		mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char path[4200];

	(void)argc;
	begin(argv);
	CHECK(memory != MAP_FAILED);
	madvise(memory, SIZE, MADV_NOHUGEPAGE);
	memset(memory, 1, SIZE);
	ready();
	snprintf(path, sizeof(path), "%s/write", folder);
	while (access(path, F_OK))
		rest(2);
	memset(memory, 2, SIZE);
	put("written", "");
	await_go();
	for (size_t i = 0; i < SIZE; i += 4096)
		SAME(memory[i], 2);
	good();
	return 0;
}
