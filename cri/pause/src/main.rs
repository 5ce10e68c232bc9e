//! `orlop-pause`: holds the pod's namespaces and reaps orphans; ends on SIGTERM and SIGINT.
//!
//! Built for size (the profile `small`) it is freestanding: no libc, no standard library, about one KB of
//! program and two pages of memory. Built otherwise (tests and lints of the whole workspace) the same code is an
//! ordinary program.
#![cfg_attr(freestanding, no_std, no_main)]
// The one program without libc: its system calls are made here.
#![allow(unsafe_code)]

use core::arch::asm;

const RT_SIGPROCMASK: usize = 14;
const WAIT4: usize = 61;
const RT_SIGTIMEDWAIT: usize = 128;
const EXIT_GROUP: usize = 231;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;
/// Bytes of the kernel's signal set.
const SET_BYTES: usize = 8;

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

/// Reaps until told to end. Signals are taken one by one instead of by handlers: nothing is lost between them.
fn pause() -> ! {
    let signals: u64 = (1 << (SIGINT - 1)) | (1 << (SIGTERM - 1)) | (1 << (SIGCHLD - 1));
    let set = &raw const signals as usize;
    call(RT_SIGPROCMASK, SIG_BLOCK, set, 0, SET_BYTES);
    loop {
        match call(RT_SIGTIMEDWAIT, set, 0, 0, SET_BYTES) {
            SIGINT | SIGTERM => exit(0),
            SIGCHLD => while call(WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {},
            _ => {}
        }
    }
}

fn exit(code: usize) -> ! {
    loop {
        call(EXIT_GROUP, code, 0, 0, 0);
    }
}

#[cfg(not(freestanding))]
fn main() {
    pause()
}

/// What the freestanding program needs instead of a library.
#[cfg(freestanding)]
mod freestanding {
    /// Where the kernel starts the program (`build.rs` names it as the entry).
    // SAFETY: the stack is aligned as the ABI wants it before the call, which never returns.
    #[unsafe(naked)]
    #[unsafe(no_mangle)]
    extern "C" fn orlop_pause_start() -> ! {
        core::arch::naked_asm!("and rsp, -16", "call {entry}", "ud2", entry = sym entry)
    }

    extern "C" fn entry() -> ! {
        super::pause()
    }

    /// The C start file of the musl target asks for these two; its code is not reachable and is dropped by the linker.
    // SAFETY: nobody calls it.
    #[unsafe(no_mangle)]
    extern "C" fn main() -> i32 {
        1
    }

    /// See [`main`].
    // SAFETY: nobody calls it.
    #[unsafe(no_mangle)]
    extern "C" fn __libc_start_main() -> ! {
        super::exit(1)
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        super::exit(1)
    }
}
