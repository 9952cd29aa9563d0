// SPDX-License-Identifier: Apache-2.0
/* Pages of a file, or of ours, into memory that a userfaultfd is registered for. */
#include "seam_internal.h"

#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#define PAGE ((uint64_t)4096)

uint64_t seam_put_pages(int uffd, uint64_t target, const void *pages, uint64_t size, int *error)
{
	const char *from = pages;
	uint64_t done = 0;

	*error = 0;
	while (done < size) {
		struct uffdio_copy copy = { .dst = target + done, .len = size - done,
					    .src = (uintptr_t)from + done };

		*error = 0;
		if (!ioctl(uffd, UFFDIO_COPY, &copy))
			return size;
		*error = errno;
		if (copy.copy > 0) {
			done += (uint64_t)copy.copy;
		} else if (*error == EEXIST) {
			struct uffdio_range range = { target + done, PAGE };

			ioctl(uffd, UFFDIO_WAKE, &range);
			done += PAGE;
			*error = 0;
		} else {
			return done;
		}
	}
	return done;
}

uint64_t seam_copy_pages(int uffd, uint64_t target, int fd, uint64_t offset, uint64_t size,
			 int *error)
{
	uint64_t done = 0;
	char *local = aligned_alloc(PAGE, DIGEST_PIECE);

	*error = local ? 0 : ENOMEM;
	while (!*error && done < size) {
		uint64_t step = size - done < DIGEST_PIECE ? size - done : DIGEST_PIECE, put = 0;

		*error = -read_file(fd, local, step, offset + done);
		if (!*error)
			put = seam_put_pages(uffd, target + done, local, step, error);
		done += put;
	}
	free(local);
	return done;
}
