/* SPDX-License-Identifier: Apache-2.0 */
/* A program without a C library, and so without rt_sigreturn: counts rounds for ever. */
typedef unsigned long u64;

static long call(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8),
			 "r"(r9) : "rcx", "r11", "memory");
	return r;
}
void start(long *stack)
{
	long fd = call(2, stack[2], 2, 0, 0, 0, 0);
	volatile u64 *page = (u64 *)call(9, 0, 4096, 3, 1, fd, 0);
	for (;;)
		page[0]++;
}
__asm__(".globl _start\n_start: mov %rsp,%rdi\n and $-16,%rsp\n call start\n"
#ifdef WITH_POP
	"\n pop %rax\n ret"
#endif
);
