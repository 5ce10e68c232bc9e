//! The BPF program of a filter, put together call by call.

/// One instruction; the layout is the kernel's `sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it doesn't.
    pub jump_false: u8,
    /// Its operand.
    pub operand: u32,
}

/// Load a 32-bit word of the call's data.
const LOAD: u16 = 0x20;
/// Compare for equality.
const JUMP_EQUAL: u16 = 0x15;
/// Compare for greater.
const JUMP_GREATER: u16 = 0x25;
/// Compare for greater or equal.
const JUMP_GREATER_EQUAL: u16 = 0x35;
/// Skip instructions in any case.
const JUMP: u16 = 0x05;
/// Mask.
const AND: u16 = 0x54;
/// End with an answer.
const RETURN: u16 = 0x06;

/// Offset of the call's number in `seccomp_data`.
const NUMBER: u32 = 0;
/// Offset of the architecture.
const ARCHITECTURE: u32 = 4;
/// Offset of the arguments, 8 bytes each, low word first.
const ARGUMENTS: u32 = 16;
/// `AUDIT_ARCH_X86_64`.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: u32 = 0xc000_003e;
/// `AUDIT_ARCH_AARCH64`.
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: u32 = 0xc000_00b7;
/// `AUDIT_ARCH_I386`.
pub(super) const I386: u32 = 0x4000_0003;
/// Numbers from here on belong to the x32 ABI.
const X32: u32 = 0x4000_0000;

/// A condition on one 64-bit argument.
#[derive(Clone, Copy, Debug)]
pub(super) enum Test {
    /// `argument & mask == value`.
    Equal { index: u32, mask: u64, value: u64 },
    /// `argument != value`.
    NotEqual { index: u32, value: u64 },
    /// `argument > value`, or `>=`; the opposite when negated.
    Greater { index: u32, value: u64, or_equal: bool, negate: bool },
}

/// Where a jump of a test goes.
#[derive(Clone, Copy)]
enum Goal {
    /// The next instruction.
    Next,
    /// Behind this test: it holds.
    Holds,
    /// Behind this rule: it does not hold.
    Fails,
}

/// An instruction whose jumps are not numbers yet.
struct Draft {
    code: u16,
    operand: u32,
    on_true: Goal,
    on_false: Goal,
}

/// The whole program.
pub(super) struct Assembler(Vec<Instruction>);

/// What is done with the calls of one architecture; the number is loaded on entry.
#[derive(Default)]
pub(super) struct Section(Vec<Instruction>);

const fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

impl Assembler {
    pub(super) fn start() -> Assembler {
        Assembler(vec![plain(LOAD, ARCHITECTURE)])
    }

    /// Sends each architecture to its section, and those without one away.
    pub(super) fn architectures(&mut self, native: Section, i386: Option<Section>) {
        let no_call = plain(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        if let Some(Section(i386)) = i386 {
            self.0.push(Instruction { code: JUMP_EQUAL, jump_true: 1, jump_false: 0, operand: I386 });
            self.0.push(plain(JUMP, i386.len() as u32 + 1));
            self.0.push(plain(LOAD, NUMBER));
            self.0.extend(i386);
        }
        self.0.push(Instruction { code: JUMP_EQUAL, jump_true: 1, jump_false: 0, operand: NATIVE });
        self.0.push(no_call);
        self.0.push(plain(LOAD, NUMBER));
        self.0.push(Instruction { code: JUMP_GREATER_EQUAL, jump_true: 0, jump_false: 1, operand: X32 });
        self.0.push(no_call);
        self.0.extend(native.0);
    }

    /// The program.
    pub(super) fn finish(self) -> Vec<Instruction> {
        self.0
    }
}

impl Section {
    /// One call with conditional answers, then one for the rest. The number is loaded on entry; whoever gets past
    /// this call still has it.
    pub(super) fn call(&mut self, number: u32, conditional: &[(Vec<Test>, u32)], rest: u32) {
        let mut block: Vec<Instruction> = Vec::new();
        for (tests, answer) in conditional {
            let mut rule = assemble(tests);
            rule.push(plain(RETURN, *answer));
            block.extend(rule);
        }
        block.push(plain(RETURN, rest));
        // A block longer than a conditional jump reaches is passed by an unconditional one.
        match u8::try_from(block.len()) {
            Ok(length) => {
                self.0.push(Instruction { code: JUMP_EQUAL, jump_true: 0, jump_false: length, operand: number })
            }
            Err(_) => {
                self.0.push(Instruction { code: JUMP_EQUAL, jump_true: 1, jump_false: 0, operand: number });
                self.0.push(plain(JUMP, block.len() as u32));
            }
        }
        self.0.extend(block);
    }

