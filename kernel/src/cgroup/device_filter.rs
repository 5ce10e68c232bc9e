//! Device rules on cgroup v2: a BPF program per cgroup.
//!
//! The last rule that fits decides, as with v1's files; what no rule fits is denied.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::{CgroupError, DeviceRule, failed};

/// One eBPF instruction; the layout is the kernel's `bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Load a 32-bit word from memory.
const LOAD: u8 = 0x61;
/// Copy a register.
const COPY: u8 = 0xbf;
/// Set a register.
const SET: u8 = 0xb7;
/// Mask a register.
const AND: u8 = 0x57;
/// Shift a register right.
const SHIFT: u8 = 0x77;
/// Jump when a register is not a number.
const JUMP_UNEQUAL: u8 = 0x55;
/// End with what register 0 holds.
const EXIT: u8 = 0x95;

/// Registers: the answer, the context, and what is taken out of it.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

const fn step(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

/// The program of these rules.
fn compile(rules: &[DeviceRule]) -> Result<Vec<Instruction>, String> {
    let mut program = vec![
        step(LOAD, KIND, CONTEXT, 0, 0),
        step(COPY, ACCESS, KIND, 0, 0),
        step(AND, KIND, 0, 0, 0xffff),
        step(SHIFT, ACCESS, 0, 0, 16),
        step(LOAD, MAJOR, CONTEXT, 4, 0),
        step(LOAD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        rule.check()?;
        let mut tests = Vec::new();
        match rule.kind.as_deref() {
            Some("b") => tests.push(step(JUMP_UNEQUAL, KIND, 0, 0, 1)),
            Some("c" | "u") => tests.push(step(JUMP_UNEQUAL, KIND, 0, 0, 2)),
            _ => {}
        }
        let access = rule.access.as_deref().unwrap_or("rwm");
        let allowed = [('m', 1), ('r', 2), ('w', 4)]
            .iter()
            .filter(|(letter, _)| access.contains(*letter))
            .fold(0, |allowed, (_, bit)| allowed | bit);
        if allowed != 7 {
            // What is asked for must be part of what the rule speaks of.
            tests.push(step(COPY, SCRATCH, ACCESS, 0, 0));
            tests.push(step(AND, SCRATCH, 0, 0, 7 & !allowed));
            tests.push(step(JUMP_UNEQUAL, SCRATCH, 0, 0, 0));
        }
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(number) = number.filter(|number| *number >= 0) {
                let number = i32::try_from(number).map_err(|_| format!("device rule: {number} is no device number"))?;
                tests.push(step(JUMP_UNEQUAL, register, 0, 0, number));
            }
        }
        let fits_all = tests.is_empty();
        // A test that fails jumps behind the answer of this rule.
        let length = tests.len();
        for (at, test) in tests.iter_mut().enumerate().filter(|(_, test)| test.code == JUMP_UNEQUAL) {
            test.offset = (length - at - 1 + 2) as i16;
        }
        program.extend(tests);
        program.extend([step(SET, ANSWER, 0, 0, i32::from(rule.allow)), step(EXIT, 0, 0, 0, 0)]);
        if fits_all {
            // The kernel refuses a program with a part that is never reached.
            return Ok(program);
        }
    }
    program.extend([step(SET, ANSWER, 0, 0, 0), step(EXIT, 0, 0, 0, 0)]);
    Ok(program)
}

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const PROG_QUERY: i32 = 16;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: runtimes inside the container may add programs of their own below.
const ALLOW_MULTI: u32 = 2;
/// Programs of one cgroup that are looked at.
const PROGRAMS_MAX: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
}

/// One call; what `attributes` points to must be what the command wants.
fn call<T>(command: i32, attributes: &mut T) -> std::io::Result<i32> {
    // SAFETY: the attributes are plain numbers of the command's layout; pointers in them live in the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn new_descriptor(number: i32) -> OwnedFd {
    // SAFETY: the kernel has just made the descriptor (closed on exec), and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Puts the rules on a cgroup in place of those that it had. While both are there a device must pass both.
///
/// # Errors
/// When a rule is malformed, or the kernel lacks the program type (4.15, `CONFIG_CGROUP_BPF`) or refuses.
pub(super) fn set(folder: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    let error = |step: &'static str| move |error: std::io::Error| failed(step, folder, error);
    let program = compile(rules).map_err(std::io::Error::other).map_err(error("compile the device rules of"))?;
    let cgroup = std::fs::File::open(folder).map_err(error("open"))?;
    let mut load = Load {
        kind: TYPE_CGROUP_DEVICE,
        instructions: program.len() as u32,
        program: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let loaded = call(PROG_LOAD, &mut load).map(new_descriptor).map_err(error("load the device rules of"))?;
    let before = attached(&cgroup).map_err(error("look at the device rules of"))?;
    let target = cgroup.as_raw_fd() as u32;
    let change = |command: i32, program: &OwnedFd, flags: u32| {
        call(command, &mut Attach { target, program: program.as_raw_fd() as u32, kind: CGROUP_DEVICE, flags })
    };
    change(PROG_ATTACH, &loaded, ALLOW_MULTI).map_err(error("attach the device rules of"))?;
    for old in before {
        change(PROG_DETACH, &old, 0).map_err(error("detach the former device rules of"))?;
    }
    Ok(())
}

/// Device programs of a cgroup itself.
fn attached(cgroup: impl AsFd) -> std::io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; PROGRAMS_MAX];
    let mut query = Query {
        target: cgroup.as_fd().as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS_MAX as u32,
        ..Query::default()
    };
    call(PROG_QUERY, &mut query)?;
    ids[..(query.count as usize).min(PROGRAMS_MAX)]
        .iter()
        .map(|id| call(PROG_GET_FD_BY_ID, &mut [*id, 0, 0]).map(new_descriptor))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_are_none_are_named() {
        let rule = |kind: &str, access: &str| DeviceRule {
            allow: true,
            kind: Some(kind.into()),
            access: Some(access.into()),
            ..DeviceRule::default()
        };
        assert!(compile(&[rule("x", "r")]).unwrap_err().contains("\"x\""));
        assert!(compile(&[rule("c", "rx")]).unwrap_err().contains("'x'"));
        assert_eq!(compile(&[]).unwrap().len(), 8);
    }
}
