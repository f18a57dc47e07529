// From the multiboot loader's 32-bit mode to 64-bit mode with AVX-512 and tiles enabled, then
// run_trials. One gigabyte is mapped where it lies.
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .section .bss
    .align 4096
top_table:   .skip 4096
next_table:  .skip 4096
pages:       .skip 4096
    .skip 65536
stack_end:
    .skip 32768
thread_end:  // thread-local variables lie below what FS points to
    .skip 64

    .section .data
    .align 8
descriptors:
    .quad 0, 0x00af9a000000ffff, 0x00af92000000ffff
descriptors_end:
descriptor_pointer:
    .word descriptors_end - descriptors - 1
    .quad descriptors

    .section .text
    .code32
    .global start
start:
    cli
    mov $next_table + 3, %eax
    mov %eax, top_table
    mov $pages + 3, %eax
    mov %eax, next_table
    mov $pages, %edi
    mov $0x83, %eax  // present, writable, two megabytes
    mov $512, %ecx
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    mov $top_table, %eax
    mov %eax, %cr3
    mov $0x40620, %eax  // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax  // long mode
    wrmsr
    mov $0x80000033, %eax  // paging, numeric errors, no emulation of the FPU
    mov %eax, %cr0
    lgdt descriptor_pointer
    ljmp $8, $long_mode
    .code64
long_mode:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_end, %rsp
    xor %ecx, %ecx
    xor %edx, %edx
    mov $0x600e7, %eax  // x87, SSE, AVX, AVX-512, tiles and their configuration
    xsetbv
    mov $0xc0000100, %ecx  // FS base
    mov $thread_end, %eax
    xor %edx, %edx
    wrmsr
    mov %rax, %fs:0
    call run_trials
2:  hlt
    jmp 2b
