/* What runs before main on a Cortex-M with a floating point unit. Files and output are those of the
   debugger or emulator, by semihosting. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern char data_start[], data_end[], data_load[], bss_start[], bss_end[], stack_top[];
extern void initialise_monitor_handles(void);
extern int main(int argc, char **argv);

void reset(void) {
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20; /* CPACR: the unit on */
    __asm volatile("dsb\n isb");
    memcpy(data_start, data_load, (size_t)(data_end - data_start));
    memset(bss_start, 0, (size_t)(bss_end - bss_start));
    initialise_monitor_handles();
    exit(main(0, NULL));
}

static void fault(void) { exit(99); }

__attribute__((section(".vectors"), used)) static void *const vectors[] = {
    stack_top, (void *)reset, (void *)fault, (void *)fault,
    (void *)fault, (void *)fault, (void *)fault};
