//! `orlop-pause`: holds the pod's namespaces and reaps orphans; ends on SIGTERM and SIGINT.
//!
//! Built with `panic = "abort"` (the profile `small`) it is freestanding: no libc, no standard library, one page of
//! stack. Built otherwise (tests and lints of the whole workspace) it is an ordinary program that does the same.
#![cfg_attr(panic = "abort", no_std, no_main)]
#![allow(unsafe_code)]

/// What pause does, by raw system calls.
#[cfg(all(panic = "abort", target_arch = "x86_64"))]
mod freestanding {
    use core::arch::{asm, naked_asm};

    const RT_SIGPROCMASK: usize = 14;
    const WAIT4: usize = 61;
    const RT_SIGTIMEDWAIT: usize = 128;
    const EXIT_GROUP: usize = 231;
    const SIG_BLOCK: usize = 0;
    const WNOHANG: usize = 1;
    const SIGINT: isize = 2;
    const SIGTERM: isize = 15;
    const SIGCHLD: isize = 17;

    /// One system call.
    fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
        let result;
        // SAFETY: the calls made here read and write only what their callers point to.
        unsafe {
            asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
                out("rcx") _, out("r11") _, options(nostack));
        }
        result
    }

    fn pause() -> ! {
        // Signals are taken one by one instead of by handlers: nothing can be lost between them.
        let signals: u64 = (1 << (SIGINT - 1)) | (1 << (SIGTERM - 1)) | (1 << (SIGCHLD - 1));
        let set = &raw const signals as usize;
        call(RT_SIGPROCMASK, SIG_BLOCK, set, 0, 8);
        loop {
            match call(RT_SIGTIMEDWAIT, set, 0, 0, 8) {
                SIGINT | SIGTERM => {
                    call(EXIT_GROUP, 0, 0, 0, 0);
                }
                SIGCHLD => while call(WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {},
                _ => {}
            }
        }
    }

    /// Where the kernel starts the program.
    // SAFETY: the stack is aligned as the ABI wants it before the call, which never returns.
    #[unsafe(naked)]
    #[unsafe(no_mangle)]
    extern "C" fn _start() -> ! {
        naked_asm!("and rsp, -16", "call {pause}", "ud2", pause = sym entry)
    }

    extern "C" fn entry() -> ! {
        pause()
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {
            call(EXIT_GROUP, 1, 0, 0, 0);
        }
    }
}

#[cfg(not(panic = "abort"))]
fn main() {
    eprintln!("orlop-pause holds a pod's namespaces; build it with the profile `small`");
    std::process::exit(1);
}
