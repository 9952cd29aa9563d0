// SPDX-License-Identifier: Apache-2.0
/* Much memory, made when it is asked for (a file `fill`), and written anew then (`write`). */
#include "core_base.h"

#include <sys/mman.h>

#define SIZE ((size_t)64 << 20)

static void await(const char *name)
{
	char path[4200];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	while (access(path, F_OK))
		rest(2);
}

int main(int argc, char **argv)
{
	unsigned char *memory =
		mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)argc;
	begin(argv);
	CHECK(memory != MAP_FAILED);
	madvise(memory, SIZE, MADV_NOHUGEPAGE);
	put("up", "");
	await("fill");
	memset(memory, 1, SIZE);
	ready();
	await("write");
	memset(memory, 2, SIZE);
	put("written", "");
	await_go();
	for (size_t i = 0; i < SIZE; i += 4096)
		SAME(memory[i], 2);
	good();
	return 0;
}
