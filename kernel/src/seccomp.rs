//! Seccomp filters compiled from profiles.
//!
//! A profile in the form of the OCI runtime specification becomes one BPF program. System calls whose answer does not
//! depend on their arguments are tested by ranges of numbers, the rest one by one. Calls of 32-bit x86 programs have
//! numbers of their own and get a part of their own where the profile names that architecture; those of x32, and of
//! every architecture that the profile doesn't name, are answered with ENOSYS.

mod assembler;
mod default;
mod i386;
mod syscalls;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use assembler::Instruction;
use assembler::{Assembler, Section, Test};
pub use default::default_profile;

/// A profile (OCI runtime specification, `linux.seccomp`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// What happens to a call without a rule.
    pub default_action: String,
    /// The error number when that is `SCMP_ACT_ERRNO`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_*` names: the architectures whose programs may run; none is the machine's own alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*` names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// The rules; the first that fits decides.
    #[serde(default)]
    pub syscalls: Vec<Rule>,
    /// Socket of a program that answers calls: not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<String>,
}

/// One rule of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// System calls by name; names that this machine doesn't know are left out.
    pub names: Vec<String>,
    /// What happens.
    pub action: String,
    /// The error number of `SCMP_ACT_ERRNO`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions that must all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

/// A condition on an argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// What it is compared with; the mask of `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// The value of `SCMP_CMP_MASKED_EQ`.
    #[serde(default)]
    pub value_two: u64,
    /// `SCMP_CMP_*`.
    pub op: String,
}

/// Why a profile can't be compiled or loaded.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// An action, operator or flag that is not known.
    #[error("seccomp profile: {field} {value:?} is not known")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// An argument number above 5.
    #[error("seccomp profile: argument index {0} is not 0 to 5")]
    Index(u32),
    /// More instructions than the kernel takes.
    #[error("seccomp profile: {0} instructions are more than the kernel's 4096")]
    TooLong(usize),
    /// The kernel refused the filter.
    #[error("load the seccomp filter")]
    Load(#[source] std::io::Error),
}

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u64,
}

/// The longest program that the kernel takes (BPF_MAXINSNS).
const PROGRAM_MAX: usize = 4096;
/// `EPERM`.
const EPERM: u32 = 1;

/// The filter's return value for an action.
fn action(name: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let errno = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | errno,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_TRACE" => libc::SECCOMP_RET_TRACE | errno,
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        other => return Err(SeccompError::Unknown { field: "action", value: other.to_string() }),
    })
}

fn test(argument: &Argument) -> Result<Test, SeccompError> {
    if argument.index > 5 {
        return Err(SeccompError::Index(argument.index));
    }
    let (index, value) = (argument.index, argument.value);
    Ok(match argument.op.as_str() {
        "SCMP_CMP_EQ" => Test::Equal { index, mask: u64::MAX, value },
        "SCMP_CMP_MASKED_EQ" => Test::Equal { index, mask: value, value: argument.value_two },
        "SCMP_CMP_NE" => Test::NotEqual { index, value },
        "SCMP_CMP_GT" => Test::Greater { index, value, or_equal: false, negate: false },
        "SCMP_CMP_GE" => Test::Greater { index, value, or_equal: true, negate: false },
        "SCMP_CMP_LT" => Test::Greater { index, value, or_equal: true, negate: true },
        "SCMP_CMP_LE" => Test::Greater { index, value, or_equal: false, negate: true },
        other => return Err(SeccompError::Unknown { field: "op", value: other.to_string() }),
    })
}

/// What is to be done for one system call: conditional answers in order, then perhaps one for all that is left.
#[derive(Default)]
struct Answers {
    conditional: Vec<(Vec<Test>, u32)>,
    always: Option<u32>,
}

impl Filter {
    /// Compiles a profile.
    ///
    /// # Errors
    /// When a name other than a system call's is not known, or the program gets too long.
    pub fn compile(profile: &Profile) -> Result<Filter, SeccompError> {
        let default = action(&profile.default_action, profile.default_errno_ret)?;
        let mut program = Assembler::start();
        let native = compile_calls(profile, default, syscalls::number)?;
        let x86 = profile.architectures.iter().any(|name| name == "SCMP_ARCH_X86");
        let i386 = if x86 { Some(compile_calls(profile, default, syscalls::number_i386)?) } else { None };
        program.architectures(native, i386);
        let program = program.finish();
        if program.len() > PROGRAM_MAX {
            return Err(SeccompError::TooLong(program.len()));
        }
        let flags = profile.flags.iter().try_fold(0, |flags, name| Ok(flags | flag(name)?))?;
        Ok(Filter { program, flags })
    }

