//! The board: QEMU's mps2-an386, a Cortex-M4F. Its clock, its stack, and the debugger that it is
//! attached to. The unsafe code of the images is here.

use core::arch::asm;
use core::fmt;

use cortex_m_rt::{ExceptionFrame, exception};

/// Control, value and reload of timer 0, which counts down at 25 MHz.
const CONTROL: *mut u32 = 0x4000_0000 as *mut u32;
const VALUE: *mut u32 = 0x4000_0004 as *mut u32;
const RELOAD: *mut u32 = 0x4000_0008 as *mut u32;

/// What the stack is painted with.
const PAINT: u32 = 0x5ea1_5ea1;

unsafe extern "C" {
    /// The lowest address that the stack may grow to, a symbol of cortex-m-rt's script.
    static mut __sheap: u32;
}

/// Starts counting instructions.
pub fn start_timer() {
    // SAFETY: the timer's registers, which nothing else touches.
    unsafe {
        CONTROL.write_volatile(0);
        RELOAD.write_volatile(u32::MAX);
        VALUE.write_volatile(u32::MAX);
        CONTROL.write_volatile(1);
    }
}

/// Instructions since the timer was started, up to 2,684 million: a tick is 40 ns, an instruction
/// 64 ns, which is what `-icount shift=6` tells QEMU.
pub fn instructions() -> u64 {
    // SAFETY: as above; reading has no effect.
    let ticks = u32::MAX - unsafe { VALUE.read_volatile() };
    u64::from(ticks) * 40 / 64
}

/// The address of the stack's last word.
fn stack_pointer() -> *mut u32 {
    let pointer: *mut u32;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, sp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// Bytes of stack that `run` takes, its caller's frame aside.
#[inline(never)]
pub fn stack_of(run: impl FnOnce()) -> usize {
    #[inline(never)]
    fn apart(run: impl FnOnce()) {
        run();
    }
    let (lowest, top) = (&raw mut __sheap, stack_pointer());
    // SAFETY: below the stack's last word and above the statics nothing lies, and no interrupt is
    // enabled that would push something there.
    unsafe {
        let mut word = lowest;
        while word < top {
            word.write_volatile(PAINT);
            word = word.add(1);
        }
    }
    apart(run);
    // SAFETY: memory that was written above.
    if unsafe { lowest.read_volatile() } != PAINT {
        crate::println!("the stack has run into the statics");
        exit(1);
    }
    let mut word = lowest.cast_const();
    // SAFETY: memory that was written above.
    unsafe {
        while word < top && word.read_volatile() == PAINT {
            word = word.add(1);
        }
    }
    top as usize - word as usize
}

/// Asks the debugger, here QEMU, to do something: operation `what` of Arm's semihosting.
fn call(what: u32, with: *const u32) {
    // SAFETY: the operations below only read what they are given.
    unsafe {
        asm!("bkpt 0xab", inout("r0") what => _, in("r1") with,
            options(nostack, preserves_flags, readonly));
    }
}

/// The console of the debugger.
#[derive(Debug)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The operation takes bytes up to a zero.
        let mut line = [0u8; 65];
        for part in text.as_bytes().chunks(line.len() - 1) {
            line.fill(0);
            line.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            call(0x04, line.as_ptr().cast());
        }
        Ok(())
    }
}

/// Prints a line on the console of the debugger.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        // The console takes everything.
        let _ = writeln!($crate::board::Console, $($arg)*);
    }};
}

/// Ends the emulation with a status for the shell.
pub fn exit(status: u32) -> ! {
    /// The program ended by itself.
    const APPLICATION_EXIT: u32 = 0x2_0026;
    let block = [APPLICATION_EXIT, status];
    call(0x20, block.as_ptr());
    loop {}
}

/// Starts the board anew, as its button would.
pub fn reset() -> ! {
    /// The core's register that asks for it, and what is written there.
    const AIRCR: *mut u32 = 0xe000_ed0c as *mut u32;
    const RESET: u32 = 0x05fa_0004;
    // SAFETY: a register of the core; everything begins anew.
    unsafe { AIRCR.write_volatile(RESET) };
    loop {}
}

/// Memory that is not there, an instruction that is not one.
#[exception]
unsafe fn HardFault(_: &ExceptionFrame) -> ! {
    exit(102)
}
