//! Bytes that a page keeps, as a flash.

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};

/// A flash of bytes in memory, erased by `ERASE` of them.
pub struct Ram<'a, const ERASE: usize>(pub &'a mut [u8]);

impl<const ERASE: usize> Ram<'_, ERASE> {
    fn part(&mut self, at: u32, len: usize) -> Result<&mut [u8], NorFlashErrorKind> {
        let at = at as usize;
        let past = at.checked_add(len).ok_or(NorFlashErrorKind::OutOfBounds)?;
        self.0.get_mut(at..past).ok_or(NorFlashErrorKind::OutOfBounds)
    }
}

impl<const ERASE: usize> ErrorType for Ram<'_, ERASE> {
    type Error = NorFlashErrorKind;
}

impl<const ERASE: usize> ReadNorFlash for Ram<'_, ERASE> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), Self::Error> {
        let part = self.part(at, into.len())?;
        into.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.0.len()
    }
}

impl<const ERASE: usize> NorFlash for Ram<'_, ERASE> {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = ERASE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
        self.part(from, to.saturating_sub(from) as usize)?.fill(0xff);
        Ok(())
    }

    fn write(&mut self, at: u32, from: &[u8]) -> Result<(), Self::Error> {
        let part = self.part(at, from.len())?;
        part.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}