    /// Puts the filter on this process, for good. Without no_new_privs this needs SYS_ADMIN.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(&self) -> Result<(), SeccompError> {
        let program = libc::sock_fprog {
            len: self.program.len() as u16,
            filter: self.program.as_ptr() as *mut libc::sock_filter,
        };
        // SAFETY: `Instruction` has the layout of sock_filter, and the program outlives the call.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, &raw const program) };
        if result == 0 { Ok(()) } else { Err(SeccompError::Load(std::io::Error::last_os_error())) }
    }

    /// The program, for tests and for looking at it.
    #[must_use]
    pub fn program(&self) -> &[Instruction] {
        &self.program
    }
}

/// The part of the program for one architecture's numbers.
fn compile_calls(profile: &Profile, default: u32, number: fn(&str) -> Option<u32>) -> Result<Section, SeccompError> {
    let mut calls: BTreeMap<u32, Answers> = BTreeMap::new();
    for rule in &profile.syscalls {
        let answer = action(&rule.action, rule.errno_ret)?;
        let tests = rule.args.iter().map(test).collect::<Result<Vec<_>, _>>()?;
        for number in rule.names.iter().filter_map(|name| number(name)) {
            let answers = calls.entry(number).or_default();
            match (answers.always, tests.is_empty()) {
                (Some(_), _) => {}
                (None, true) => answers.always = Some(answer),
                (None, false) => answers.conditional.push((tests.clone(), answer)),
            }
        }
    }
    let mut section = Section::default();
    let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
    for (number, answers) in &calls {
        match (answers.conditional.is_empty(), answers.always) {
            (true, Some(answer)) => match ranges.last_mut() {
                Some((_, last, same)) if *last + 1 == *number && *same == answer => *last = *number,
                _ => ranges.push((*number, *number, answer)),
            },
            _ => section.call(*number, &answers.conditional, answers.always.unwrap_or(default)),
        }
    }
    for (first, last, answer) in ranges {
        section.range(first, last, answer);
    }
    section.finish(default);
    Ok(section)
}

fn flag(name: &str) -> Result<u64, SeccompError> {
    Ok(match name {
        "SECCOMP_FILTER_FLAG_TSYNC" => 0,
        "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        other => return Err(SeccompError::Unknown { field: "flag", value: other.to_string() }),
    })
}

#[cfg(test)]
mod tests {
    use super::assembler::run;
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn rule(names: &[&str], action: &str, args: Vec<Argument>) -> Rule {
        let names = names.iter().map(ToString::to_string).collect();
        Rule { names, action: action.into(), errno_ret: None, args }
    }

    fn argument(index: u32, op: &str, value: u64, value_two: u64) -> Argument {
        Argument { index, value, value_two, op: op.into() }
    }

    fn filter(syscalls: Vec<Rule>) -> Filter {
        let default_action = "SCMP_ACT_ERRNO".to_string();
        Filter::compile(&Profile { default_action, default_errno_ret: Some(1), syscalls, ..Profile::default() })
            .unwrap()
    }

    #[test]
    fn every_operator_compares_all_64_bits() {
        let big = (5 << 32) | 7;
        let table = [
            ("SCMP_CMP_EQ", big, 0, vec![(big, true), (7, false), (5 << 32, false)]),
            ("SCMP_CMP_NE", big, 0, vec![(big, false), (7, true)]),
            ("SCMP_CMP_GT", big, 0, vec![(big, false), (big + 1, true), (6 << 32, true), (9, false)]),
            ("SCMP_CMP_GE", big, 0, vec![(big, true), (big - 1, false), (6 << 32, true)]),
            ("SCMP_CMP_LT", big, 0, vec![(big, false), (big - 1, true), (6 << 32, false)]),
            ("SCMP_CMP_LE", big, 0, vec![(big, true), (big + 1, false), (9, true)]),
            ("SCMP_CMP_MASKED_EQ", 0xf0, 0x30, vec![(0x3f, true), (0x4f, false)]),
        ];
        for (op, value, value_two, cases) in table {
            let filter = filter(vec![rule(&["clone"], "SCMP_ACT_ALLOW", vec![argument(0, op, value, value_two)])]);
            for (given, allowed) in cases {
                let answer = run(filter.program(), libc::SYS_clone as u32, [given, 0, 0, 0, 0, 0]);
                assert_eq!(answer == ALLOW, allowed, "{op} {value:#x} of {given:#x}");
            }
        }
    }