    /// Calls of consecutive numbers with one answer.
    pub(super) fn range(&mut self, first: u32, last: u32, answer: u32) {
        if first == last {
            self.0.push(Instruction { code: JUMP_EQUAL, jump_true: 0, jump_false: 1, operand: first });
        } else {
            self.0.push(Instruction { code: JUMP_GREATER_EQUAL, jump_true: 0, jump_false: 2, operand: first });
            self.0.push(Instruction { code: JUMP_GREATER, jump_true: 1, jump_false: 0, operand: last });
        }
        self.0.push(plain(RETURN, answer));
    }

    /// The answer for all that came through.
    pub(super) fn finish(&mut self, default: u32) {
        self.0.push(plain(RETURN, default));
    }
}

/// The tests of one rule; a test that fails jumps behind the answer that follows.
fn assemble(tests: &[Test]) -> Vec<Instruction> {
    let drafts: Vec<Vec<Draft>> = tests.iter().map(draft).collect();
    let total: usize = drafts.iter().map(Vec::len).sum();
    let mut instructions = Vec::with_capacity(total + 1);
    let mut test_end = 0;
    for draft in &drafts {
        test_end += draft.len();
        for step in draft {
            let here = instructions.len() + 1;
            let skip = |goal: Goal| match goal {
                Goal::Next => 0,
                Goal::Holds => test_end - here,
                Goal::Fails => total + 1 - here,
            } as u8;
            instructions.push(Instruction {
                code: step.code,
                jump_true: skip(step.on_true),
                jump_false: skip(step.on_false),
                operand: step.operand,
            });
        }
    }
    instructions
}

/// One test on the two halves of its argument.
fn draft(test: &Test) -> Vec<Draft> {
    use Goal::{Fails, Holds, Next};
    let load = |index: u32, high: bool| Draft {
        code: LOAD,
        operand: ARGUMENTS + 8 * index + if high { 4 } else { 0 },
        on_true: Next,
        on_false: Next,
    };
    let jump = |code, operand, on_true, on_false| Draft { code, operand, on_true, on_false };
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    match *test {
        Test::Equal { index, mask, value } => {
            let ((mask_high, mask_low), (high, low)) = (halves(mask), halves(value));
            let and = |operand| Draft { code: AND, operand, on_true: Next, on_false: Next };
            vec![
                load(index, true),
                and(mask_high),
                jump(JUMP_EQUAL, high, Next, Fails),
                load(index, false),
                and(mask_low),
                jump(JUMP_EQUAL, low, Holds, Fails),
            ]
        }
        Test::NotEqual { index, value } => {
            let (high, low) = halves(value);
            vec![
                load(index, true),
                jump(JUMP_EQUAL, high, Next, Holds),
                load(index, false),
                jump(JUMP_EQUAL, low, Fails, Holds),
            ]
        }
        Test::Greater { index, value, or_equal, negate } => {
            let (high, low) = halves(value);
            let (holds, fails) = if negate { (Fails, Holds) } else { (Holds, Fails) };
            let low_code = if or_equal { JUMP_GREATER_EQUAL } else { JUMP_GREATER };
            vec![
                load(index, true),
                jump(JUMP_GREATER, high, holds, Next),
                jump(JUMP_EQUAL, high, Next, fails),
                load(index, false),
                jump(low_code, low, holds, fails),
            ]
        }
    }
}

/// Runs a program as the kernel would, for tests.
#[cfg(test)]
pub(super) fn run(program: &[Instruction], number: u32, arguments: [u64; 6]) -> u32 {
    run_for(program, NATIVE, number, arguments)
}

/// The same for a program of some architecture.
#[cfg(test)]
pub(super) fn run_for(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => number,
        ARCHITECTURE => architecture,
        _ => {
            let argument = arguments[((offset - ARGUMENTS) / 8) as usize];
            if (offset - ARGUMENTS) % 8 == 4 { (argument >> 32) as u32 } else { argument as u32 }
        }
    };
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let step = program[at];
        at += 1;
        let holds = match step.code {
            LOAD => {
                accumulator = word(step.operand);
                continue;
            }
            AND => {
                accumulator &= step.operand;
                continue;
            }
            RETURN => return step.operand,
            JUMP => {
                at += step.operand as usize;
                continue;
            }
            JUMP_EQUAL => accumulator == step.operand,
            JUMP_GREATER => accumulator > step.operand,
            JUMP_GREATER_EQUAL => accumulator >= step.operand,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if holds { step.jump_true } else { step.jump_false });
    }
}
