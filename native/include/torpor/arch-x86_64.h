/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86-64: the only lines of the freestanding programs that know the machine.
 *
 * Another architecture is one more file with the same names: torpor_syscall6
 * and TORPOR_ENTRY.  System call numbers come from the kernel's <asm/unistd.h>;
 * calls that only old architectures have (open, fork, pause, ...) are not used.
 */
#ifndef TORPOR_ARCH_X86_64_H
#define TORPOR_ARCH_X86_64_H

/* Result or -errno, as the kernel returns it. */
static inline long torpor_syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* Words of struct user_regs_struct, which PTRACE_GETREGS gives. */
#define TORPOR_REGS 27
#define TORPOR_REG_RESULT 10 /* rax */
#define TORPOR_REG_CALL 15   /* orig_rax */
#define TORPOR_REG_AT 16     /* rip */
#define TORPOR_CALL_BYTES 2  /* of a syscall instruction */

/* Stops for the tracer: it sees SIGTRAP and reads what the program left in memory. */
static inline void torpor_trap(void)
{
	__asm__ volatile("int3" ::: "memory");
}

/*
 * Entry point of a static program: hands the initial stack (argc, argv, NULL,
 * envp, NULL, auxv) to FUNCTION(long *stack), which returns the exit status.
 */
#define TORPOR_ENTRY(function)                                                                     \
	__attribute__((used)) static int function(long *stack);                                    \
	__asm__(".section .text.entry,\"ax\",@progbits\n"                                          \
		".globl _start\n"                                                                  \
		".type _start,@function\n"                                                         \
		"_start:\n"                                                                        \
		"	xorl %ebp, %ebp\n"                                                         \
		"	movq %rsp, %rdi\n"                                                         \
		"	andq $-16, %rsp\n"                                                         \
		"	call " #function "\n"                                                      \
		"	movl %eax, %edi\n"                                                         \
		"	movl $231, %eax\n" /* exit_group */                                        \
		"	syscall\n"                                                                 \
		"	hlt\n"                                                                     \
		".size _start, .-_start\n"                                                         \
		".text\n")

#endif