    #[test]
    fn ranges_conditions_and_the_default() {
        let filter = filter(vec![
            rule(&["read", "write", "open", "getpid", "no_such_call"], "SCMP_ACT_ALLOW", vec![]),
            rule(&["socket"], "SCMP_ACT_ALLOW", vec![argument(0, "SCMP_CMP_LT", 38, 0)]),
            rule(&["socket"], "SCMP_ACT_ALLOW", vec![argument(0, "SCMP_CMP_GT", 40, 0)]),
        ]);
        let answer = |number: i64, first: u64| run(filter.program(), number as u32, [first, 0, 0, 0, 0, 0]);
        for allowed in [libc::SYS_read, libc::SYS_write, libc::SYS_open, libc::SYS_getpid] {
            assert_eq!(answer(allowed, 0), ALLOW);
        }
        assert_eq!(answer(libc::SYS_close, 0), libc::SECCOMP_RET_ERRNO | 1);
        assert_eq!(answer(libc::SYS_socket, 2), ALLOW);
        assert_eq!(answer(libc::SYS_socket, 38), libc::SECCOMP_RET_ERRNO | 1, "AF_ALG");
        assert_eq!(answer(libc::SYS_socket, 41), ALLOW);
        assert_eq!(answer(0x4000_0000, 0), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, "x32");
    }

    #[test]
    fn the_default_profile_is_what_it_says() {
        use super::assembler::{I386, NATIVE, run_for};
        let compile = |caps: &[&str]| {
            let caps = crate::capability::Capabilities::from_names(caps.iter().copied()).unwrap();
            Filter::compile(&default_profile(caps)).unwrap()
        };
        let (plain, admin) = (compile(&["CHOWN"]), compile(&["SYS_ADMIN", "SYS_CHROOT"]));
        let (denied, missing) = (libc::SECCOMP_RET_ERRNO | 1, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        let newuser = libc::CLONE_NEWUSER as u64;
        let table = [
            (libc::SYS_read, 0, ALLOW, ALLOW),
            (libc::SYS_mount, 0, denied, ALLOW),
            (libc::SYS_unshare, newuser, denied, ALLOW),
            (libc::SYS_clone, 17, ALLOW, ALLOW),
            (libc::SYS_clone, newuser | 17, denied, ALLOW),
            (libc::SYS_clone3, 0, missing, ALLOW),
            (libc::SYS_socket, 38, denied, denied),
            (libc::SYS_socket, 40, denied, denied),
            (libc::SYS_socket, 2, ALLOW, ALLOW),
            (libc::SYS_personality, 0xffff_ffff, ALLOW, ALLOW),
            (libc::SYS_personality, 0x40000, denied, denied),
            (libc::SYS_keyctl, 0, denied, denied),
            (libc::SYS_io_uring_setup, 0, denied, denied),
            (libc::SYS_userfaultfd, 0, denied, denied),
            (libc::SYS_kexec_load, 0, denied, denied),
            (libc::SYS_chroot, 0, denied, ALLOW),
            (0x4000_0000, 0, missing, missing),
        ];
        for (number, first, without, with) in table {
            let arguments = [first, 0, 0, 0, 0, 0];
            assert_eq!(run(plain.program(), number as u32, arguments), without, "call {number} of {first:#x}");
            assert_eq!(run(admin.program(), number as u32, arguments), with, "call {number} of {first:#x}, as admin");
        }
        // 32-bit: 3 is read, 21 is mount, 120 is clone, 359 is socket.
        for (number, first, answer) in
            [(3, 0, ALLOW), (21, 0, denied), (120, newuser, denied), (120, 17, ALLOW), (359, 38, denied)]
        {
            assert_eq!(run_for(plain.program(), I386, number, [first, 0, 0, 0, 0, 0]), answer, "32-bit call {number}");
        }
        assert_eq!(run_for(plain.program(), 0x4000_0028, 3, [0; 6]), missing, "32-bit arm");
        let narrow =
            Filter::compile(&Profile { architectures: vec![], ..default_profile(Default::default()) }).unwrap();
        assert_eq!(run_for(narrow.program(), I386, 3, [0; 6]), missing);
        assert_eq!(run_for(narrow.program(), NATIVE, 0, [0; 6]), ALLOW);
    }

    #[test]
    fn what_is_not_known_is_told() {
        let unknown = Profile { default_action: "SCMP_ACT_MAYBE".into(), ..Profile::default() };
        assert!(Filter::compile(&unknown).unwrap_err().to_string().contains("SCMP_ACT_MAYBE"));
    }
}
