//! Exit status 0: the golden model gave the golden bits. No std, no heap, no libc.
#![no_std]
#![no_main]

#[cfg_attr(not(feature = "train"), expect(dead_code, reason = "training is a feature"))]
mod case;
#[cfg(feature = "flash")]
mod flash;

#[cfg(feature = "adapt")]
mod adapt;

use core::arch::{asm, naked_asm};
use core::hint::black_box;

use sepal_core::arena::Word;
use sepal_core::format::{Counts, File, counts};
use sepal_core::include_model;
use sepal_core::layer::RELU;

#[cfg(feature = "std")]
extern crate std;

const MODEL: &[u8] = include_model!("../../golden/format-v1.sepal");
const COUNTS: Counts = match counts(MODEL) {
    Some(counts) => counts,
    None => panic!("the golden file is no model"),
};
static SAMPLE: &[u8] = include_bytes!("../../golden/format-v1.sample");
static LOGITS: &[u8] = include_bytes!("../../golden/format-v1.logits");
#[cfg(feature = "train")]
static LOSSES: &[u8] = include_bytes!("../../golden/format-v1.steps");

static mut MEMORY: [Word; case::WORDS] = [Word::NAN; case::WORDS];

#[cfg(feature = "nopanic")]
unsafe extern "C" {
    fn a_panic_can_be_reached() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(feature = "nopanic")]
    // SAFETY: never linked.
    unsafe {
        a_panic_can_be_reached()
    }
    #[cfg(not(feature = "nopanic"))]
    exit(101)
}

/// What the C library would give: LLVM calls these for copies of unknown length and for comparing
/// many bytes.
mod memory {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        let (end, _past, _left): (*mut u8, *const u8, usize);
        // SAFETY: the caller's contract is that of `rep movsb`; the direction flag is clear.
        unsafe {
            asm!("rep movsb", inout("rdi") to => end, inout("rsi") from => _past,
                inout("rcx") len => _left, options(nostack, preserves_flags));
        }
        end.wrapping_sub(len)
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        let (end, _left): (*mut u8, usize);
        // SAFETY: the caller's contract is that of `rep stosb`; the direction flag is clear.
        unsafe {
            asm!("rep stosb", inout("rdi") to => end, in("al") byte as u8,
                inout("rcx") len => _left, options(nostack, preserves_flags));
        }
        end.wrapping_sub(len)
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        let (_past_a, _past_b, _left): (*const u8, *const u8, usize);
        let differs: u8;
        // SAFETY: the caller's contract is that of `repe cmpsb`; the direction flag is clear. For
        // no bytes the flags are those of the comparison before.
        unsafe {
            asm!("cmp {len}, {len}", "repe cmpsb", "setne {differs}", len = in(reg) len,
                differs = out(reg_byte) differs, inout("rsi") a => _past_a,
                inout("rdi") b => _past_b, inout("rcx") len => _left, options(nostack));
        }
        differs.into()
    }
}

fn exit(status: i32) -> ! {
    // SAFETY: the system call `exit` of Linux on x86_64 touches no memory and does not return.
    unsafe { asm!("syscall", in("rax") 60, in("rdi") i64::from(status), options(noreturn)) }
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "call {}", sym run)
}

extern "C" fn run() -> ! {
    exit(check())
}

fn check() -> i32 {
    // SAFETY: this runs once, on the only thread.
    let memory = unsafe { &mut *(&raw mut MEMORY) };
    let mut layers = [RELU; COUNTS.layers];
    let mut blocks = [0; COUNTS.blocks];
    let mut tensors = [File::NO_TENSOR; COUNTS.tensors];
    // What a compiler knows of the bytes must not prove anything.
    #[cfg(feature = "control")]
    if SAMPLE[black_box(0)] > black_box(255) {
        return 9;
    }
    let Ok(file) = File::open(black_box(MODEL)) else { return 1 };
    let Ok(model) = file.decode(&mut layers, &mut blocks, &mut tensors) else { return 2 };
    let Ok(logits) = case::infer(memory, black_box(&model), black_box(SAMPLE)) else { return 3 };
    if !logits.iter().flat_map(|logit| logit.to_le_bytes()).eq(LOGITS.iter().copied()) {
        return 4;
    }
    #[cfg(feature = "train")]
    {
        let Ok(bits) = case::train(memory, black_box(&model), black_box(&case::STAGE)) else {
            return 5;
        };
        if !bits.iter().flat_map(|bits| bits.to_le_bytes()).eq(LOSSES.iter().copied()) {
            return 6;
        }
    }
    #[cfg(feature = "adapt")]
    if adapt::run() != Some(adapt::DIGEST) {
        return 10;
    }
    #[cfg(feature = "flash")]
    match flash::check(memory, file.checksum(), black_box(&model), SAMPLE, &logits) {
        0 => {}
        status => return status,
    }
    #[cfg(feature = "write")]
    return rewrite(&file, &model);
    #[cfg(not(feature = "write"))]
    0
}

/// Writes the model once more: the bytes are the golden ones.
#[cfg(feature = "write")]
fn rewrite(file: &File<'_>, model: &sepal_core::net::Model<'_>) -> i32 {
    use sepal_core::format::{Cursor, Meta, write};
    let mut classes = [""; COUNTS.classes];
    classes.iter_mut().zip(file.class_names()).for_each(|(to, from)| *to = from);
    let (mut separation, mut notes) = ([(0, 0.0); COUNTS.blocks - 1], [""; 1]);
    separation.iter_mut().zip(file.separation()).for_each(|(to, from)| *to = from);
    notes.iter_mut().zip(file.notes()).for_each(|(to, from)| *to = from);
    let meta = Meta {
        classes: &classes,
        provenance: file.provenance(),
        separation: &separation,
        notes: &notes,
        ..Meta::NONE
    };
    let mut bytes = [0; MODEL.len()];
    let mut cursor = Cursor::new(&mut bytes);
    match write(black_box(model), black_box(&meta), &mut cursor) {
        Ok(()) if cursor.written().iter().eq(MODEL) => 0,
        Ok(()) => 8,
        Err(_) => 7,
    }
}
