//! The checksum of what is stored.

use crc::{CRC_32_ISO_HDLC, Crc, Table};

/// CRC-32 as in zip and PNG, with a table of 1 KiB.
pub(crate) static CRC32: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISO_HDLC);
