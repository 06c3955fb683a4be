//! Memory beside the board's own that keeps what it holds when the board is reset: it stands for
//! external flash. It does what NOR flash does, and no more.

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};

/// Where QEMU's mps2-an386 has it, outside of everything that is loaded.
const START: *mut u8 = 0x2100_0000 as *mut u8;
/// What is used of it.
pub const BYTES: usize = 2 << 20;

/// The flash. There is one.
#[derive(Debug)]
pub struct Psram(());

impl Psram {
    /// The flash.
    ///
    /// # Safety
    /// There is no other, and nothing that [`mapped`] gave is in use.
    pub const unsafe fn take() -> Self {
        Self(())
    }
}

/// Two slots of it, mapped into memory.
///
/// # Safety
/// Nothing writes to the flash as long as they are in use.
pub unsafe fn mapped(slots: [u32; 2], size: u32) -> [&'static [u8]; 2] {
    slots.map(|at| {
        let (at, size) = ((at as usize).min(BYTES), size as usize);
        let size = size.min(BYTES - at);
        // SAFETY: within the memory, which is always there and which nothing writes to.
        unsafe { core::slice::from_raw_parts(START.add(at), size) }
    })
}

impl ErrorType for Psram {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Psram {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        check_read(self, offset, bytes.len())?;
        for (byte, at) in bytes.iter_mut().zip(offset as usize..) {
            // SAFETY: within the memory, as was just checked.
            *byte = unsafe { START.add(at).read_volatile() };
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        BYTES
    }
}

impl NorFlash for Psram {
    const WRITE_SIZE: usize = 8;
    const ERASE_SIZE: usize = 4096;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        check_erase(self, from, to)?;
        for at in from as usize..to as usize {
            // SAFETY: within the memory, as was just checked.
            unsafe { START.add(at).write_volatile(0xff) };
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        check_write(self, offset, bytes.len())?;
        for (byte, at) in bytes.iter().zip(offset as usize..) {
            // SAFETY: within the memory, as was just checked. Writing only clears bits.
            unsafe { START.add(at).write_volatile(START.add(at).read_volatile() & byte) };
        }
        Ok(())
    }
}
